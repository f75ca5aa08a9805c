"""Evaluating ten models on ten embedded tasks, against ten plain mteb runs of the same models.

usage: python -m benchmarks.evaluate_models [--models 10] [--tasks 10] [--max-queries 40] [--max-passages 120]
[--layers 2] [--output FILE]

The models are the embedded backbone with that many layers and ten random adapters, so that all are of one size and
none is another. The tasks are the embedded test tasks, then dev tasks, reduced to the caps. Each side runs in a process
of its own: plain mteb with SentenceTransformer.encode and its defaults; this project without its embedding store; with
an empty store; and again, with the store that this left. Peak memory is that of the process; so is the processor time,
of all cores together, imports left out.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import make_parser, peak_megabytes, print_result, run_worker, write_figures
from stm.progress import say

SIDES = ("plain", "no_store", "cold_store", "warm_store")
PACKAGES = ("mteb", "sentence-transformers", "transformers", "torch", "peft")
STORE_MEGABYTES = 10_000


def prepare(folder: Path, models: int, tasks: int, caps: tuple[int, int], layers: int) -> None:
    """Write the backbone, the adapters and the tasks."""
    from stm.backbone import build_backbone
    from stm.params.backbone import BackboneParams
    from stm.params.base import load_section
    from stm.prepare.embedded import Corpora
    from stm.prepare.embedded_tasks import TASKS, build_task
    from stm.tasks import cap_task, write_task
    from tests.pico import pico_adapter

    params = load_section("backbone", BackboneParams)
    build_backbone(params.model_copy(update={"layers": layers}), folder / "backbone")
    for number in range(models):
        pico_adapter(folder / "backbone", folder / "models" / f"{number:02d}", rank=16, seed=number, scale=0.02)
    corpora, wanted = Corpora(), [(part, kind) for part in ("test", "dev") for kind in TASKS][:tasks]
    for part, kind in wanted:
        task = cap_task(build_task(corpora, f"{part}-{kind}", kind, part), *caps, 1)
        write_task(task, folder / "tasks" / task.name, "test")


def run_plain(model: Path, tasks: Path) -> dict[str, float]:
    """nDCG@10 per task of one model by plain mteb."""
    import mteb

    from stm.evaluate.record import read_local_tasks
    from stm.evaluate.tasks import LocalTask
    from stm.models import load_model

    loaded = [LocalTask(task, revision) for task, revision in read_local_tasks(tasks)]
    results = mteb.evaluate(load_model(model), loaded, co2_tracker=False, cache=None, show_progress_bar=False)
    return {r.task_name: float(r.scores["test"][0]["ndcg_at_10"]) for r in results.task_results}


def run_ours(model: Path, tasks: Path, store: int) -> dict[str, float]:
    """nDCG@10 per task of one model by this project, without the slices that plain mteb does not have."""
    from stm.evaluate.score import evaluate_folder
    from stm.params.evaluate import EvaluateParams, ModelEntry

    params = EvaluateParams(batch_tokens=0, store_megabytes=store, slice_queries=0)
    report, _ = evaluate_folder(model.name, model, ModelEntry(path=str(model)), params, tasks, [])
    return {name: row["ndcg_at_10"] for name, row in report["tasks"].items()}


def work(side: str, folder: Path) -> dict[str, Any]:
    """All models on all tasks in this process."""
    import mteb  # noqa: F401 - imports are not what is measured

    import stm.evaluate.score  # noqa: F401

    os.chdir(folder)  # the store lies in the current folder
    scores, started, cpu = {}, time.perf_counter(), time.process_time()
    for model in sorted((folder / "models").iterdir()):
        scores[model.name] = (
            run_plain(model, folder / "tasks")
            if side == "plain"
            else run_ours(model, folder / "tasks", 0 if side == "no_store" else STORE_MEGABYTES)
        )
    times = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    return {**times, "peak_mb": peak_megabytes(), "scores": scores}


def largest_difference(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The largest difference of a score between two sides."""
    return float(max(abs(score - second[model][task]) for model, row in first.items() for task, score in row.items()))


def main() -> None:
    """Run the benchmark, or one of its worker processes."""
    parser = make_parser(__doc__, "evaluate_models")
    for name, size in (("models", 10), ("tasks", 10), ("max-queries", 40), ("max-passages", 120), ("layers", 2)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print_result(work(options.worker, options.folder))
        return
    caps = (options.max_queries, options.max_passages)
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), options.models, options.tasks, caps, options.layers)
        name, where = "benchmarks.evaluate_models", ("--folder", scratch)
        results = {side: run_worker(name, "--worker", side, *where) for side in SIDES}
        sizes = {path.name: sum(1 for _ in (path / "corpus.jsonl").open()) for path in Path(scratch, "tasks").iterdir()}
    plain = results["plain"]
    for row in results.values():
        row["largest_difference_of_a_score"] = largest_difference(plain["scores"], row["scores"])
        for clock in ("seconds", "cpu_seconds"):
            row[f"{clock}_over_plain"] = row[clock] / plain[clock]
    for row in results.values():
        row.pop("scores")
    settings = {"models": options.models, "layers": options.layers, "max_queries": caps[0], "passages": sizes}
    write_figures(options.output, PACKAGES, settings, results=results)
    say("evaluate_models, processor time over plain: "
        + ", ".join(f"{side} {row['cpu_seconds_over_plain']:.3f}" for side, row in results.items()))  # fmt: skip


if __name__ == "__main__":
    main()
