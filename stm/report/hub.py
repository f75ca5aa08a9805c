"""What the report says of mteb's own tasks: the same table and tests as for the pipeline's tasks, and never one average
with them.

Takes the evaluation reports; a task that was run in several splits or languages is one column, as in mteb's tables, and
a task that could not be run is named with its reason.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.cluster.hierarchy import DisjointSet

from stm.metrics import METRICS, NDCG
from stm.params.report import ReportParams
from stm.report.collect import Reports, dig
from stm.report.compare import Analysis, analyse
from stm.report.scores import build_table, keep_shared, name_rerun
from stm.report.views import score_columns, score_rows

Row = Mapping[str, Any]


@dataclass(frozen=True)
class NotRun:
    """A task of mteb that these models could not be run on, with the reason."""

    task: str
    models: list[str]
    reason: str


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
    queries, passages = len(per_query[NDCG]), max(part["passages"] for part in parts)
    sizes = {"queries": queries, "full_queries": queries, "passages": passages, "full_passages": passages}
    joined = {**parts[0], **sizes, "per_query": per_query}
    same = [part.get("same_answers") for part in parts]
    return joined | {"same_answers": _join_same(parts) if all(isinstance(found, Mapping) for found in same) else None}


def _join_same(parts: Sequence[Row]) -> dict[str, str]:
    """Per query the first by id of those that ask for the same, in every part that holds both of a pair.

    A part alone does not decide: languages may number their queries apart (Belebele), and what one of them joins by
    chance would chain through the others.
    """
    answers = [{query_id: part["same_answers"].get(query_id, query_id) for query_id in part["per_query"][NDCG]}
               for part in parts]  # fmt: skip
    sets = DisjointSet(query_id for row in answers for query_id in row)
    for pair in sorted({pair for row in answers for pair in row.items() if pair[0] != pair[1]}):
        found = [[row[query_id] for query_id in pair] for row in answers if row.keys() >= set(pair)]
        if all(first == second for first, second in found):
            sets.merge(*pair)
    return {query_id: first for first, *others in map(sorted, sets.subsets()) for query_id in others}


def _weigh(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Scores per query of the mean over parts; see `join_parts`."""
    joined = dict.fromkeys(sorted({query_id for part in parts for query_id in part}), 0.0)
    for part in parts:
        for query_id, score in part.items():
            joined[query_id] += score * len(joined) / len(parts) / len(part)
    return joined


def hub_analysis(reports: Reports, params: ReportParams) -> Analysis | None:
    """Return the comparison on mteb's tasks that the report's subject and most models share, or None where the subject
    was run on none.
    """
    rows = {name: {**reports.evaluation[name], "tasks": tasks} for name, tasks in _tasks(reports).items() if tasks}
    if params.subject not in rows:
        return None
    return analyse(build_table(keep_shared(rows, params.subject), params.subject), params)


def _tasks(reports: Reports) -> dict[str, dict[str, Row]]:
    return {name: join_parts(dig(report, "hub", "tasks", default={})) for name, report in reports.evaluation.items()}


def hub_view(analysis: Analysis | None, reports: Reports) -> dict[str, Any]:
    """Return columns and rows of the table, empty without an analysis, and what is not in it."""
    found = not_run(reports)
    concerned = {model: reports.evaluation[model] for row in found for model in row.models}
    missing = {"not_run": [_describe(row, reports) for row in found], "again": name_rerun(concerned)}
    if analysis is None:
        return {"columns": [], "rows": [], "left_out": {}, "unshared": [], **missing}
    shown = {task.name for task in analysis.table.tasks}
    return {
        "columns": score_columns(analysis), "rows": score_rows(analysis), "left_out": analysis.table.left_out,
        "unshared": sorted(_tasks(reports)[analysis.subject.name].keys() - shown), **missing,
    }  # fmt: skip


def _describe(row: NotRun, reports: Reports) -> str:
    asked = [name for name, report in sorted(reports.evaluation.items()) if "hub" in report]
    models = "" if row.models == asked else f" for {', '.join(row.models)}"
    return f"{row.task} was not run{models}: {row.reason}"


def not_run(reports: Reports) -> list[NotRun]:
    """Return the tasks of mteb that some model could not be run on, by task and reason."""
    models: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, report in sorted(reports.evaluation.items()):
        for task, reason in dig(report, "hub", "not_run", default={}).items():
            models[task, str(reason)].append(name)
    return [NotRun(task, names, reason) for (task, reason), names in sorted(models.items())]
