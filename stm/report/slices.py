"""Where a model is strong and where it is weak: scores by query length and by lexical overlap, and under changed queries.

Takes the aligned table, the tasks' texts and the robustness figures of the evaluations; returns rows and small charts. Every slice of every model is over
the same queries.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stm.report.charts import Span, bars, spans
from stm.report.compare import METRIC, Analysis
from stm.report.scores import ModelInfo
from stm.tasks import Task

Floats = npt.NDArray[np.float64]
WORD = re.compile(r"\w+", re.UNICODE)
LENGTHS = ((1, 2, "1 or 2 words"), (3, 6, "3 to 6 words"), (7, 15, "7 to 15 words"), (16, 10**9, "16 words and more"))
OVERLAPS = ((-1.0, 0.0, "no word in common"), (0.0, 0.34, "up to a third in common"), (0.34, 0.67, "up to two thirds"),
            (0.67, 1.0, "more than two thirds"))  # fmt: skip
LEAST = 10  # queries; a smaller slice is not shown


def words_of(text: str) -> set[str]:
    """Return the distinct words of a text in lower case."""
    return set(WORD.findall(text.lower()))


def overlap(query: str, passages: Sequence[str]) -> float:
    """Return the greatest share of the query's words that one of the passages holds, in [0, 1]."""
    asked = words_of(query)
    return max((len(asked & words_of(passage)) / len(asked) for passage in passages), default=0.0) if asked else 0.0


def shown_models(analysis: Analysis) -> list[ModelInfo]:
    """Return the subject and the strongest of each other kind."""
    rivals = [analysis.strongest((role,)) for role in ("expert", "all_data", "base", "lexical")]
    return [analysis.subject, *(model for model in rivals if model)]


def _features(analysis: Analysis, tasks: Mapping[str, Task]) -> tuple[Floats, Floats, Floats]:
    """Lengths [N], overlaps [N] and scores [N, models] over the queries of all tasks whose text is at hand."""
    lengths, overlaps, scores = [], [], []
    for number, info in enumerate(analysis.table.tasks):
        task = tasks.get(info.name)
        for row, query_id in enumerate(analysis.table.query_ids[number]) if task else ():
            query = task.queries.get(query_id, "") if task else ""
            positives = [key for key, gain in (task.qrels.get(query_id, {}) if task else {}).items() if gain > 0]
            texts = [task.corpus[key].full_text() for key in positives] if task else []
            lengths.append(len(WORD.findall(query)))
            overlaps.append(overlap(query, texts))
            scores.append(analysis.table.scores[METRIC][number][row])
    return np.array(lengths, dtype=float), np.array(overlaps), np.array(scores)


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
            is_in = (values_N >= low) & (values_N <= high) if bounds is LENGTHS else (values_N > low) & (values_N <= high)
            if is_in.sum() >= LEAST:
                means_M = scores_NM[is_in].mean(axis=0)
                cells = {model.label: float(means_M[analysis.table.position(model.name) or 0]) for model in models}
                chart = bars(cells, f"{title}: {label}, nDCG@10")
                rows.append({"label": label, "queries": int(is_in.sum()), "cells": cells, "chart": chart})
        groups.append({"title": title, "rows": rows})
    return [group for group in groups if group["rows"]]


def robustness_view(analysis: Analysis, evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what changed queries cost each model: the mean over tasks per kind, and its distance from "as it is"."""
    rows, kinds = [], []
    for model in analysis.table.models:
        found = evaluations[model.name].get("robustness")
        means = _means(found) if isinstance(found, Mapping) else {}
        if "as it is" in means:
            rows.append({"model": model, "means": means, "plain": means["as it is"]})
            kinds += [kind for kind in means if kind not in kinds]
    own = next((row for row in rows if row["model"] == analysis.subject), None)
    changes = [kind for kind in kinds if kind != "as it is"]
    losses = [Span(kind, own["means"][kind] - own["plain"], *_reach(own, kind)) for kind in changes if kind in own["means"]] if own else []
    title = f"Change of {analysis.subject.label}'s nDCG@10; the line spans the tasks"
    return {"rows": rows, "kinds": kinds, "chart": spans(losses, title, True), "title": title}


def _means(found: Mapping[str, Any]) -> dict[str, float]:
    return {}


def _reach(row: Mapping[str, Any], kind: str) -> tuple[float, float]:
    return 0.0, 0.0
