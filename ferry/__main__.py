"""Ferry by hand, without Prefect: look, verify, back up and restore when nothing else runs.

Exit codes: 0 done, 1 something failed (and was said), 2 a wrong command line, 130 interrupted.
"""

import argparse
import getpass
import importlib
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, get_args

from ferry.errors import FerryError
from ferry.models import KEEP_DAYS, ProofLevel, RecoveryMode, RestorePath, SnapshotKind, VerifyLevel

# The module that runs each command; imported when it is called, so that --help needs no S3 client.
_MODULES = {
    "doctor": "ferry.cli.doctor",
    "settings": "ferry.cli.settings_page",
    "list": "ferry.cli.listing",
    "show": "ferry.cli.show",
    "verify": "ferry.cli.verify",
    "diff": "ferry.cli.diff",
    "query": "ferry.cli.query",
    "recover": "ferry.cli.recover",
    "backup": "ferry.cli.backup",
    "restore": "ferry.cli.restore",
    "plan": "ferry.cli.restore",
    "restore-in-place": "ferry.cli.in_place",
    "restore-cluster": "ferry.cli.restore_cluster",
    "finish": "ferry.cli.finish",
    "roll-back": "ferry.cli.roll_back",
    "mend": "ferry.cli.mend",
    "prune": "ferry.cli.prune",
    "gc": "ferry.cli.gc",
    "hold": "ferry.cli.hold",
    "release": "ferry.cli.hold",
    "migrate": "ferry.cli.migrate",
    "migrations": "ferry.cli.migrate",
    "follow": "ferry.cli.follow",
    "export": "ferry.cli.export",
}
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a FerryError is printed with its remedy, never as a traceback."""
    given = parser().parse_args(arguments)
    if arguments is None:  # as a process of its own: a pod that is stopped cleans up like Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("ferry").setLevel(logging.INFO if given.verbose else logging.ERROR)
    try:
        run = importlib.import_module(_MODULES[given.command]).run
        return int(run(given))
    except FerryError as error:
        from ferry.cli.terminal import print_error

        print_error(error)
        return 1
    except KeyboardInterrupt:
        from ferry.cli.terminal import err

        err().print("Interrupted; what was begun has been taken away, or is by the next run, or is gone on with.")
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--verbose", action="store_true", help="log what is done, on stderr")
    stored = argparse.ArgumentParser(add_help=False, parents=[every])
    stored.add_argument("--repository", metavar="NAME", help="may be left out when only one is configured")
    whole = argparse.ArgumentParser(prog="ferry", description="Qdrant backups by hand, without Prefect.")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_looking(commands, every, stored)
    _add_points(commands, stored)
    _add_backup(commands, stored)
    _add_restore(commands, stored)
    _add_in_place(commands, stored)
    _add_switching(commands, stored)
    _add_mend(commands, every)
    _add_deleting(commands, stored)
    _add_migrate(commands, stored)
    _add_export(commands, stored)
    return whole


def _add_looking(commands: Commands, every: argparse.ArgumentParser, stored: argparse.ArgumentParser) -> None:
    doctor = commands.add_parser("doctor", parents=[every], help="every setting, where it came from, and if it works")
    doctor.add_argument("--cluster", metavar="NAME", help="try only this cluster")
    doctor.add_argument("--repository", metavar="NAME", help="try only this repository")
    doctor.add_argument("--json", action="store_true")
    settings = commands.add_parser("settings", parents=[every], help="the settings as they stand, or their reference")
    settings.add_argument("--markdown", action="store_true", help="print docs/settings.md")
    listing = commands.add_parser("list", parents=[stored], help="the backups in a repository")
    listing.add_argument("--cluster", metavar="NAME", help="only backups of this cluster")
    listing.add_argument("--json", action="store_true")
    show = commands.add_parser("show", parents=[stored], help="one backup: collections, shards, digests, aliases")
    show.add_argument("cluster")
    show.add_argument("backup", nargs="?", default="latest", help="its id, or latest (default)")
    show.add_argument("--json", action="store_true")
    verify = commands.add_parser("verify", parents=[stored], help="read a backup back and compare it with its proof")
    verify.add_argument("cluster")
    verify.add_argument("backup", nargs="?", default="latest", help="its id, or latest (default)")
    verify.add_argument("--collection", metavar="NAME", help="only this collection")
    diff = commands.add_parser("diff", parents=[stored], help="which points differ between two backups, or a live one")
    diff.add_argument("first", metavar="FIRST", help="the older: CLUSTER/BACKUP/COLLECTION or live:CLUSTER/COLLECTION")
    diff.add_argument("second", metavar="SECOND", help="the newer, in the same form; BACKUP is an id, or latest")
    diff.add_argument("--out", type=Path, metavar="FILE", help="write every point that differs as a line of JSON")
    diff.add_argument("--json", action="store_true")


def _add_points(commands: Commands, stored: argparse.ArgumentParser) -> None:
    chosen = argparse.ArgumentParser(add_help=False, parents=[stored])
    chosen.add_argument("--filter", metavar="JSON", help="points that Qdrant's filter selects; @FILE reads it")
    chosen.add_argument(
        "--ids", metavar="LIST", help="ids, with commas between them; @FILE: one a line, or diff's lines"
    )
    query = commands.add_parser("query", parents=[chosen], help="ask a backup without restoring it")
    query.add_argument("backup", help="its id, or latest")
    query.add_argument("collection", help="its name in the backup")
    query.add_argument("question", choices=("count", "scroll", "nearest"))
    query.add_argument("--cluster", metavar="NAME", help="whose backup; may be left out when there is only one")
    query.add_argument("--limit", type=int, default=10, metavar="N", help="at most so many points (10)")
    query.add_argument("--offset", metavar="ID", help="scroll from this id on")
    query.add_argument("--vector", metavar="JSON", help="nearest to this vector")
    query.add_argument("--like", metavar="ID", help="nearest to the vector of this point")
    query.add_argument("--using", metavar="NAME", help="vectors of that name")
    query.add_argument("--exact", action="store_true", help="compare with every point, not by the index")
    query.add_argument("--vectors", action="store_true", help="show the points' vectors, too")
    query.add_argument("--json", action="store_true")
    recover = commands.add_parser("recover", parents=[chosen], help="put chosen points of a backup back")
    recover.add_argument("collection", help="its name in the backup")
    recover.add_argument("--cluster", required=True, metavar="NAME", help="the cluster to write to")
    recover.add_argument("--source-cluster", required=True, metavar="NAME", help="the cluster the backup was made of")
    recover.add_argument("--backup", default="latest", metavar="ID", help="its id, or latest (default)")
    recover.add_argument("--into", metavar="NAME", help="live collection or alias, if it is called otherwise")
    recover.add_argument("--mode", choices=get_args(RecoveryMode), default="missing")
    recover.add_argument("--dry-run", action="store_true", help="compare and show what would be written")


def _add_backup(commands: Commands, stored: argparse.ArgumentParser) -> None:
    backup = commands.add_parser("backup", parents=[stored], help="back up a cluster and prove it")
    backup.add_argument("cluster")
    backup.add_argument("--include", action="append", metavar="PATTERN", help="collections to back up (default: all)")
    backup.add_argument("--exclude", action="append", metavar="PATTERN", default=[], help="collections to leave out")
    backup.add_argument("--kind", choices=get_args(SnapshotKind), default="shard")
    backup.add_argument("--proof", choices=get_args(ProofLevel), default="content")
    backup.add_argument("--policy", metavar="NAME", help="limits, quiet hours and retention (policies.NAME)")
    backup.add_argument("--fresh", action="store_true", help="do not go on with a run that died")
    backup.add_argument("--dry-run", action="store_true", help="show the plan and stop")


def _add_restore(commands: Commands, stored: argparse.ArgumentParser) -> None:
    one = _restore_arguments(stored)
    restore = commands.add_parser("restore", parents=[one], help="restore one collection under a new name")
    restore.add_argument("--keep-on-failure", action="store_true", help="keep what a failed restore has made")
    restore.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    plan = commands.add_parser("plan", parents=[one], help="how a restore would be done, why, and what it needs")
    plan.set_defaults(dry_run=True, keep_on_failure=False)
    _add_restore_cluster(commands, _target_arguments(stored))


def _add_restore_cluster(commands: Commands, target: argparse.ArgumentParser) -> None:
    many = commands.add_parser("restore-cluster", parents=[target], help="restore many collections of one backup")
    many.add_argument("--include", action="append", metavar="PATTERN", help="collections to restore (default: all)")
    many.add_argument("--exclude", action="append", metavar="PATTERN", default=[], help="collections to leave out")
    called = "what new collections are called; {collection} and {backup_id} stand for both (default: as they were)"
    many.add_argument("--name", default="{collection}", metavar="PATTERN", help=called)
    many.add_argument("--rename", action="append", default=[], metavar="OLD=NEW", help="one collection; repeatable")
    moved = "aliases of the backup to move, last and at once; '*' for all of restored collections; repeatable"
    many.add_argument("--alias", action="append", default=[], metavar="PATTERN", help=moved)
    many.add_argument("--rename-alias", action="append", default=[], metavar="OLD=NEW", help="one alias; repeatable")
    many.add_argument("--dry-run", action="store_true", help="show the plan and stop")


def _restore_arguments(stored: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What a restore and its plan take alike; ferry.cli.restore makes the request of it."""
    one = argparse.ArgumentParser(add_help=False, parents=[_target_arguments(stored)])
    one.add_argument("collection", help="its name in the backup")
    one.add_argument("--into", metavar="NAME", help="name of the new collection")
    one.add_argument("--alias", metavar="NAME", help="point this alias at it, last")
    one.add_argument("--json", action="store_true", help="the plan as JSON; with --dry-run, or the command plan")
    _add_shape(one)
    return one


def _add_shape(of: argparse.ArgumentParser) -> None:
    """What ferry.cli.restore.shape_of reads."""
    shape = of.add_argument_group("what the new collection shall have otherwise than the old one")
    shape.add_argument(
        "--shard-number", type=_at_least(1), metavar="N", help="shards; of each key where it has shard keys"
    )
    shape.add_argument("--sharding", choices=("auto", "custom"), help="by the points' ids, or by shard keys")
    shape.add_argument("--only-key", action="append", default=[], metavar="KEY", help="only this shard key; repeatable")
    shape.add_argument("--rename-key", action="append", default=[], metavar="OLD=NEW", help="repeatable")
    shape.add_argument("--into-key", metavar="KEY", help="one shard key for all points")
    shape.add_argument("--key-field", metavar="FIELD", help="payload field whose value becomes a point's shard key")
    shape.add_argument("--on-disk", action=argparse.BooleanOptionalAction, help="where the vectors shall be")
    shape.add_argument("--quantization", metavar="JSON", help="another quantization_config; {} for none")


def _target_arguments(stored: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """What every restore takes: from where to where, how, and how sure."""
    target = argparse.ArgumentParser(add_help=False, parents=[stored])
    target.add_argument("--cluster", required=True, metavar="NAME", help="the cluster to restore to")
    target.add_argument("--source-cluster", required=True, metavar="NAME", help="the cluster the backup was made of")
    target.add_argument("--backup", default="latest", metavar="ID", help="its id, or latest (default)")
    target.add_argument("--replication-factor", type=_at_least(1), metavar="N", help="copies of each shard")
    target.add_argument("--path", choices=get_args(RestorePath), help="archives recovered, or their points sent")
    target.add_argument("--verify", choices=get_args(VerifyLevel), default="sample")
    kept = "days that a collection which an alias leaves is kept, for roll-back (7)"
    target.add_argument("--keep-days", type=_at_least(0), default=KEEP_DAYS, metavar="N", help=kept)
    return target


def _add_in_place(commands: Commands, stored: argparse.ArgumentParser) -> None:
    place = commands.add_parser("restore-in-place", parents=[stored], help="overwrite a live collection from a backup")
    place.add_argument("collection", help="its name in the backup")
    place.add_argument("--cluster", required=True, metavar="NAME", help="the cluster of the live collection")
    place.add_argument("--source-cluster", required=True, metavar="NAME", help="the cluster the backup was made of")
    place.add_argument("--backup", required=True, metavar="ID", help="its id; not latest")
    place.add_argument("--confirm", required=True, metavar="NAME", help="type the name of what is overwritten")
    place.add_argument("--into", metavar="NAME", help="the live collection, where it has another name")
    place.add_argument("--waive-backup", action="store_true", help="do not back its present state up first")
    place.add_argument("--verify", choices=get_args(VerifyLevel), default="content")
    place.add_argument("--dry-run", action="store_true", help="show the plan and stop")


def _at_least(least: int) -> Callable[[str], int]:
    """A whole number from there on; anything else is a wrong command line."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            msg = f"{text!r} is no whole number from {least} on"
            raise argparse.ArgumentTypeError(msg)
        return int(text)

    return number


def _add_switching(commands: Commands, stored: argparse.ArgumentParser) -> None:
    switched = argparse.ArgumentParser(add_help=False, parents=[stored])
    switched.add_argument("--cluster", required=True, metavar="NAME", help="the cluster that was restored to")
    switched.add_argument("--dry-run", action="store_true", help="show what would be done and stop")
    finish = commands.add_parser("finish", parents=[switched], help="drop old collections whose time is over")
    finish.add_argument("--alias", metavar="NAME", help="only this alias; also makes the move of a restore that died")
    finish.add_argument("--now", action="store_true", help="drop the old collection of that alias before its time")
    finish.add_argument("--drop-changed", metavar="NAME", help="the old collection to drop although it has changed")
    back = commands.add_parser("roll-back", parents=[switched], help="point an alias at its old collection again")
    back.add_argument("--alias", required=True, metavar="NAME", help="the alias that a restore has moved")
    back.add_argument("--drop-new", action="store_true", help="drop the new collection when the alias has left it")


def _add_mend(commands: Commands, every: argparse.ArgumentParser) -> None:
    mend = commands.add_parser("mend", parents=[every], help="mend stuck replicas of a collection, or show the calls")
    mend.add_argument("cluster")
    mend.add_argument("collection")
    mend.add_argument("--replication-factor", type=int, metavar="N", help="copies of each shard (default: its own)")
    mend.add_argument("--patience", type=float, default=30, metavar="SECONDS", help="how long unchanged is stuck (30)")
    mend.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="for transfers that go on (3600)")
    mend.add_argument("--dry-run", action="store_true", help="show what is stuck and the calls, and stop")


def _add_deleting(commands: Commands, stored: argparse.ArgumentParser) -> None:
    kept = argparse.ArgumentParser(add_help=False, parents=[stored])
    kept.add_argument("--cluster", required=True, metavar="NAME", help="the cluster the backups were made of")
    kept.add_argument("--policy", metavar="NAME", help="its retention decides; left out, every backup is kept")
    kept.add_argument("--apply", action="store_true", help="do it; otherwise only show what would be done")
    commands.add_parser("prune", parents=[kept], help="delete the backups that no rule of a policy keeps")
    gc = commands.add_parser("gc", parents=[kept], help="take away what no backup, run or reader needs")
    gc.add_argument("--all", action="store_true", help="condemned commit points younger than a week, too")
    hold = commands.add_parser("hold", parents=[stored], help="keep a backup whatever the policy says")
    release = commands.add_parser("release", parents=[stored], help="take a hold back")
    for command in (hold, release):
        command.add_argument("cluster")
        command.add_argument("backup", help="its id" if command is release else "its id, or latest")
    hold.add_argument("--reason", required=True, metavar="TEXT", help="why, for whoever asks in some years")
    hold.add_argument("--by", default=getpass.getuser(), metavar="WHO", help="who wants it (default: you)")


def _add_migrate(commands: Commands, stored: argparse.ArgumentParser) -> None:
    known = commands.add_parser("migrations", parents=[stored], help="migrations of a repository, and how far each is")
    known.add_argument("--cluster", metavar="NAME", help="only those into this cluster")
    known.add_argument("--json", action="store_true")
    follow = commands.add_parser("follow", parents=[stored], help="keep the old collection equal after a cut-over")
    follow.add_argument("migration", help="its id; see migrations")
    follow.add_argument("--alias", required=True, metavar="NAME", help="the alias that was moved")
    follow.add_argument("--every", type=float, default=30, metavar="SECONDS", help="from pass to pass (30)")
    follow.add_argument("--once", action="store_true", help="once, until both are equal; right before a roll-back")
    migrate = commands.add_parser("migrate", parents=[stored], help="bring a collection from anywhere into a new one")
    sources = "live:CLUSTER/COLLECTION, CLUSTER/BACKUP/COLLECTION of a backup, or parquet:FOLDER"
    migrate.add_argument("source", metavar="SOURCE", help=sources)
    migrate.add_argument("--cluster", required=True, metavar="NAME", help="the cluster to migrate to")
    migrate.add_argument("--into", required=True, metavar="NAME", help="name of the new collection")
    migrate.add_argument("--filter", metavar="JSON", help="only points that Qdrant's filter selects; @FILE reads it")
    migrate.add_argument("--replication-factor", type=_at_least(1), metavar="N", help="copies of each shard")
    migrate.add_argument("--writer", choices=("stream", "build"), help="send points, or build whole shards here")
    migrate.add_argument("--readers", type=_at_least(1), default=4, metavar="N", help="ranges read at a time (4)")
    migrate.add_argument("--leave-out-refused", action="store_true", help="go on without points that Qdrant refuses")
    migrate.add_argument("--keep-deleted", action="store_true", help="leave points that the source has lost meanwhile")
    migrate.add_argument("--alias", metavar="NAME", help="point this alias at the new collection, last")
    migrate.add_argument(
        "--keep-days", type=_at_least(0), default=KEEP_DAYS, metavar="N", help="days the alias's old one is kept (7)"
    )
    migrate.add_argument("--restart", action="store_true", help="forget what an earlier run of it has done")
    migrate.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    migrate.add_argument("--json", action="store_true", help="the plan, or the report, as JSON")
    _add_shape(migrate)
    _add_changes(migrate)


def _add_export(commands: Commands, stored: argparse.ArgumentParser) -> None:
    export = commands.add_parser("export", parents=[stored], help="a collection, live or of a backup, as Parquet files")
    export.add_argument("source", metavar="SOURCE", help="live:CLUSTER/COLLECTION, or CLUSTER/BACKUP/COLLECTION")
    export.add_argument("location", metavar="FOLDER", help="an empty folder, or s3://BUCKET/PREFIX of the repository")
    export.add_argument("--filter", metavar="JSON", help="only points that Qdrant's filter selects; @FILE reads it")
    export.add_argument("--vector", action="append", metavar="NAME", help="only this vector; repeatable")
    export.add_argument("--readers", type=_at_least(1), default=4, metavar="N", help="files written at a time (4)")


def _add_changes(of: argparse.ArgumentParser) -> None:
    """What ferry.cli.migrate.changes_of reads."""
    changes = of.add_argument_group("what its points shall have otherwise")
    changes.add_argument(
        "--rename-vector", action="append", default=[], metavar="OLD=NEW", help="a vector; the unnamed one is '': =NEW"
    )
    changes.add_argument("--drop-vector", action="append", default=[], metavar="NAME", help="repeatable")
    changes.add_argument("--rename-field", action="append", default=[], metavar="OLD=NEW", help="of the payload")
    changes.add_argument("--drop-field", action="append", default=[], metavar="NAME", help="of the payload; repeatable")
    changes.add_argument(
        "--field-type",
        action="append",
        default=[],
        metavar="NAME=TYPE",
        help="integer, float, keyword, bool, or datetime; of the payload, by the new name",
    )
    changes.add_argument("--datatype", choices=("float32", "float16", "uint8"), help="of all dense vectors")
    changes.add_argument("--distance", metavar="NAME", help="refused unless it is the source's")


if __name__ == "__main__":
    sys.exit(main())
