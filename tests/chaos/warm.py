"""Runs `dvc repro` with its stages in forks of one process that has imported everything already.

Importing torch anew in each of two dozen stages would take minutes. What is replaced is only how a stage's command
starts: instead of `python -m stages.NAME`, a fork of the dvc process runs the same module, in dvc's process group, so
that a kill of the group takes both. Reads one JSON object per line on stdin (`folder`, `arguments`, `log`), answers
with the pid of dvc, which leads its group, and later with its exit code.
"""

import json
import os
import runpy
import shlex
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import Any

IMPORTED = (
    "dvc.cli", "dvc.commands.repro", "dvc.repo", "dvc.stage.run", "dvc.repo.reproduce", "dvc_data.index", "torch",
    "transformers", "sentence_transformers", "peft", "mteb", "mteb.results", "mlflow", "mlflow.sentence_transformers",
    "optuna", "polars", "openai", "datasets", "matplotlib.figure", "gepa", "bm25s", "scipy.stats",
    "mergekit.merge_methods", "cma", "pyarrow.parquet", "jinja2", "sqlalchemy.dialects.sqlite", "alembic",
)  # fmt: skip


def run_command(executable: str | None, command: str, **settings: Any) -> None:
    """Stand in for dvc's own `_run`: the same module, folder and environment, in a fork instead of a new process."""
    from dvc.stage.exceptions import StageCmdFailedError

    words = shlex.split(command)
    if words[:2] != ["python", "-m"]:
        raise ValueError(f"only `python -m MODULE` is known here, not {command!r}")
    pid = os.fork()
    if not pid:
        _in_child(lambda: _run_module(words[2], words[3:], settings))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise StageCmdFailedError(command, code)


def _run_module(module: str, arguments: list[str], settings: dict[str, Any]) -> int:
    os.chdir(settings["cwd"])
    os.environ.clear()
    os.environ.update(settings["env"])
    sys.argv = [module, *arguments]
    sys.path.insert(0, os.getcwd())
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _in_child(action: Callable[[], int]) -> None:
    """Run an action in a fork and end the fork; nothing of the parent's clean-up is run."""
    code = 1
    try:
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _repro(order: dict[str, Any]) -> int:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(order["folder"])
    import dvc.cli
    import dvc.stage.run

    dvc.stage.run._run = run_command
    return int(dvc.cli.main(order["arguments"]))


def main() -> None:
    """Import everything, then serve."""
    for name in IMPORTED:
        import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _in_child(lambda line=line: _repro(json.loads(line)))  # type: ignore[misc]
        os.setpgid(pid, pid)  # before anybody can want to kill the group
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()
    os._exit(0)  # without the exit handlers of everything that was imported


if __name__ == "__main__":
    main()
