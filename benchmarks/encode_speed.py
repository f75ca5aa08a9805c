"""Encoding the embedded test tasks against SentenceTransformer.encode with its defaults: time, vectors, top ten.

usage: python -m benchmarks.encode_speed [--layers 12] [--queries 40] [--passages 120] [--rounds 3]

Both sides encode the queries and passages of every task, in turns, with the same prompts; the first round is not
counted. The plain side loads the folder as any user would: in the type that it was saved in.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.figures import spread
from benchmarks.speed import TIMES, Clock, add_caps, base_and_tasks, make_parser, read_options, write_results
from stm.encode import Encoder
from stm.metrics import rank
from stm.models import device, load_model
from stm.progress import say
from stm.tasks import Task

CUT = 10
Vectors = dict[str, Any]  # per task: rows of queries and of passages


def encode_all(tasks: Sequence[Task], queries: Callable[..., Any], passages: Callable[..., Any]) -> Vectors:
    """The vectors of every task's queries and passages."""
    return {
        task.name: (
            queries(list(task.queries.values())),
            passages([passage.full_text() for passage in task.corpus.values()]),
        )
        for task in tasks
    }


def normalise(rows: Any) -> Any:
    """Unit rows."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def compare(tasks: Sequence[Task], ours: Vectors, plain: Vectors) -> dict[str, Any]:
    """Least cosine between both sides' vectors, and the share of queries with the same first ten passages."""
    cosines, same, count = [], 0, 0
    for task in tasks:
        rows = [[normalise(side) for side in found[task.name]] for found in (ours, plain)]
        cosines += [float((a * b).sum(axis=1).min()) for a, b in zip(*rows, strict=True)]
        runs = [rank(q, p, list(task.queries), list(task.corpus), CUT) for q, p in rows]
        same += sum(set(runs[0][query]) == set(runs[1][query]) for query in task.queries)
        count += len(task.queries)
    return {"least_cosine": min(cosines), "queries": count, "queries_with_the_same_top_10": same}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, in turns."""
    base, tasks = base_and_tasks(options, "test")
    model, encoder = SentenceTransformer(str(base), device=str(device())), Encoder(load_model(base))
    sides: Mapping[str, Callable[[], Vectors]] = {
        "plain": lambda: encode_all(tasks, model.encode_query, model.encode_document),
        "ours": lambda: encode_all(tasks, encoder.encode_queries, encoder.encode_passages),
    }
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    vectors: dict[str, Vectors] = {}
    for number in range(options.rounds + 1):
        for name, encode in sides.items():
            clock = Clock()
            vectors[name] = encode()
            seconds = clock.read()
            say(f"encode_speed: {name}, round {number}: {seconds['wall']:.1f} s, CPU {seconds['cpu']:.1f} s")
            times[name] += [seconds] if number else []
    tokens = encoder.tokens / (options.rounds + 1)
    results: dict[str, Any] = {"tokens": tokens, **compare(tasks, vectors["ours"], vectors["plain"])}
    for kind in TIMES:
        for name, rounds in times.items():
            results[f"{name}_tokens_per_{kind}_second"] = spread([tokens / r[kind] for r in rounds])
        pairs = zip(times["plain"], times["ours"], strict=True)
        results[f"ratio_{kind}"] = spread([p[kind] / o[kind] for p, o in pairs])
    return results


def main() -> None:
    """Run the benchmark."""
    parser = make_parser(__doc__, "encode_speed")
    add_caps(parser)
    parser.add_argument("--rounds", type=int, default=3)
    options = read_options(parser)
    results = measure(options)
    kind = "wall" if device().type == "cuda" else "cpu"  # a CPU that waits for a GPU spins
    ratio, same = results[f"ratio_{kind}"]["median"], results["queries_with_the_same_top_10"]
    say(f"encode_speed: {ratio:.2f} times SentenceTransformer.encode by {kind} time")
    say(f"  least cosine {results['least_cosine']:.6f}, the same top ten for {same} of {results['queries']} queries")
    write_results(options, results)


if __name__ == "__main__":
    main()
