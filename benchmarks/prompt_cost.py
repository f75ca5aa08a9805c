"""What one more instruction costs in prompt search: its queries, against encoding the passages again as well.

usage: python -m benchmarks.prompt_cost [--layers 12] [--queries 40] [--passages 120] [--instructions 3]

The dev tasks of params.yaml under these caps. Each instruction is scored twice: by the search's scorer, which encoded
the passages once, and by a scorer of its own; the scores must be equal.
"""

import argparse
import statistics
from typing import Any

from benchmarks.figures import spread
from benchmarks.speed import TIMES, Clock, add_caps, base_and_tasks, make_parser, read_options, write_results
from stm.encode import Encoder
from stm.models import load_model
from stm.progress import say
from stm.prompts import read_prompts, render
from stm.search_prompts.halves import Item
from stm.search_prompts.scoring import Scorer

VERBS = ("find", "retrieve", "select", "locate", "identify", "show", "return", "name")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times and scores of every instruction on both ways."""
    base, tasks = base_and_tasks(options, "dev")
    template = read_prompts(base).template
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
    parser = make_parser(__doc__, "prompt_cost")
    add_caps(parser)
    parser.add_argument("--instructions", type=int, default=3, choices=range(1, len(VERBS) + 1))
    options = read_options(parser)
    results = measure(options)
    say(f"prompt_cost: encoding the passages again would cost {results['ratio_cpu']['median']:.1f} times as much")
    write_results(options, results)


if __name__ == "__main__":
    main()
