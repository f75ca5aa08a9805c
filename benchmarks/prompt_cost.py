"""What one more instruction costs in prompt search: its queries, against encoding the passages again as well.

usage: python -m benchmarks.prompt_cost [--layers 12] [--queries 40] [--passages 120] [--instructions 3]

The dev tasks of params.yaml under these caps. Each instruction is scored twice: by the search's scorer, which encoded
the passages once, and by a scorer of its own; the scores must be equal.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment import build_base, build_data
from benchmarks.figures import spread, write_figures
from benchmarks.train_speed import TIMES, Clock, set_sizes
from stm.encode import Encoder
from stm.models import load_model
from stm.progress import say
from stm.prompts import read_prompts, render
from stm.search_prompts.halves import Item
from stm.search_prompts.scoring import Scorer
from stm.tasks import cap_task, read_tasks

VERBS = ("find", "retrieve", "select", "locate", "identify", "show", "return", "name")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times and scores of every instruction on both ways."""
    work = Path(options.work)
    build_data(options, work / "data")
    base = build_base(options, work / f"backbone-{options.layers}")
    tasks, template = read_tasks(work / "data/tasks/dev", "dev"), read_prompts(base).template
    tasks = [cap_task(task, options.queries, options.passages, 1) for task in tasks]
    items = [Item(task.name, query_id) for task in tasks for query_id in task.queries]
    encoder = Encoder(load_model(base))

    def open_scorer() -> Scorer:
        return Scorer(tasks, encoder, lambda text: render(template, text).query)

    kept = open_scorer()
    instructions = [f"Given a query, {verb} the passages that answer it" for verb in VERBS[: options.instructions]]
    once, again = [], []
    for text in instructions:
        clock = Clock()
        score = kept.mean(text, items)
        once.append(clock.read())
        clock = Clock()
        if open_scorer().mean(text, items) != score:
            raise SystemExit(f"the scores of {text!r} differ; the vectors of passages depend on the instruction")
        again.append(clock.read())
        say(f"prompt_cost: {text!r}: {score:.3f}, CPU {once[-1]['cpu']:.1f} s, anew {again[-1]['cpu']:.1f} s")
    results: dict[str, Any] = {"queries": len(items), "passages": kept.encoded_passages}
    for kind in TIMES:
        results[f"seconds_{kind}"] = spread([seconds[kind] for seconds in once])
        results[f"ratio_{kind}"] = spread([b[kind] / a[kind] for a, b in zip(once, again, strict=True)])
    results["ratio_of_characters"] = statistics.mean(kept.reencoding_ratio(text, items) for text in instructions)
    return results


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--queries", type=int, default=40, help="per task")
    parser.add_argument("--passages", type=int, default=120, help="per task, judged ones always")
    parser.add_argument("--instructions", type=int, default=3, choices=range(1, len(VERBS) + 1))
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as torch chooses")
    parser.add_argument("--work", default=".stm/bench/speed")
    parser.add_argument("--output", default="benchmarks/results/prompt_cost.json")
    options = parser.parse_args()
    set_sizes(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    results = measure(options)
    say(f"prompt_cost: encoding the passages again would cost {results['ratio_cpu']['median']:.1f} times as much")
    packages = ("torch", "transformers", "sentence-transformers")
    write_figures(options.output, packages, {**vars(options), "threads": torch.get_num_threads()}, **results)


if __name__ == "__main__":
    main()
