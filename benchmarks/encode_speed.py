"""Encoding the embedded test tasks against SentenceTransformer.encode with its defaults: time, vectors, top ten.

usage: python -m benchmarks.encode_speed [--model FOLDER | --layers 12] [--queries 40] [--passages 120] [--rounds 3]
         [--compile] [--profile]

Both sides encode the queries and passages of every task, in turns, with the same prompts; the first round is not
counted. The plain side loads the folder as any user would: in the type that it was saved in. Where the chip computes in
bfloat16, name a trained model: the vectors of an untrained decoder, which lie close together, amplify rounding.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from benchmarks.speed import (
    Clock,
    add_caps,
    base_and_tasks,
    compare_sides,
    count_weights,
    make_parser,
    product_rate,
    profile,
    read_options,
    write_results,
)
from stm.chip import compute_dtype, device
from stm.encode import Encoder
from stm.metrics import mean, ndcg_at_k, rank
from stm.models import load_model
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
    """Of both sides' vectors: the least cosine, what they share of the first ten passages, each side's nDCG@10."""
    cosines: list[float] = []
    shared: list[int] = []
    scores: dict[str, list[float]] = {"ours": [], "plain": []}
    for task in tasks:
        rows = [[normalise(side) for side in found[task.name]] for found in (ours, plain)]
        cosines += [float((a * b).sum(axis=1).min()) for a, b in zip(*rows, strict=True)]
        runs = [rank(q, p, list(task.queries), list(task.corpus), CUT) for q, p in rows]
        shared += [len(set(runs[0][query]) & set(runs[1][query])) for query in task.queries]
        for name, run in zip(scores, runs, strict=True):
            scores[name].append(mean(ndcg_at_k(task.qrels, run, CUT, ignore_identical_ids=task.ignores_identical_ids)))
    return {
        "least_cosine": min(cosines), "queries": len(shared),
        "queries_with_the_same_top_10": shared.count(CUT), "top_10_shared": sum(shared) / len(shared) / CUT,
        "ndcg_at_10": {name: sum(found) / len(found) for name, found in scores.items()},
    }  # fmt: skip


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, in turns."""
    base, tasks = base_and_tasks(options, "test")
    base = options.model or base
    model, encoder = SentenceTransformer(str(base), device=str(device())), Encoder(load_model(base))
    sides: dict[str, Callable[[], Vectors]] = {
        "plain": lambda: encode_all(tasks, model.encode_query, model.encode_document),
        "ours": lambda: encode_all(tasks, encoder.encode_queries, encoder.encode_passages),
    }
    if options.compile:
        other = Encoder(load_model(base), compiled=True)
        sides["compiled"] = lambda: encode_all(tasks, other.encode_queries, other.encode_passages)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    vectors: dict[str, Vectors] = {}
    rates: list[dict[str, float]] = []
    weights = count_weights(model)
    for number in range(options.rounds + 1):
        for name, encode in sides.items():
            clock = Clock()
            vectors[name] = encode()
            seconds = clock.read()
            say(f"encode_speed: {name}, round {number}: {seconds['wall']:.1f} s, CPU {seconds['cpu']:.1f} s")
            times[name] += [seconds] if number else []
        rates += [product_rate(compute_dtype())] if number else []
    tokens = encoder.tokens / (options.rounds + 1)
    results: dict[str, Any] = {"tokens": tokens, **compare(tasks, vectors["ours"], vectors["plain"])}
    results |= compare_sides(times, rates, tokens, tokens * 2 * weights)  # of linear layers, without attention
    if options.compile:
        results["least_cosine_compiled"] = compare(tasks, vectors["compiled"], vectors["ours"])["least_cosine"]
    if options.profile:
        results["profile"] = {name: profile(encode) for name, encode in sides.items() if name != "plain"}
    return results


def main() -> None:
    """Run the benchmark."""
    parser = make_parser(__doc__, "encode_speed")
    add_caps(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="a third side: ours with compiled layers")
    parser.add_argument("--model", default="", help="a folder with a model instead of the untrained backbone")
    options = read_options(parser)
    results = measure(options)
    kind = "wall" if device().type == "cuda" else "cpu"  # a CPU that waits for a GPU spins
    ratio, same = results[f"ratio_{kind}"]["median"], results["queries_with_the_same_top_10"]
    used = results[f"fraction_of_rate_{kind}"]["median"]
    say(
        f"encode_speed: {ratio:.2f} times SentenceTransformer.encode by {kind} time; {used:.0%} of the rate of products"
    )
    say(f"  least cosine {results['least_cosine']:.6f}, the same top ten for {same} of {results['queries']} queries")
    ndcg = results["ndcg_at_10"]
    say(f"  {results['top_10_shared']:.1%} of the top ten shared, nDCG@10 {ndcg['ours']:.4f} and {ndcg['plain']:.4f}")
    write_results(options, results)


if __name__ == "__main__":
    main()
