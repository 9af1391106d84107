"""Carry out the steps of the Dockerfile where there is no Docker: in a folder, with an environment of its own.

What needs root on Debian (apt-get, useradd) is skipped and listed. Everything else is done as written, and then the
result is asked what an operator would ask of the image.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = Path(__file__).with_name("Dockerfile")
NEEDS_ROOT = ("apt-get", "useradd")
QUESTIONS = (
    "import flows.back_up_cluster, flows.restore_collection, flows.verify_backup, prefect_dask, pyrage",
    "import tasks, pathlib; assert pathlib.Path(tasks.__file__).parents[1] == pathlib.Path.cwd(), tasks.__file__",
    "from prefect.settings import get_current_settings as now; assert now().client.max_retries == 10",
)


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile in order, their continued lines joined, without comments."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name.upper(), rest.strip()) for name, _, rest in (line.strip().partition(" ") for line in joined)]


class Build:
    """A folder in which the image's root file system is put together."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.work = self.root
        self.skipped: list[str] = []
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}
        self.env |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self._environment(folder / "venv")

    def run(self) -> None:
        """Every instruction of the Dockerfile that does something."""
        for name, rest in instructions(DOCKERFILE.read_text()):
            if name == "WORKDIR":
                self.work = self._inside(rest)
                self.work.mkdir(parents=True, exist_ok=True)
            elif name == "ARG":
                variable, _, value = rest.partition("=")
                self.env[variable] = value.strip('"')
            elif name == "ENV":
                pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
                self.env |= {key: str(self._inside(v)) if v.startswith("/") else v for key, v in pairs.items()}
            elif name == "VOLUME":
                self._inside(rest).mkdir(parents=True, exist_ok=True)
            elif name == "COPY":
                self._copy(*shlex.split(rest))
            elif name == "RUN":
                self._shell(rest)

    def ask(self, question: str) -> None:
        """A line of Python as the image would run it. Raises CalledProcessError when the answer is no."""
        # The settings are mounted in a container; here there are none.
        env = {key: value for key, value in self.env.items() if key != "FERRY_CONFIG"}
        subprocess.run(["python", "-c", question], cwd=self.work, env=env, check=True)

    def _environment(self, venv: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        pip = venv / "bin" / "pip"
        pip.write_text(f'#!/bin/sh\nexec {_pip()} -m pip --python {venv}/bin/python "$@"\n')
        pip.chmod(0o700)
        self.env["PATH"] = f"{venv}/bin:{self.env['PATH']}"

    def _inside(self, path: str) -> Path:
        return self.root / path.lstrip("/") if path.startswith("/") else self.work / path

    def _copy(self, *paths: str) -> None:
        *sources, target = paths
        for source in (ROOT / name for name in sources):
            into = self._inside(target)
            if source.is_dir():
                shutil.copytree(source, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                into = into / source.name if target.endswith("/") else into
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, into)

    def _shell(self, command: str) -> None:
        if command.startswith(NEEDS_ROOT):
            self.skipped.append(command)
            return
        subprocess.run(["sh", "-euc", command], cwd=self.work, env=self.env, check=True)


def _pip() -> str:
    """A Python that has pip: this one, or the system's."""
    for python in (sys.executable, "python3", "/usr/bin/python3"):
        found = shutil.which(python)
        asked = found and subprocess.run([found, "-m", "pip", "--version"], capture_output=True, check=False)
        if found and asked and asked.returncode == 0:
            return found
    sys.exit("No Python with pip was found; install python3-pip.")


def main() -> None:
    """Build in a temporary folder, ask, and say what was left out."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="ferry-image-") as folder:
        build = Build(Path(folder))
        build.run()
        for question in QUESTIONS:
            build.ask(question)
    for command in build.skipped:
        sys.stdout.write(f"skipped, needs root on Debian: {command}\n")
    sys.stdout.write("The other steps of the Dockerfile were carried out, and what they made runs.\n")


if __name__ == "__main__":
    main()
