"""What the report says of mteb's own tasks: the same table and tests as for the pipeline's tasks, and never one average
with them.

Takes the evaluation reports; a task that was run in several splits or languages is one column, as in mteb's tables, and
a task that could not be run is named with its reason.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stm.params.report import ReportParams
from stm.report.collect import Reports
from stm.report.compare import Analysis, analyse
from stm.report.scores import METRICS, build_table
from stm.report.stages import dig
from stm.report.views import score_columns, score_rows

Row = Mapping[str, Any]


def join_parts(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Return one row per task of rows per task, split and subset; a task's score is the mean of its parts'.

    Its parts share queries (CUREv1's split "all" is the union of the others, its languages are translations), which
    must be drawn together in a resample. So a query's score becomes (N / P) * sum over its parts p of score_p / N_p,
    with N distinct queries, P parts and N_p queries of a part: the mean is that of the parts' means. A query of small
    parts can exceed 1, and intervals are a little wide, since resamples vary the sizes of the parts as well.
    """
    parts: dict[str, list[Row]] = {}
    for name, row in rows.items():
        parts.setdefault(str(row.get("task", name)), []).append(row)
    return {name: found[0] if len(found) == 1 else _join(found) for name, found in parts.items()}


def _join(parts: Sequence[Row]) -> Row:
    per_query = {metric: _weigh([part["per_query"][metric] for part in parts]) for metric in METRICS}
    queries, passages = len(per_query[METRICS[0]]), max(part["passages"] for part in parts)
    sizes = {"queries": queries, "full_queries": queries, "passages": passages, "full_passages": passages}
    return {**parts[0], **sizes, "per_query": per_query}


def _weigh(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Scores per query of the mean over parts; see `join_parts`."""
    joined = dict.fromkeys(sorted({query_id for part in parts for query_id in part}), 0.0)
    for part in parts:
        for query_id, score in part.items():
            joined[query_id] += score * len(joined) / len(parts) / len(part)
    return joined


def hub_analysis(reports: Reports, params: ReportParams) -> Analysis | None:
    """Return the comparison on mteb's tasks, or None where the report's subject was run on none."""
    found = {name: dig(report, "hub", "tasks", default={}) for name, report in reports.evaluation.items()}
    rows = {name: {**reports.evaluation[name], "tasks": join_parts(tasks)} for name, tasks in found.items() if tasks}
    if params.subject not in rows:
        return None
    return analyse(build_table(rows, params.subject), params.subject, params.level, params.resamples, params.seed)


def hub_view(analysis: Analysis | None) -> dict[str, Any]:
    """Return columns and rows of the table, empty without an analysis."""
    if analysis is None:
        return {"columns": [], "rows": [], "left_out": {}}
    return {"columns": score_columns(analysis), "rows": score_rows(analysis), "left_out": analysis.table.left_out}


def not_run(reports: Reports) -> list[tuple[str, str]]:
    """Return the tasks of mteb that some model could not be run on, with the reason."""
    reasons: dict[str, str] = {}
    for report in reports.evaluation.values():
        reasons.update(dig(report, "hub", "not_run", default={}))
    return sorted(reasons.items())
