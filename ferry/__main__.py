"""Ferry by hand, without Prefect: look, verify, back up and restore when nothing else runs.

Exit codes: 0 done, 1 something failed (and was said), 2 a wrong command line, 130 interrupted.
"""

import argparse
import getpass
import importlib
import logging
import signal
import sys
from typing import TypeAlias, get_args

from ferry.errors import FerryError
from ferry.models import ProofLevel, SnapshotKind, VerifyLevel

# The module that runs each command; imported when it is called, so that --help needs no S3 client.
_MODULES = {
    "doctor": "ferry.cli.doctor",
    "settings": "ferry.cli.settings_page",
    "list": "ferry.cli.listing",
    "show": "ferry.cli.show",
    "verify": "ferry.cli.verify",
    "backup": "ferry.cli.backup",
    "restore": "ferry.cli.restore",
    "prune": "ferry.cli.prune",
    "gc": "ferry.cli.gc",
    "hold": "ferry.cli.hold",
    "release": "ferry.cli.hold",
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

        err().print("Interrupted; what was begun has been taken away, or is by the next run.")
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
    _add_backup(commands, stored)
    _add_restore(commands, stored)
    _add_deleting(commands, stored)
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
    restore = commands.add_parser("restore", parents=[stored], help="restore one collection under a new name")
    restore.add_argument("collection", help="its name in the backup")
    restore.add_argument("--cluster", required=True, metavar="NAME", help="the cluster to restore to")
    restore.add_argument("--source-cluster", required=True, metavar="NAME", help="the cluster the backup was made of")
    restore.add_argument("--backup", default="latest", metavar="ID", help="its id, or latest (default)")
    restore.add_argument("--into", metavar="NAME", help="name of the new collection")
    restore.add_argument("--alias", metavar="NAME", help="point this alias at it, last")
    restore.add_argument("--replication-factor", type=int, metavar="N", help="copies of each shard")
    restore.add_argument("--verify", choices=get_args(VerifyLevel), default="sample")
    restore.add_argument("--keep-on-failure", action="store_true", help="keep what a failed restore has made")
    restore.add_argument("--dry-run", action="store_true", help="show the plan and stop")


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


if __name__ == "__main__":
    sys.exit(main())
