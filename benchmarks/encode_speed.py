"""Encoding the embedded test tasks against SentenceTransformer.encode with its defaults: time, vectors, top ten.

usage: python -m benchmarks.encode_speed [--layers 12] [--queries 40] [--passages 120] [--rounds 3]

Both sides encode the queries and passages of every task, in turns, with the same prompts; the first round is not
counted. The plain side loads the folder as any user would: in the type that it was saved in, float32 here.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from benchmarks.experiment import build_base, build_data
from benchmarks.figures import spread, write_figures
from benchmarks.train_speed import TIMES, Clock, set_sizes
from stm.encode import Encoder
from stm.metrics import rank
from stm.models import load_model
from stm.progress import say
from stm.tasks import Task, cap_task, read_tasks

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
    work = Path(options.work)
    build_data(options, work / "data")
    base, tasks = build_base(options, work / f"backbone-{options.layers}"), read_tasks(work / "data/tasks/test", "test")
    tasks = [cap_task(task, options.queries, options.passages, 1) for task in tasks]
    model, encoder = SentenceTransformer(str(base), device="cpu"), Encoder(load_model(base))
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--queries", type=int, default=40, help="per task")
    parser.add_argument("--passages", type=int, default=120, help="per task, judged ones always")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as torch chooses")
    parser.add_argument("--work", default=".stm/bench/speed")
    parser.add_argument("--output", default="benchmarks/results/encode_speed.json")
    options = parser.parse_args()
    set_sizes(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    results = measure(options)
    ratio, same = results["ratio_cpu"]["median"], results["queries_with_the_same_top_10"]
    say(f"encode_speed: {ratio:.2f} times SentenceTransformer.encode by CPU time")
    say(f"  least cosine {results['least_cosine']:.6f}, the same top ten for {same} of {results['queries']} queries")
    packages = ("torch", "transformers", "sentence-transformers")
    write_figures(options.output, packages, {**vars(options), "threads": torch.get_num_threads()}, **results)


if __name__ == "__main__":
    main()
