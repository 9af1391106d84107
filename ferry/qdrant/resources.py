"""Free disk and memory of each node, from whoever can tell: Qdrant itself does only from 1.19 on."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import httpx

from ferry.errors import ConfigurationError, HeadroomError
from ferry.models import ClusterLayout, Finding, NodeHeadroom, PeerId, Value
from ferry.profiles import Headroom, StaticHeadroom
from ferry.qdrant.cluster import Cluster
from ferry.qdrant.http import NotFoundError
from ferry.qdrant.node import Node
from ferry.qdrant.redaction import redact

_KIB = 1024
_MEMINFO = Path("/proc/meminfo")
# Reads (disk, RAM) of one node in bytes; None where it cannot tell.
Free = tuple[int | None, int | None]
T = TypeVar("T")


class Need(Value):
    """What an operation will take on one node, in bytes."""

    disk_bytes: int
    ram_bytes: int = 0


def read_headroom(cluster: Cluster, layout: ClusterLayout) -> list[NodeHeadroom]:
    """Free disk and memory of every node of the layout, in its order.

    ``auto`` asks Qdrant (1.19), then Prometheus, local paths and static numbers where they are configured, else it is
    unknown. Raises HeadroomError when a configured provider does not answer, ConfigurationError when it is not usable.
    """
    order = {node.url: number for number, node in enumerate(cluster.nodes)}
    found = []
    for info in layout.nodes:
        number = order[info.url]
        source, (disk, ram) = _read(cluster.profile.headroom, cluster.nodes[number], number)
        found.append(NodeHeadroom(peer_id=info.peer_id, disk_free_bytes=disk, ram_free_bytes=ram, source=source))
    return found


def require_headroom(
    headrooms: Sequence[NodeHeadroom],
    needs: Mapping[PeerId, Need],
    when_unknown: Literal["refuse", "warn"],
    names: Mapping[PeerId, str] = MappingProxyType({}),
) -> list[Finding]:
    """Raise HeadroomError with node, need, free and missing bytes, unless every node has what it needs.

    Unknown disk refuses or warns by ``when_unknown``; unknown memory only warns. ``names`` are the nodes' labels.
    """
    known = {headroom.peer_id: headroom for headroom in headrooms}
    problems: list[str] = []
    findings: list[Finding] = []
    for peer_id, need in sorted(needs.items()):
        name = names.get(peer_id, f"peer {peer_id}")
        has = known.get(peer_id) or NodeHeadroom(
            peer_id=peer_id, disk_free_bytes=None, ram_free_bytes=None, source="unknown"
        )
        for what, wanted, free in (
            ("disk", need.disk_bytes, has.disk_free_bytes),
            ("memory", need.ram_bytes, has.ram_free_bytes),
        ):
            short = _shortage(name, what, wanted, free, has.source)
            if short and free is None and not (what == "disk" and when_unknown == "refuse"):
                findings.append(_unknown(name, short))
            elif short:
                problems.append(short)
    if problems:
        msg = f"Not enough room: {'; '.join(problems)}. Nothing was changed."
        raise HeadroomError(msg, "Free or add room there, or configure clusters.<name>.headroom so that it is told.")
    return findings


def _shortage(name: str, what: str, wanted: int, free: int | None, source: str) -> str | None:
    if wanted <= 0 or (free is not None and free >= wanted):
        return None
    needs = f"{name} needs {readable_bytes(wanted)} of {what}"
    if free is None:
        return f"{needs}, and nobody can tell what it has free"
    return f"{needs} and has {readable_bytes(free)} ({source}): {readable_bytes(wanted - free)} are missing"


def readable_bytes(number: int) -> str:
    """A number of bytes as people read it, in binary units."""
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _KIB:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIB
    return f"{size:.1f} TiB"


def _read(headroom: Headroom, node: Node, number: int) -> tuple[str, Free]:
    asked: dict[str, Callable[[], Free]] = {
        "quotas": lambda: _from_quotas(node),
        "prometheus": lambda: _from_prometheus(headroom, node),
        "local": lambda: _from_path(_entry(headroom.paths, number, "paths")),
        "static": lambda: _from_static(_entry(headroom.static, number, "static")),
        "unknown": lambda: (None, None),
    }
    if headroom.kind != "auto":
        try:
            return headroom.kind, asked[headroom.kind]()
        except NotFoundError as error:
            msg = f"{node.label} has no /quotas, which Qdrant has from 1.19 on."
            raise ConfigurationError(msg, "Set headroom.kind to another provider, or leave it at auto.") from error
    try:
        free = asked["quotas"]()
    except NotFoundError:
        free = (None, None)
    if free[0] is not None:  # null where the platform does not tell
        return "quotas", free
    configured = {"prometheus": headroom.prometheus_url, "local": headroom.paths, "static": headroom.static}
    source = next((name for name, setting in configured.items() if setting), "unknown")
    return source, asked[source]()


def _from_quotas(node: Node) -> Free:
    """Qdrant ≥ 1.19: percentages of this node from /quotas, sizes in KiB from telemetry.

    Percentages are whole numbers, so one more is taken off; before 1.19 the sizes are the host's, which is why nothing
    is read from telemetry alone.
    """
    usage = node.request("GET", "/quotas")["usage"]
    system = node.telemetry(1)["app"].get("system") or {}
    return (
        _unused(system.get("disk_size"), usage.get("disk_usage_percent")),
        _unused(system.get("ram_size"), usage.get("resident_memory_percent")),
    )


def _unused(size_kib: int | None, used_percent: int | None) -> int | None:
    if size_kib is None or used_percent is None:
        return None
    return size_kib * _KIB * max(0, 99 - used_percent) // 100


def _from_prometheus(headroom: Headroom, node: Node) -> Free:
    if headroom.prometheus_url is None or headroom.disk_query is None:
        msg = "headroom.kind prometheus needs prometheus_url and disk_query."
        raise ConfigurationError(msg)
    host = urlsplit(node.url).hostname or node.label
    transport = httpx.HTTPTransport(trust_env=False)  # Prometheus is asked itself, not through a proxy of the shell's
    with httpx.Client(
        base_url=headroom.prometheus_url, transport=transport, timeout=node.profile.timeout_seconds
    ) as client:
        disk = _instant_value(client, headroom.disk_query.replace("{host}", host))
        ram = _instant_value(client, headroom.ram_query.replace("{host}", host)) if headroom.ram_query else None
    return disk, ram


def _instant_value(client: httpx.Client, query: str) -> int:
    """One number from Prometheus' instant query; anything but exactly one series is an error, not a guess."""
    try:
        response = client.get("/api/v1/query", params={"query": query})
        document: dict[str, Any] = response.json()
    except (httpx.TransportError, ValueError) as error:
        msg = f"Prometheus at {client.base_url} did not answer: {redact(str(error)) or type(error).__name__}"
        raise HeadroomError(msg, "See whether this host can reach it, or configure another headroom.") from error
    if document.get("status") != "success":
        msg = f"Prometheus refused the query {query!r} with {response.status_code}: {document.get('error')}"
        raise ConfigurationError(msg, "Correct headroom.disk_query or ram_query; try it in Prometheus itself.")
    data = document["data"]
    samples = [data["result"]] if data["resultType"] == "scalar" else [row["value"] for row in data["result"]]
    if len(samples) != 1:
        msg = f"The query {query!r} found {len(samples)} series in Prometheus; it must find one for each node."
        raise ConfigurationError(msg, "Make it name one filesystem of one node; {host} is replaced by the host name.")
    value = float(samples[0][1])
    if not math.isfinite(value):
        msg = f"The query {query!r} answered {samples[0][1]}, which is no number of bytes."
        raise HeadroomError(msg)
    return int(value)


def _from_path(path: Path) -> Free:
    try:
        disk = shutil.disk_usage(path).free
    except OSError as error:
        msg = f"headroom.paths: {path} cannot be read on this host: {error.strerror}."
        raise ConfigurationError(msg, "Name the node's storage folder as this host sees it.") from error
    return disk, _available_ram()


def _available_ram() -> int | None:
    """MemAvailable: what can be had without swapping, page cache counted as free. None where there is no /proc."""
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * _KIB for line in lines if line.startswith("MemAvailable:")), None)


def _from_static(entry: StaticHeadroom) -> Free:
    return entry.disk_free_bytes, entry.ram_free_bytes


def _entry(entries: Sequence[T], number: int, name: str) -> T:
    if not entries:
        msg = f"headroom.{name} is empty; it needs one entry for each node."
        raise ConfigurationError(msg)
    return entries[number]


def _unknown(name: str, message: str) -> Finding:
    return Finding(
        severity="warning",
        subject=name,
        message=f"{message}.",
        remedy="Look at the node itself, or configure clusters.<name>.headroom.",
    )
