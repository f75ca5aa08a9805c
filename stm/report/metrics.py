"""The figures that `dvc metrics` and `dvc plots` show, what stands behind them, and flat CSV files for the plots.

Takes the analysis and the training reports and returns plain data and text; the numbers are those of the page.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stm.metrics import METRICS, NDCG
from stm.report.collect import Reports, dig, entries, is_number
from stm.report.compare import Analysis

DECIMALS = 6
HALVES = ("search", "holdout")  # of the dev queries, as reports/merge.json names them


def metrics_json(analysis: Analysis) -> dict[str, Any]:
    """Return scores per model and task, and averages."""
    table = analysis.table
    return {
        model.name: {
            "tasks": {task.name: _metrics(analysis, column, [number]) for number, task in enumerate(table.tasks)},
            "averages": _averages(analysis, column),
        }
        for column, model in enumerate(table.models)
    }


def comparisons_json(analysis: Analysis) -> dict[str, Any]:
    """Return the subject's differences on the average over all tasks from every other model, with their intervals."""
    return {
        row.model.name: {
            "difference": round(row.comparison.difference, DECIMALS), "low": round(row.comparison.low, DECIMALS),
            "high": round(row.comparison.high, DECIMALS), "p_value": round(row.comparison.p_value, DECIMALS),
            "p_holm": round(row.p_holm, DECIMALS), "effect": round(row.comparison.effect, DECIMALS),
        }
        for row in analysis.tested["all"]
    }  # fmt: skip


def dev_json(reports: Reports) -> dict[str, Any]:
    """Return nDCG@10 on dev tasks, by which experiments may be chosen: of the merge that was taken, on the half that
    its search saw and on the other, and of each training in `select`.
    """
    taken, select = dig(reports.merge, "decision", "taken", default={}), reports.select
    merged = {half: dig(taken, half) for half in HALVES}
    trained = {name: dig(row, "mean") for name, row in entries(select, "experts")}
    trained[str(dig(select, "baseline", "name", default="all"))] = dig(select, "baseline", "mean")
    return {kind: {name: round(value, DECIMALS) for name, value in found.items() if is_number(value)}
            for kind, found in (("merge", merged), ("select", trained))}  # fmt: skip


def hub_json(analysis: Analysis | None) -> dict[str, Any]:
    """Return the averages of each model over mteb's own tasks; nothing where none ran."""
    if analysis is None:
        return {}
    return {model.name: _averages(analysis, column) for column, model in enumerate(analysis.table.models)}


def _averages(analysis: Analysis, column: int) -> dict[str, dict[str, float]]:
    return {scope: _metrics(analysis, column, tasks) for scope, tasks in analysis.table.scopes.items()}


def _metrics(analysis: Analysis, column: int, tasks: Sequence[int]) -> dict[str, float]:
    return {
        metric: round(float(analysis.table.task_means(metric)[list(tasks), column].mean()), DECIMALS)
        for metric in METRICS
    }


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def scores_csv(analysis: Analysis, hub: Analysis | None) -> str:
    """Return a row per model and task or average: nDCG@10 with its interval; what is of mteb's own tasks is named so.

    In one file, since of a file without rows `dvc plots` shows an empty pane.
    """
    rows = [
        (model.name, source + scope, *(round(value, DECIMALS) for value in (row.mean, row.low, row.high)))
        for source, found in (("", analysis), ("mteb ", hub))
        for scope, intervals in (found.intervals.items() if found else ())
        for model, row in zip(found.table.models if found else (), intervals, strict=True)
    ]
    return _csv(("model", "task", NDCG, "low", "high"), rows)


def training_csv(losses: Mapping[str, Sequence[float]]) -> str:
    """Return a row per training and step: the loss."""
    rows = [
        (name, step, round(loss, DECIMALS)) for name, values in losses.items() for step, loss in enumerate(values, 1)
    ]
    return _csv(("training", "step", "loss"), rows)


def merge_csv(trials: Sequence[Any]) -> str:
    """Return a row per trial of the merge search: scores on both halves and the best so far."""
    best, rows = float("-inf"), []
    for number, trial in enumerate(trials, 1):
        if is_number(dig(trial, "search")):
            best = max(best, trial["search"])
            rows.append((number, trial.get("method", ""), trial["search"], trial.get("holdout", ""), best))
    return _csv(("trial", "method", "search", "holdout", "best"), rows)
