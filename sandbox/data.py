"""Demo data: real English word vectors with a payload of every common type, loaded fast."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import orjson

from sandbox.binaries import WORDS_COUNT, WORDS_DIMENSIONS, word_vectors_file
from sandbox.process import SandboxError

BATCH_POINTS = 1_000
IN_FLIGHT = 2
COMMON_RANK = 5_000
LOAD_SECONDS = 120.0
PAYLOAD_INDEXES: dict[str, dict[str, Any]] = {
    "word": {"type": "keyword"},
    "first_letter": {"type": "keyword"},
    "length": {"type": "integer", "lookup": True, "range": True},
    "rank": {"type": "integer", "lookup": False, "range": True},
    "norm": {"type": "float"},
    "alphabetic": {"type": "bool"},
    "note": {"type": "text", "tokenizer": "word", "lowercase": True, "min_token_len": 2},
}


@dataclass(frozen=True)
class WordShape:
    """How the collection is laid out; `alias` None means `<collection>-live`, and "" means no alias."""

    shards: int = 3
    replication: int = 2
    alias: str | None = None
    indexing_threshold_kb: int | None = None


def load_words(
    url: str,
    collection: str,
    points: int = 50_000,
    *,
    api_key: str | None = None,
    shape: WordShape | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Create the collection, load its first `points` words (acknowledged), index the payload, set the alias.

    Point ids are the words' ranks, 0 the most frequent. `progress` is called with (points loaded, points).
    """
    if not 0 < points <= WORDS_COUNT:
        raise SandboxError(f"There are {WORDS_COUNT} words; {points} were asked for", "Ask for fewer points.")
    shape = shape or WordShape()
    batches = range(0, points, BATCH_POINTS)
    words, vectors = _words_and_vectors()
    with _session(url, api_key) as http, ThreadPoolExecutor(IN_FLIGHT) as lanes:
        _create(http, collection, shape)

        def put(begin: int) -> int:
            body = _batch(words, vectors, range(begin, min(begin + BATCH_POINTS, points)))
            _ask(http, "PUT", f"/collections/{collection}/points?wait=true", body)
            return min(begin + BATCH_POINTS, points)

        for loaded in lanes.map(put, batches):
            if progress is not None:
                progress(loaded, points)
        alias = f"{collection}-live" if shape.alias is None else shape.alias
        if alias:
            action = {"create_alias": {"collection_name": collection, "alias_name": alias}}
            _ask(http, "POST", "/collections/aliases", orjson.dumps({"actions": [action]}))


def nearest_words(
    url: str, collection: str, word: str, limit: int = 5, api_key: str | None = None
) -> list[tuple[str, float]]:
    """Return the words nearest to `word` in the collection (or alias) with their cosine, without itself.

    Everything is asked of the collection: the word by its payload index, its vector, and the search (which leaves
    out the point that is asked about).
    """
    this = {"key": "word", "match": {"value": word}}
    with _session(url, api_key) as http:
        scroll = {"filter": {"must": [this]}, "limit": 1}
        found = _ask(http, "POST", f"/collections/{collection}/points/scroll", orjson.dumps(scroll))["points"]
        if not found:
            raise SandboxError(f"{collection} has no point for the word {word!r}", "Ask for a more common word.")
        query = {"query": found[0]["id"], "limit": limit, "with_payload": ["word"]}
        answer = _ask(http, "POST", f"/collections/{collection}/points/query", orjson.dumps(query))
    return [(point["payload"]["word"], point["score"]) for point in answer["points"]]


def _create(http: httpx.Client, collection: str, shape: WordShape) -> None:
    settings: dict[str, Any] = {
        "vectors": {"size": WORDS_DIMENSIONS, "distance": "Cosine"},
        "shard_number": shape.shards,
        "replication_factor": shape.replication,
    }
    if shape.indexing_threshold_kb is not None:
        settings["optimizers_config"] = {"indexing_threshold": shape.indexing_threshold_kb}
    _ask(http, "PUT", f"/collections/{collection}", orjson.dumps(settings))
    for field, schema in PAYLOAD_INDEXES.items():  # before the points: indexing as they come costs less than after
        body = orjson.dumps({"field_name": field, "field_schema": schema})
        _ask(http, "PUT", f"/collections/{collection}/index?wait=true", body)


def _words_and_vectors() -> tuple[list[str], np.ndarray[Any, np.dtype[np.float32]]]:
    file = word_vectors_file()
    words: list[str] = json.loads((file.parent / "words.json").read_text(encoding="utf-8"))
    return words, np.load(file, mmap_mode="r")


def _batch(words: list[str], vectors: np.ndarray[Any, np.dtype[np.float32]], ranks: range) -> bytes:
    """Encode one upsert. orjson writes the rows of an array itself, so that no float becomes a Python object."""
    rows = np.ascontiguousarray(vectors[ranks.start : ranks.stop])
    norms = np.linalg.norm(rows, axis=1).round(4).tolist()
    points = [
        {"id": rank, "vector": rows[place], "payload": payload_of(words[rank], rank, norms[place])}
        for place, rank in enumerate(ranks)
    ]
    return orjson.dumps({"points": points}, option=orjson.OPT_SERIALIZE_NUMPY)


def payload_of(word: str, rank: int, norm: float) -> dict[str, Any]:
    """Return a word's payload: keyword, integer, float, bool, text, list and nested values."""
    band = "common" if rank < COMMON_RANK else "rare"
    return {
        "word": word,
        "length": len(word),
        "rank": rank,
        "first_letter": word[0],
        "norm": norm,
        "alphabetic": word.isalpha(),
        "letters": sorted(set(word)),
        "note": f"a {band} word of {len(word)} letters",
        "place": {"band": band, "thousand": rank // 1_000},
    }


@contextmanager
def _session(url: str, api_key: str | None) -> Iterator[httpx.Client]:
    headers = {"content-type": "application/json", **({"api-key": api_key} if api_key else {})}
    with httpx.Client(base_url=url, headers=headers, timeout=LOAD_SECONDS, trust_env=False) as http:
        yield http


def _ask(http: httpx.Client, method: str, path: str, body: bytes) -> Any:
    answer = http.request(method, path, content=body)
    if not answer.is_success:
        raise SandboxError(
            f"{method} {path} answered {answer.status_code}: {answer.text[:300]}",
            "Is the collection there already? Choose another name, or delete it.",
        )
    return answer.json()["result"]
