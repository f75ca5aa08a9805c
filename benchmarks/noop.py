"""How long `dvc repro` takes to say that nothing changed, with few and with many experts.

Both projects have the shipped graph and code; their outputs are small files that DVC has taken for results, since what
a stage has written plays no part here. Measured in turn, as CPU seconds of the whole command, which other loads of the
machine disturb less than the clock. `python -m benchmarks.noop`
"""

import argparse
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.figures import spread, write_figures
from stm.progress import say
from tests.chaos.project import COPIED, copy_tracked
from tests.closure import ROOT

FIGURES = Path("benchmarks/results/noop.json")
QUIET = {"DVC_NO_ANALYTICS": "1"}


def with_experts(count: int) -> dict[str, Any]:
    """The shipped params with `count` experts, the additional ones as further rows of the table."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    rows = list(params["experts"].items())
    for number in range(count - len(rows)):
        name, row = rows[number % len(rows)]
        params["experts"][f"{name}-{number}"] = row
    return params


def make_project(folder: Path, experts: int) -> Path:
    """A repository whose stages all have results, small ones, and a lock file that holds them."""
    copy_tracked(folder, *COPIED, "dvc.yaml")
    (folder / "params.yaml").write_text(yaml.safe_dump(with_experts(experts), sort_keys=False), encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=folder, check=True, env=os.environ | QUIET)
    take_for_results(folder)
    return folder


def take_for_results(folder: Path) -> None:
    """Write every output and the lock file at once; `dvc commit` would write that file anew for each stage."""
    from dvc.repo import Repo
    from dvc.stage.serialize import to_lockfile

    lock: dict[str, Any] = {"schema": "2.0", "stages": {}}
    with contextlib.chdir(folder), Repo() as repo, repo.lock:
        stages = sorted(repo.index.stages, key=lambda stage: str(stage.addressing))
        deps = [Path(dep.fs_path) for stage in stages for dep in stage.deps if dep.protocol == "local"]
        for path in [Path(out.fs_path) for stage in stages for out in stage.outs] + deps:
            if not path.exists():  # a dep may be a part of an output
                target = path if path.suffix else path / "weights.bin"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(path.name, encoding="utf-8")
        for stage in stages:
            stage.save()
            stage.commit()
            lock["stages"].update(to_lockfile(stage))
    plain = yaml.safe_load(yaml.dump(lock["stages"], Dumper=_Plain)) if lock["stages"] else {}
    (folder / "dvc.lock").write_text(yaml.safe_dump({**lock, "stages": plain}, sort_keys=False), encoding="utf-8")


class _Plain(yaml.SafeDumper):
    """Writes ordered mappings of DVC's as plain ones."""


_Plain.add_multi_representer(dict, lambda dumper, value: dumper.represent_dict(dict(value)))


def time_noop(folder: Path) -> tuple[float, float]:
    """CPU seconds and seconds of one `dvc repro` that has nothing to do; `RuntimeError` if it did something."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "dvc", "repro"]
    done = subprocess.run(command, cwd=folder, env=os.environ | QUIET, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode or "Data and pipelines are up to date" not in done.stdout + done.stderr:
        raise RuntimeError((done.stdout + done.stderr)[-2000:])
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, seconds


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 100])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    times: dict[int, list[tuple[float, float]]] = {count: [] for count in given.experts}
    lines = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {count: make_project(Path(scratch) / str(count), count) for count in given.experts}
        for count, folder in folders.items():
            lines[count] = len((folder / "dvc.lock").read_text(encoding="utf-8").splitlines())
            time_noop(folder)  # fills DVC's own state
        for _ in range(given.repeats):
            for count, folder in folders.items():
                times[count].append(time_noop(folder))
    results: dict[str, dict[str, Any]] = {
        str(count): {
            "cpu_seconds": spread([cpu for cpu, _ in pairs]), "seconds": spread([wall for _, wall in pairs]),
            "lock_lines": lines[count],
        }
        for count, pairs in times.items()
    }  # fmt: skip
    first, last = (results[str(count)]["cpu_seconds"]["median"] for count in (given.experts[0], given.experts[-1]))
    write_figures(FIGURES, ("dvc", "ruamel.yaml"), vars(given), experts=results, cpu_ratio=round(last / first, 2))
    for count, figures in results.items():
        cpu, wall = figures["cpu_seconds"]["median"], figures["seconds"]["median"]
        say(f"{count} experts: {cpu:.1f} s CPU, {wall:.1f} s, dvc.lock of {figures['lock_lines']} lines")
    say(f"ratio {last / first:.2f}")


if __name__ == "__main__":
    main()
