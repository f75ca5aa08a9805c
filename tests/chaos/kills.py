"""Kills `dvc repro` at random moments and looks whether the pipeline ends as if nothing had happened.

`python -m tests.chaos.kills --kills 100` prints a summary, writes the figures to benchmarks/results/chaos.json and
exits with 1 unless every ending equals the undisturbed one. `make chaos` calls it.
"""

import argparse
import random
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import write_figures
from stm.progress import say
from tests.chaos.picture import differences, picture
from tests.chaos.project import Ended, WarmDvc, clear, make_project, warm_dvc
from tests.fault_server import fault_server
from tests.own_project import answer

FIGURES = Path("benchmarks/results/chaos.json")
SEED = 20260101
KILLS_PER_ENDING = 15  # about so many kills fall on the way to one ending


@dataclass(frozen=True)
class Ground:
    """A finished project, what it holds, and how long the undisturbed run took."""

    dvc: WarmDvc
    folder: Path
    expected: dict[str, str]
    seconds: float


@dataclass
class Tally:
    """What happened; an ending is a run that came through, `other` holds what differed in it."""

    kills: int = 0
    endings: int = 0
    other: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    stages: Counter[str] = field(default_factory=Counter)

    @property
    def is_clean(self) -> bool:
        """Whether every ending was the undisturbed one, and whatever refused to go on said so clearly."""
        return not self.other and not self.tracebacks

    def line(self) -> str:
        """The result in one line."""
        return (
            f"{self.kills} kills, {self.endings} endings compared, {len(self.other)} differing files or entries, "
            f"{len(self.tracebacks)} tracebacks, {len(self.refusals)} clear refusals"
        )


def last_stage(log: str) -> str:
    """The stage that dvc had announced last, without its instance."""
    found = re.findall(r"Running stage '([^'@]+)", log)
    return found[-1] if found else "between the stages"


def heal(folder: Path, ended: Ended) -> str:
    """Do what docs/operations.md says where dvc itself cannot go on; empty where it says nothing."""
    if "rwlock" in ended.log:
        (folder / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
        return "rwlock removed"
    if "dvc.lock" in ended.log:
        (folder / "dvc.lock").unlink(missing_ok=True)
        return "dvc.lock removed"
    return ""


def settle(ground: Ground, ended: Ended, tally: Tally) -> bool:
    """Judge a run that was not killed: it came through (True), or refused in words that name the next step."""
    if ended.code == 0:
        tally.endings += 1
        tally.other += differences(ground.expected, picture(ground.folder))
        say(f"  {tally.line()}")
        return True
    if ended.has_traceback:
        tally.tracebacks.append(ended.log[-2000:])
    tally.refusals.append(f"{heal(ground.folder, ended) or 'no remedy'}: {' '.join(ended.log.split())[-300:]}")
    return False


def lay_ground(dvc: WarmDvc, scratch: Path, url: str) -> Ground:
    """Make the project and run it undisturbed."""
    folder = make_project(scratch / "project", url)
    dvc.run(folder, "version")  # answers once everything is imported
    started = time.monotonic()
    ended = dvc.run(folder, "repro")
    seconds = round(time.monotonic() - started, 1)
    if ended.code:
        raise RuntimeError(f"the undisturbed run failed:\n{ended.log[-3000:]}")
    return Ground(dvc, folder, picture(folder), seconds)


def disturb(ground: Ground, kills: int, seed: int = SEED) -> Tally:
    """Kill `kills` times; every ending on the way and the last one are compared with the undisturbed one.

    The time to a kill is exponential, as that of accidents is: most come early, and some late enough to let the
    longest stage through.
    """
    rng, tally = random.Random(seed), Tally()
    clear(ground.folder)
    while tally.kills < kills and len(tally.refusals) <= kills:
        wait = rng.expovariate(KILLS_PER_ENDING / ground.seconds)
        ended = ground.dvc.run(ground.folder, "repro", kill_after=wait)
        if ended.is_killed:
            tally.kills += 1
            tally.stages[last_stage(ended.log)] += 1
            if not tally.kills % 10:
                say(f"  {tally.line()}")
        elif settle(ground, ended, tally):
            clear(ground.folder)
    while not settle(ground, ground.dvc.run(ground.folder, "repro"), tally):
        if len(tally.refusals) > kills:
            break
    return tally


def main() -> None:
    """Run, print the summary, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, fault_server(answer=answer) as server, warm_dvc(Path(name)) as dvc:
        started = time.monotonic()
        ground = lay_ground(dvc, Path(name), server.base_url)
        tally = disturb(ground, given.kills, given.seed)
    figures = vars(tally) | {"stages": dict(tally.stages), "undisturbed_seconds": ground.seconds}
    figures["seconds"] = round(time.monotonic() - started, 1)
    write_figures(FIGURES, ("dvc", "mlflow", "torch"), {"kills": given.kills, "seed": given.seed}, **figures)
    for stage, count in tally.stages.most_common():
        say(f"  {count:4} kills in {stage}")
    for text in (*tally.other, *tally.refusals, *tally.tracebacks):
        say(f"  {text}")
    say(tally.line())
    sys.exit(0 if tally.is_clean else 1)


if __name__ == "__main__":
    main()
