"""``query``: ask a backup as one would ask Qdrant, without a restore."""

import argparse
from typing import Any

import orjson

from ferry import report
from ferry.archive.points import Selection
from ferry.archive.search import Search
from ferry.cli import chosen, terminal
from ferry.connections import Repository, connect_repository
from ferry.errors import ConfigurationError
from ferry.qdrant.vectors import vectors_of
from ferry.repository.manifest import CollectionManifest
from ferry.verify.query import StoredCollection


def run(given: argparse.Namespace) -> int:
    """Print the answer, and how much had to be fetched for it."""
    repository = connect_repository(terminal.chosen_repository(given.repository))
    start = None if given.offset is None else chosen.one_id(given.offset)
    selection = Selection(filter=chosen.given_filter(given), ids=chosen.given_ids(given), start=start)
    manifest = find_manifest(repository, given.cluster, given.backup, given.collection)
    with (
        terminal.progress_bars() as tell,
        tell(f"query {manifest.collection}", None) as progress,
        StoredCollection(repository, manifest, progress) as stored,
    ):
        answer = _answer(given, manifest, stored, selection)
    if given.json:
        terminal.print_json(answer)
    else:
        _print(answer)
    return 0


def find_manifest(repository: Repository, cluster: str | None, backup: str, collection: str) -> CollectionManifest:
    """The collection in that backup; ``latest`` is the newest that holds it, and the only cluster need not be named."""
    clusters = [cluster] if cluster else repository.catalog.clusters()
    if len(clusters) != 1:
        msg = f"Whose backup? There are backups of: {', '.join(clusters) or 'no cluster'}."
        raise ConfigurationError(msg, "Name the cluster with --cluster.")
    if backup == "latest":
        return repository.catalog.latest_with(clusters[0], collection)
    return repository.catalog.read_manifest(clusters[0], backup, collection)


def _answer(
    given: argparse.Namespace, manifest: CollectionManifest, stored: StoredCollection, selection: Selection
) -> dict[str, Any]:
    answer: dict[str, Any] = {"backup": manifest.backup_id}
    if given.question == "count":
        answer["count"] = stored.count(selection)
    elif given.question == "scroll":
        points, following = stored.scroll(selection, given.limit)
        answer |= {"points": [_shown(point, given.vectors) for point in points], "next_offset": following}
    else:
        points = stored.nearest(_search(given, manifest, stored, selection))
        answer["points"] = [_shown(point, given.vectors) for point in points]
    return answer | {"fetched_bytes": stored.fetched_bytes}


def _search(
    given: argparse.Namespace, manifest: CollectionManifest, stored: StoredCollection, selection: Selection
) -> Search:
    names = list(vectors_of(manifest.config))
    using = given.using if given.using is not None else names[0] if len(names) == 1 else ""
    if (given.vector is None) == (given.like is None):
        raise ConfigurationError("nearest needs --vector JSON or --like ID, one of them.", "Name one of them.")
    if given.like is None:
        vector = chosen.json_of(given.vector, "--vector")
    else:
        like = chosen.one_id(given.like)
        vector = stored.vector_of(like, using)
        others = {"must": [selection.filter or {}], "must_not": [{"has_id": [like]}]}  # as Qdrant does, without itself
        selection = selection.model_copy(update={"filter": others})
    return Search(
        vector=vector,
        using=using,
        limit=given.limit,
        exact=given.exact,
        with_vectors=given.vectors,
        selection=selection,
    )


def _shown(point: dict[str, Any], vectors: bool) -> dict[str, Any]:
    return {name: value for name, value in point.items() if vectors or name != "vector"}


def _print(answer: dict[str, Any]) -> None:
    if "count" in answer:
        terminal.print_raw(str(answer["count"]))
    rows = [{"id": point["id"]} | _texts(point) for point in answer.get("points", [])]
    terminal.print_rows(rows)
    if answer.get("next_offset") is not None:
        terminal.print_text(f"There are more: `--offset {answer['next_offset']}`")
    fetched = report.size(answer["fetched_bytes"])
    told = f"{fetched} were fetched" if answer["fetched_bytes"] else "all of it was on this disk"
    terminal.err().print(f"Backup {answer['backup']}: {told}.")


def _texts(point: dict[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in point.items() if name in ("score", "payload", "vector")}
    return {name: f"{value:.6g}" if name == "score" else orjson.dumps(value).decode() for name, value in shown.items()}
