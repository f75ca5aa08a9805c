"""What the report says of mteb's own tasks: the same table and tests as for the pipeline's tasks, and never one average
with them.

Takes the evaluation reports; a task that could not be run is named with its reason.
"""

from typing import Any

from stm.params.report import ReportParams
from stm.report.collect import Reports
from stm.report.compare import Analysis, analyse
from stm.report.scores import build_table
from stm.report.stages import dig
from stm.report.views import score_columns, score_rows


def hub_analysis(reports: Reports, params: ReportParams) -> Analysis | None:
    """Return the comparison on mteb's tasks, or None where the report's subject was run on none."""
    found = {name: dig(report, "hub", "tasks", default={}) for name, report in reports.evaluation.items()}
    rows = {name: {**reports.evaluation[name], "tasks": tasks} for name, tasks in found.items() if tasks}
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
