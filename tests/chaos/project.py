"""The small project that is disturbed, and the warm process that runs `dvc repro` in it."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.closure import ROOT, is_code, stage_body
from tests.own_project import own_params, write_sources

# One thread each: numbers are then the same on any machine, and a fork inherits no thread pool.
QUIET = {
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "POLARS_MAX_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false", "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true", "STM_ACTOR": "Ada",
}  # fmt: skip
COPIED = ("stages", "stm", "data", "models", "reports", "requirements.lock", ".dvcignore", ".gitignore")
GIT = ("git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "core.excludesFile=")
UNUSED = ("notes", "forum")  # experts whose evaluation adds time and nothing new
RESULTS = ("data", "models", "reports")


def copy_tracked(folder: Path, *names: str) -> None:
    """Copy what git tracks of these files and folders of the repository, empty folders' markers too."""
    tracked = subprocess.run(["git", "ls-files", "-z", *names], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in tracked.stdout.split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)


def make_project(folder: Path, base_url: str) -> Path:
    """Write the pipeline's code, a user's sources and params for a pico model into a new repository."""
    copy_tracked(folder, *COPIED)
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph_without_code(), sort_keys=False, width=1000))
    write_sources(folder / "own")
    params = own_params(base_url)
    params["models"] = {name: row for name, row in params["models"].items() if name not in UNUSED}
    params["promote"]["gates"]["comparisons"]["best_expert"]["against"] = ["web"]  # the one that is evaluated
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    subprocess.run([*GIT, "init", "-q"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=folder, check=True, env=os.environ | QUIET)
    with (folder / ".dvc" / "config").open("a") as stream:
        stream.write("[core]\n    analytics = false\n    check_update = false\n    remote = local\n")
        stream.write("['remote \"local\"']\n    url = ../.dvc-remote\n")
    subprocess.run([*GIT, "add", "-A"], cwd=folder, check=True)
    subprocess.run([*GIT, "commit", "-qm", "start"], cwd=folder, check=True)
    return folder


def clear(folder: Path) -> None:
    """Back to the sources: everything that was made goes, DVC's cache too, so that there is work again."""
    subprocess.run([*GIT, "checkout", "-q", "."], cwd=folder, check=True)
    subprocess.run([*GIT, "clean", "-fdxq"], cwd=folder, check=True)


def graph_without_code() -> dict[str, Any]:
    """The shipped graph with data deps alone: the code does not change here, and DVC's lock file is written sooner."""
    graph: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for stage in graph["stages"].values():
        body = stage_body(stage)
        body["deps"] = [dep for dep in body.get("deps", []) if not is_code(dep)]
    return graph


@dataclass(frozen=True)
class Ended:
    """How a run of dvc ended; `code` is negative where a signal ended it."""

    code: int
    log: str

    @property
    def is_killed(self) -> bool:
        """Whether the kill came before the end."""
        return self.code == -signal.SIGKILL

    @property
    def has_traceback(self) -> bool:
        """Whether anything but a message reached the user."""
        return "Traceback (most recent call last)" in self.log


class WarmDvc:
    """Runs dvc in forks of one warm process."""

    def __init__(self, process: "subprocess.Popen[bytes]", scratch: Path) -> None:
        self._process, self._log = process, scratch / "dvc.log"
        self._out = process.stdout.fileno()
        self._rest = b""

    def run(self, folder: Path, *arguments: str, kill_after: float | None = None) -> Ended:
        """Run `dvc ARGUMENTS`; after `kill_after` seconds its whole process group is killed, unless it has ended."""
        order = {"folder": str(folder), "arguments": list(arguments), "log": str(self._log)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        group = int(self._line(None) or b"")
        answer = self._line(kill_after)
        if answer is None:
            os.killpg(group, signal.SIGKILL)
            answer = self._line(None)
        return Ended(int(answer or b""), self._log.read_text(errors="replace"))

    def _line(self, seconds: float | None) -> bytes | None:
        """The next line of the warm process, or None if it does not come in time."""
        while b"\n" not in self._rest:
            if not select.select([self._out], [], [], seconds)[0]:
                return None
            read = os.read(self._out, 4096)
            if not read:
                raise RuntimeError("the warm process has ended; its stderr says why")
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\n")
        return line


@contextmanager
def warm_dvc(scratch: Path) -> Iterator[WarmDvc]:
    """Start the warm process, and end it with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.warm"], cwd=ROOT, env=os.environ | QUIET,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield WarmDvc(process, scratch)
    finally:
        process.stdin.close()  # it ends with the last line
        process.wait(60)
