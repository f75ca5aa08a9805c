"""Score tables of several seeds in, figures out: averages with intervals, comparisons, and what each model gains where.

Used by `benchmarks.merge_seeds`. A table is `tables[model][part][task][query] = nDCG@10`, one per seed. Intervals: over
seeds (Student's t), and over queries (bootstrap of the scores averaged over seeds; each query by itself, though
some share answers: 60 of the lay terms ask for 55 on test, of the other embedded tasks at most one answer is shared).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stm.significance import resample, seed_interval

PARTS = ("dev", "test")
Tables = Mapping[str, Any]
START, SUM, EXPERT = "warm_up", "sum", "expert "
MERGED = ("merged", "learned", "uniform", "sum", "joined")


def average(rows: Mapping[str, Mapping[str, float]]) -> float:
    """Mean over tasks of the means over queries."""
    return float(np.mean([np.mean(list(queries.values())) for queries in rows.values()]))


def interval(values: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Mean and Student's t interval over seeds; no interval for one seed."""
    if len(values) < 2:
        return {"mean": float(np.mean(values)), "seeds": list(values)}
    found = seed_interval(values, level)
    return {"mean": found.mean, "low": found.low, "high": found.high, "seeds": list(values)}


def compare(tables: Sequence[Tables], part: str, subject: str) -> dict[str, Any]:
    """`subject` against every other model: its lead over seeds and, on scores averaged over seeds, over queries."""
    names = list(tables[0])
    strata = [
        np.mean([[[t[n][part][task][q] for n in names] for q in t[subject][part][task]] for t in tables], axis=0)
        for task in tables[0][subject][part]
    ]
    drawn = resample(strata, names.index(subject), 10_000, 7).comparisons(range(len(strata)), 0.95)
    rows = {}
    for name, found in zip(names, drawn, strict=True):
        if name != subject:
            over_seeds = interval([average(t[subject][part]) - average(t[name][part]) for t in tables])
            over_queries = {"mean": found.difference, "low": found.low, "high": found.high, "p": found.p_value}
            rows[name] = {"over_seeds": over_seeds, "over_queries": over_queries}
    return rows


def task_means(tables: Sequence[Tables], name: str, part: str) -> dict[str, float]:
    """One model's mean per task, over queries and then over seeds."""
    tasks = tables[0][name][part]
    return {task: float(np.mean([np.mean(list(t[name][part][task].values())) for t in tables])) for task in tasks}


def gains(tables: Sequence[Tables], part: str) -> dict[str, dict[str, float]]:
    """Per model and task the gain over the warm-up."""
    start = task_means(tables, START, part)
    return {
        name: {task: value - start[task] for task, value in task_means(tables, name, part).items()}
        for name in tables[0]
        if name != START
    }


def additivity(tables: Sequence[Tables], part: str) -> dict[str, Any]:
    """Per task the sum of the experts' gains beside the gain of the sum of their deltas, and how the two correlate."""
    found = gains(tables, part)
    alone = [row for name, row in found.items() if name.startswith(EXPERT)]
    rows = {t: {"sum_of_gains": sum(row[t] for row in alone), "gain_of_sum": found[SUM][t]} for t in found[SUM]}
    both = np.array([list(row.values()) for row in rows.values()])
    varies = len(both) > 1 and bool((both.std(axis=0) > 0).all())
    return {"tasks": rows, "pearson": float(np.corrcoef(both.T)[0, 1]) if varies else None}


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages with intervals, and the comparisons of every merged model and the best expert, per part."""
    tables = [result["tables"] for result in results]
    merged = [name for name in tables[0] if name.startswith(MERGED)]
    summary: dict[str, Any] = {}
    for part in PARTS:
        averages = {name: interval([average(t[name][part]) for t in tables]) for name in tables[0]}
        experts = [name for name in averages if name.startswith(EXPERT)]
        summary[part] = {
            "averages": averages,
            "best_expert": max(experts, key=lambda name: averages[name]["mean"]),
            "differences": {name: compare(tables, part, name) for name in merged},
            "gains": gains(tables, part), "additivity": additivity(tables, part),
        }  # fmt: skip
    return summary
