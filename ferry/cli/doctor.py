"""``doctor``: every setting and where it came from, and whether each profile works."""

import argparse

from rich.text import Text

from ferry.cli import terminal
from ferry.cli.origins import Origin, read_origins
from ferry.cli.trials import Trial, try_everything
from ferry.settings import load_settings


def run(given: argparse.Namespace) -> int:
    """Print settings and trials; 1 when something failed."""
    settings = load_settings()
    for table, name in (("cluster", given.cluster), ("repository", given.repository)):
        if name is not None:
            getattr(settings, table)(name)
    origins = read_origins(settings)
    trials = try_everything(settings, given.cluster, given.repository)
    failed = [trial for trial in trials if not trial.ok]
    if given.json:
        terminal.print_json(
            {
                "ok": not failed,
                "settings": [origin.model_dump() for origin in origins],
                "trials": [trial.model_dump() for trial in trials],
            }
        )
    else:
        _print(origins, trials, failed)
    return 1 if failed else 0


def _print(origins: list[Origin], trials: list[Trial], failed: list[Trial]) -> None:
    out = terminal.out()
    terminal.print_rows([{"setting": o.key, "value": o.value, "from": o.source} for o in origins], "Settings")
    out.print()
    terminal.print_rows([_row(trial) for trial in trials], "Trials")
    for trial in failed:
        out.print(Text(f"\n{trial.profile}, {trial.test}:", style="red"))
        out.print(Text(f"→ {trial.remedy or 'See the logs of the server that answered.'}"))
    out.print()
    out.print(Text(f"{len(failed)} of {len(trials)} trials failed." if failed else f"All {len(trials)} trials passed."))


def _row(trial: Trial) -> dict[str, object]:
    verdict = Text("ok", style="green") if trial.ok else Text("FAIL", style="bold red")
    return {"profile": trial.profile, "test": trial.test, "": verdict, "detail": trial.detail}
