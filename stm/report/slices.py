"""Where a model is strong and where it is weak: scores by query length and by lexical overlap, and under changed
queries.

Takes the aligned table, the tasks' texts and the robustness figures of the evaluations; returns rows and small
charts. Every slice of every model is over the same queries.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stm.metrics import NDCG
from stm.report.charts import Span, small_bars, spans
from stm.report.collect import numbers
from stm.report.compare import Analysis
from stm.report.scores import ModelInfo
from stm.tasks import Task
from stm.words import words_of

Floats = npt.NDArray[np.float64]
LENGTHS = ((0, 2, "1 or 2 words"), (2, 6, "3 to 6 words"), (6, 15, "7 to 15 words"), (15, 1e9, "16 words and more"))
OVERLAPS = ((-1.0, 0.0, "no word in common"), (0.0, 0.34, "up to a third in common"), (0.34, 0.67, "up to two thirds"),
            (0.67, 1.0, "more than two thirds"))  # fmt: skip
PLAIN = "as it is"  # the kind that the evaluation compares the others with
LEAST = 10  # queries; a smaller slice is not shown


def overlap(query: str, passages: Sequence[str]) -> float:
    """Return the greatest share of the query's distinct words that one of the passages holds, in [0, 1]."""
    asked = set(words_of(query))
    shares = (len(asked.intersection(words_of(passage))) / len(asked) for passage in passages)
    return max(shares, default=0.0) if asked else 0.0


def shown_models(analysis: Analysis) -> list[ModelInfo]:
    """Return the subject and the strongest of each other kind."""
    rivals = [analysis.strongest(role) for role in ("expert", "all_data", "merged", "base", "lexical")]
    return [analysis.subject, *(model for model in rivals if model)]


def _features(analysis: Analysis, tasks: Mapping[str, Task]) -> tuple[Floats, Floats, Floats]:
    """Lengths [N], overlaps [N] and scores [N, models] over the queries of all tasks whose text is at hand."""
    lengths: list[float] = []
    overlaps: list[float] = []
    scores = []
    for number, info in enumerate(analysis.table.tasks):
        if info.name not in tasks:
            continue
        task = tasks[info.name]
        for row, query_id in enumerate(analysis.table.query_ids[number]):
            query = task.queries.get(query_id, "")
            lengths.append(len(words_of(query)))
            overlaps.append(overlap(query, [task.corpus[key].full_text() for key in task.relevant(query_id)]))
            scores.append(analysis.table.scores[NDCG][number][row])
    return np.array(lengths), np.array(overlaps), np.array(scores)


def _draw(rows: list[dict[str, Any]], title: str, subject: str) -> list[dict[str, Any]]:
    """Give each slice its chart, all on one scale."""
    reach = max((value for row in rows for value in row["cells"].values()), default=0.0)
    for row in rows:
        row["chart"] = small_bars(row["cells"], f"{title}: {row['label']}, nDCG@10", reach, subject)
    return rows


def slice_view(analysis: Analysis, tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """Return the groups of slices, each with a chart and a table row per slice of at least `LEAST` queries."""
    lengths_N, overlaps_N, scores_NM = _features(analysis, tasks)
    models = shown_models(analysis)
    groups = []
    for title, values_N, bounds in (
        ("Length of the query", lengths_N, LENGTHS),
        ("Words that the query shares with its answer", overlaps_N, OVERLAPS),
    ):
        rows = []
        for low, high, label in bounds:
            is_in = (values_N > low) & (values_N <= high)
            if is_in.sum() >= LEAST:
                means_M = scores_NM[is_in].mean(axis=0)
                cells = {model.label: float(means_M[analysis.table.column(model.name)]) for model in models}
                rows.append({"label": label, "queries": int(is_in.sum()), "cells": cells})
        groups.append({"title": title, "rows": _draw(rows, title, analysis.subject.label)})
    return [group for group in groups if group["rows"]]


def _changes(found: Any) -> dict[str, dict[str, float]]:
    """Per kind of change and task: nDCG@10 minus that of the same queries as they are."""
    if not isinstance(found, Mapping) or PLAIN not in found:
        return {}
    plain = numbers(found[PLAIN])
    kinds = [(str(kind), numbers(scores)) for kind, scores in found.items() if kind != PLAIN]
    return {kind: {task: value - plain[task] for task, value in row.items() if task in plain} for kind, row in kinds}


def _means(changes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The means over tasks by kind of change."""
    return {kind: sum(row.values()) / len(row) for kind, row in sorted(changes.items()) if row}


def robustness_view(analysis: Analysis, evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what changed queries cost each model, as means over tasks, and a chart for the subject."""
    by_model = {model: _changes(evaluations[model.name].get("robustness")) for model in analysis.table.models}
    rows = [{"model": model, "means": _means(changes)} for model, changes in by_model.items() if changes]
    own = by_model[analysis.subject]
    kinds = sorted({kind for changes in by_model.values() for kind in changes})
    title = f"Change of nDCG@10 of {analysis.subject.label}: mean over tasks, the line from the worst to the best task"
    drawn = [Span(kind, mean, min(own[kind].values()), max(own[kind].values())) for kind, mean in _means(own).items()]
    return {"rows": rows, "kinds": kinds, "chart": spans(drawn, title, zero=True), "title": title}
