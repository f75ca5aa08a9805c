"""What the benchmarks of training, encoding and prompt search share: their options, their clock, their tasks.

All draw from the same data and backbone, made once under `--work`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment import build_base, build_data
from benchmarks.figures import write_figures
from stm.params.backbone import BackboneParams
from stm.params.base import load_section
from stm.tasks import Task, cap_task, read_tasks

TIMES = ("wall", "cpu")
PACKAGES = ("torch", "transformers", "peft", "sentence-transformers")


class Clock:
    """Seconds of wall and of this process's CPU time since it was made."""

    def __init__(self) -> None:
        self.started = (time.perf_counter(), time.process_time())

    def read(self) -> dict[str, float]:
        """Both times until now."""
        now = (time.perf_counter(), time.process_time())
        return dict(zip(TIMES, (b - a for a, b in zip(self.started, now, strict=True)), strict=True))


def make_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with the options that all have; the results go to a file of that name."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as torch chooses")
    parser.add_argument("--work", default=".stm/bench/speed")
    parser.add_argument("--output", default=f"benchmarks/results/{name}.json")
    return parser


def add_caps(parser: argparse.ArgumentParser) -> None:
    """The options that cap the tasks."""
    parser.add_argument("--queries", type=int, default=40, help="per task")
    parser.add_argument("--passages", type=int, default=120, help="per task, judged ones always")


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given, with the sizes of the common data, and torch at the threads asked for."""
    options = parser.parse_args()
    options.pairs, options.warm_up_pairs, options.max_queries, options.max_passages = 1500, 400, 60, 400
    options.max_tokens = load_section("backbone", BackboneParams, options.params).max_tokens
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def base_and_tasks(options: argparse.Namespace, part: str) -> tuple[Path, list[Task]]:
    """The backbone and the capped dev or test tasks."""
    work = Path(options.work)
    build_data(options, work / "data")
    base, tasks = build_base(options, work / f"backbone-{options.layers}"), read_tasks(work / "data/tasks" / part, part)
    return base, [cap_task(task, options.queries, options.passages, 1) for task in tasks]


def write_results(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """The figures with the options and the threads that torch had."""
    write_figures(options.output, PACKAGES, {**vars(options), "threads": torch.get_num_threads()}, **results)
