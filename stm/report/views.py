"""What the page shows of the scores: the table, the comparisons, the task notes.

Takes the analysis and returns plain values that a template can print; decides what is shown, not how it looks.
"""

from typing import Any

from stm.metrics import RECALL
from stm.report.charts import Span, spans
from stm.report.compare import Analysis, Tested, count_of, percent, signed, why_blind
from stm.report.scores import TaskInfo


def task_note(task: TaskInfo) -> str:
    """Return the sizes of a task in words, and what they were before the caps."""
    queries = f"{task.queries:,}" + (f" of {task.full_queries:,}" if task.queries < task.full_queries else "")
    passages = f"{task.passages:,}" + (f" of {task.full_passages:,}" if task.passages < task.full_passages else "")
    return f"{'reduced task: ' if task.is_reduced else ''}{queries} queries, {passages} passages"


def score_columns(analysis: Analysis) -> list[dict[str, Any]]:
    """Return the columns of the score table: averages first, then tasks."""
    columns = [
        {"key": scope, "title": scope, "note": f"mean of {count_of(len(positions), 'task')}"}
        for scope, positions in analysis.table.scopes.items()
    ]
    tasks = analysis.table.tasks
    return columns + [{"key": task.name, "title": task.name, "note": f"{task.queries:,} queries"} for task in tasks]


def score_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """Return a row per model, best average first; a cell has score, interval, and whether it wins or differs."""
    order = sorted(range(len(analysis.table.models)), key=lambda index: -analysis.intervals["all"][index].mean)
    rows = []
    for index in order:
        model = analysis.table.models[index]
        cells = [_cell(analysis, column["key"], index) for column in score_columns(analysis)]
        rows.append({"model": model, "is_subject": model == analysis.subject, "cells": cells})
    return rows


def _cell(analysis: Analysis, scope: str, index: int) -> dict[str, Any]:
    model, interval = analysis.table.models[index], analysis.intervals[scope][index]
    mark = ""
    if model != analysis.subject and (row := analysis.against(scope, model.name)).is_significant:
        mark = "below" if row.comparison.difference > 0 else "above"
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "mark": mark,
            "is_best": index in analysis.winners[scope]}  # fmt: skip


def recall_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """Return Recall@10 per model and task, models in the order of `score_rows`."""
    means_TM = analysis.table.task_means(RECALL)
    rows = []
    for row in score_rows(analysis):
        index = analysis.table.column(row["model"].name)
        rows.append({**row, "mean": float(means_TM[:, index].mean()), "tasks": [float(x) for x in means_TM[:, index]]})
    return rows


def comparison_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """Return the subject against every other model on the average of all tasks, the strongest rival first."""
    rows = sorted(analysis.tested["all"], key=lambda row: row.comparison.difference)
    return [
        {"model": row.model, "c": row.comparison, "p": row.p_holm, "is_significant": row.is_significant} for row in rows
    ]


def charts(analysis: Analysis) -> dict[str, Any]:
    """Return the interval charts: all averages, and the differences from the subject.

    The untrained base is far below and would squeeze the differences that matter, so it is in the table alone.
    """
    rows = [(row["model"].label, row["cells"][0], row["is_subject"]) for row in score_rows(analysis)]
    own = [Span(label, cell["mean"], cell["low"], cell["high"], is_subject) for label, cell, is_subject in rows]
    gaps = [
        Span(row["model"].label, row["c"].difference, row["c"].low, row["c"].high, row["is_significant"])
        for row in comparison_rows(analysis)
        if row["model"].role != "base"
    ]
    level = percent(analysis.level)
    return {
        "averages": spans(own, f"Average nDCG@10 of each model with its {level} interval"),
        "gaps": spans(
            gaps, f"{analysis.subject.label} minus each other model, average nDCG@10, {level} interval", True
        ),
    }


def headline(analysis: Analysis) -> list[dict[str, str]]:
    """Return the figures at the top of the page: the subject's average, and its distance from each kind of rival, with
    a claim in words.
    """
    subject = analysis.subject
    own, level = analysis.interval("all", subject.name), percent(analysis.level)
    cards = [{"title": subject.label, "value": f"{own.mean:.3f}", "claim": "average nDCG@10", "rival": "",
              "note": f"{own.low:.3f} to {own.high:.3f} ({level})"}]  # fmt: skip
    kinds = {"base": "the backbone", "expert": "the best expert", "all_data": "training on all data",
             "merged": "the best merged model", "lexical": "BM25"}  # fmt: skip
    for role, title in kinds.items():
        rival = analysis.strongest(role)
        if rival:
            row = analysis.against("all", rival.name)
            c = row.comparison
            cards.append({
                "title": f"against {title}", "value": signed(c.difference), "claim": _claim(row, analysis),
                "note": f"{signed(c.low)} to {signed(c.high)} ({level})",
                "rival": f"{rival.label} scores {analysis.mean('all', rival.name):.3f}",
            })  # fmt: skip
    return cards


def _claim(row: Tested, analysis: Analysis) -> str:
    if not row.is_significant:
        return why_blind(analysis) or "no clear difference"
    return "better" if row.comparison.difference > 0 else "worse"
