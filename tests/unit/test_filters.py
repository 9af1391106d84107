"""Filters that are wrong say where; that right ones find what they find on a server is tested on one."""

import random
from typing import Any

import pytest

from ferry.archive.filters import to_filter
from ferry.errors import ConfigurationError
from tests.integration.conditions import tree

FIELD = {"key": "a"}
LINE = {"points": [{"lon": lon, "lat": lat} for lon, lat in ((0, 0), (1, 0), (1, 1), (0, 0))]}


@pytest.mark.parametrize(
    ("wrong", "where", "what"),
    [
        ([], "filter", "an object"),
        ({"muss": []}, "filter", "unknown 'muss'; known: must, should, must_not, min_should"),
        ({"must": "x"}, "filter.must", "a list"),
        ({"must": [1]}, "filter.must[0]", "a condition is an object"),
        ({"must": [{}, {"hasid": [1]}]}, "filter.must[1]", "unknown condition 'hasid'"),
        ({"must": [{"has_id": [1], "is_null": FIELD}]}, "filter.must[0]", "unknown condition 'has_id', 'is_null'"),
        ({"should": [FIELD]}, "filter.should[0]", "nothing is asked of the field 'a'"),
        ({"should": [FIELD | {"matches": 1}]}, "filter.should[0]", "unknown 'matches'"),
        ({"should": [{"key": "a[", "is_null": True}]}, "filter.should[0]", "invalid JSON path"),
        ({"should": [{"key": 3, "is_null": True}]}, "filter.should[0]", "not an instance of 'str'"),
        ({"must_not": {"match": {"value": 1}}}, "filter.must_not", "unknown condition 'match'"),
        ({"must": [FIELD | {"match": {}}]}, "filter.must[0].match", "one kind of match, not 0"),
        ({"must": [FIELD | {"match": {"value": 1, "text": "x"}}]}, "filter.must[0].match", "one kind of match, not 2"),
        ({"must": [FIELD | {"match": {"value": 1.5}}]}, "filter.must[0].match.value", "1.5 is of the wrong type"),
        ({"must": [FIELD | {"match": {"any": [1, "a"]}}]}, "filter.must[0].match.any", "is of the wrong type"),
        ({"must": [FIELD | {"match": {"any": [True]}}]}, "filter.must[0].match.any", "true and false"),
        ({"must": [FIELD | {"match": {"except": 1}}]}, "filter.must[0].match.except", "a list"),
        ({"must": [FIELD | {"match": {"text": 1}}]}, "filter.must[0].match.text", "not an instance of 'str'"),
        ({"must": [FIELD | {"range": {"gt": "soon"}}]}, "filter.must[0].range", "failed to parse date-time"),
        ({"must": [FIELD | {"range": {"gt": 1, "lt": "2026-01-01"}}]}, "filter.must[0].range", "not an instance"),
        ({"must": [FIELD | {"range": {"gt": True}}]}, "filter.must[0].range.gt", "True is no bound"),
        ({"must": [FIELD | {"range": {"ge": 1}}]}, "filter.must[0].range", "unknown 'ge'"),
        ({"must": [FIELD | {"values_count": {"gt": -1}}]}, "filter.must[0].values_count", "negative"),
        ({"must": [FIELD | {"is_empty": "yes"}]}, "filter.must[0].is_empty", "true or false"),
        ({"must": [{"is_empty": {}}]}, "filter.must[0].is_empty", "key is missing"),
        ({"must": [{"has_vector": 1}]}, "filter.must[0].has_vector", "not an instance of 'str'"),
        ({"must": [{"has_id": 1}]}, "filter.must[0].has_id", "a list"),
        ({"must": [{"has_id": [1, "x"]}]}, "filter.must[0].has_id[1]", "'x' is no point id"),
        ({"must": [{"nested": {"key": "a"}}]}, "filter.must[0].nested", "filter is missing"),
        (
            {"must": [{"nested": {"key": "a", "filter": {"must": [{"key": "b", "match": {"txt": ""}}]}}}]},
            "filter.must[0].nested.filter.must[0].match",
            "unknown 'txt'",
        ),
        ({"min_should": {"conditions": []}}, "filter.min_should", "min_count is missing"),
        ({"min_should": {"conditions": [], "min_count": "1"}}, "filter.min_should", "cannot be interpreted"),
        (
            {"must": [FIELD | {"geo_radius": {"center": {"lon": 200, "lat": 0}, "radius": 1}}]},
            "filter.must[0].geo_radius.center",
            "lon` = 200",
        ),
        ({"must": [FIELD | {"geo_radius": {"radius": 1}}]}, "filter.must[0].geo_radius", "center is missing"),
        ({"must": [FIELD | {"geo_bounding_box": {}}]}, "filter.must[0].geo_bounding_box", "top_left and bottom_right"),
        (
            {"must": [FIELD | {"geo_polygon": {"exterior": {"points": [{"lon": 1, "lat": 1}]}}}]},
            "filter.must[0].geo_polygon",
            "at least 4",
        ),
        (
            {"must": [FIELD | {"geo_polygon": {"exterior": LINE, "interiors": [{"points": [{"lon": 1}]}]}}]},
            "filter.must[0].geo_polygon.interiors[0].points[0]",
            "lat is missing",
        ),
    ],
)
def test_a_wrong_filter_says_where_and_what(wrong: Any, where: str, what: str) -> None:
    """The place, the reason, and that nothing was read."""
    with pytest.raises(ConfigurationError) as refused:
        to_filter(wrong)
    place, _, reason = refused.value.message.partition(": ")
    assert place == where
    assert what in reason
    assert reason.endswith("Nothing was read.")


def test_right_ones_are_taken() -> None:
    """Any tree of known conditions, a single condition for a list of one, nulls for what is left out, and nothing."""
    for number in range(300):
        to_filter(tree(random.Random(number), depth=3))
    to_filter({})
    to_filter({"must": None, "should": {"key": "a", "range": {"gt": None, "lt": 3}, "match": None}})


def test_a_truth_value_stays_one() -> None:
    """The engine's binding would take true for the number 1."""
    [condition] = to_filter({"must": [FIELD | {"match": {"value": True}}]}).must or []
    assert condition.match.value is True  # type: ignore[union-attr]
