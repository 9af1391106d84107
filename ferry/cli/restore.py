"""``restore`` and ``plan``: restore one collection without Prefect, or only show how that would be done."""

import argparse
from uuid import uuid4

import orjson
from pydantic import ValidationError

from ferry import report
from ferry.cli import terminal
from ferry.connections import Connections, connect
from ferry.errors import ConfigurationError
from ferry.lanes import Job
from ferry.models import ShardKey, now
from ferry.repository.layout import new_backup_id
from ferry.restore.plan import RestorePlan, RestoreRequest
from ferry.restore.plan_document import plan_document
from ferry.restore.preflight import prepare
from ferry.restore.run import Restored, run_restore
from ferry.restore.shape import Shape


def run(given: argparse.Namespace) -> int:
    """Show the plan; unless no more was asked for restore, compare, and print the verdict."""
    connections, request = asked(given)
    if given.dry_run:
        plan = prepare(connections, request)
        if given.json:
            terminal.print_json(plan_document(plan))
        else:
            _print_plan(plan)
        return 0
    with terminal.progress_bars() as tell:
        holder = f"restore {request.restore_id} by python -m ferry"
        restored = run_restore(connections, request, holder, Job(tell), announce=_print_plan)
    _print_verdict(restored)
    return 0


def asked(given: argparse.Namespace) -> tuple[Connections, RestoreRequest]:
    """The request that the arguments make, and the clients that it needs. Raises ConfigurationError."""
    repository = terminal.chosen_repository(given.repository)
    request = RestoreRequest(
        restore_id=new_backup_id(now(), str(uuid4())),
        cluster=given.cluster,
        repository=repository,
        source_cluster=given.source_cluster,
        backup=given.backup,
        collection=given.collection,
        into=given.into,
        replication_factor=given.replication_factor,
        shape=shape_of(given),
        path=given.path,
        alias=given.alias,
        keep_days=given.keep_days,
        verify=given.verify,
        keep_on_failure=given.keep_on_failure,
    )
    return connect(given.cluster, repository), request


def shape_of(given: argparse.Namespace) -> Shape:
    """The shape that the arguments ask for. Raises ConfigurationError for a value that cannot be meant."""
    wishes = {
        "shard_number": given.shard_number,
        "sharding": given.sharding,
        "only_keys": [_shard_key(text) for text in given.only_key],
        "rename_keys": {old: _shard_key(new) for old, new in pairs(given.rename_key, "--rename-key").items()},
        "into_key": given.into_key and _shard_key(given.into_key),
        "key_field": given.key_field,
        "on_disk": given.on_disk,
        "quantization": given.quantization and _quantization(given.quantization),
    }
    try:
        return Shape.model_validate(wishes)
    except ValidationError as error:
        told = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
        raise ConfigurationError(f"{told}.", "See the command's --help.") from None


def pairs(given: list[str], option: str, *, unnamed: bool = False) -> dict[str, str]:
    """What stands before and behind the = of each argument; before it may be nothing where that is a name, too.

    Raises ConfigurationError for one without, or for two.
    """
    found: dict[str, str] = {}
    for text in given:
        old, sign, new = text.partition("=")
        if not ((old or unnamed) and sign and new) or found.get(old, new) != new:
            msg = f"{option} {text}: it must be OLD=NEW, and once for each OLD."
            raise ConfigurationError(msg, "See the command's --help.")
        found[old] = new
    return found


def _shard_key(text: str) -> ShardKey:
    """A number where it is written as one; in quotation marks, digits are a word: '"7"' is another key than 7."""
    if text.isdecimal():
        return int(text)
    quoted = len(text) > 2 and text[0] == text[-1] == '"'
    return text[1:-1] if quoted else text


def _quantization(text: str) -> dict[str, object]:
    try:
        found = orjson.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        msg = f"--quantization {text}: it must be a JSON object, as Qdrant's quantization_config; {{}} for none."
        raise ConfigurationError(msg, """For example: --quantization '{"scalar": {"type": "int8"}}'""")
    return found


def _print_plan(plan: RestorePlan) -> None:
    terminal.print_text(report.restore_plan_text(plan))
    terminal.print_rows(report.restore_plan_rows(plan))


def _print_verdict(restored: Restored) -> None:
    plan = restored.plan
    names = {int(node.peer_id): node.label for node in plan.layout.nodes}
    verdicts = list(restored.verdicts)
    findings = plan.findings + tuple(finding for replica in restored.recovered for finding in replica.findings)
    terminal.print_rows(report.verdict_rows(verdicts, names))
    terminal.print_text(report.restore_verdict(plan, verdicts, findings))
