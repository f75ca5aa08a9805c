"""Scores with and without the queries that the training candidates held too.

Takes the analysis and the report of `prepare`, which names those queries; returns what the page and statistics.json
show. The rows themselves were removed before training unless params say otherwise, so the two figures should agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stm.params.report import ReportParams
from stm.report.collect import Reports, dig
from stm.report.compare import Analysis, analyse
from stm.report.metrics import DECIMALS
from stm.report.scores import without_queries
from stm.report.views import score_rows


@dataclass(frozen=True)
class Cleaned:
    """The contaminated queries by task, and the analysis of the others; None where none is left."""

    queries: Mapping[str, list[str]]
    analysis: Analysis | None

    @property
    def count(self) -> int:
        """How many queries were left out."""
        return sum(map(len, self.queries.values()))


def clean_analysis(analysis: Analysis, reports: Reports, params: ReportParams) -> Cleaned:
    """Compare the models again without the contaminated queries; the same analysis where there are none."""
    table, found = analysis.table, {}
    for task, ids in zip(table.tasks, table.query_ids, strict=True):
        named = dig(reports.prepare, "tasks", "test", task.name, "contaminated_queries", default=[])
        known = set(named) if isinstance(named, list) else set()
        found[task.name] = [query_id for query_id in ids if query_id in known]
    if not any(found.values()):
        return Cleaned(found, analysis)
    rest = without_queries(table, found)
    if not rest.tasks:
        return Cleaned(found, None)
    return Cleaned(found, analyse(rest, params))


def contaminated_view(analysis: Analysis, cleaned: Cleaned) -> dict[str, Any]:
    """Return a row per model with its average over all and over the clean queries, and a row per touched task."""
    subject, rest = analysis.subject.name, cleaned.analysis
    tasks = [
        {"task": task.name, "queries": task.queries, "contaminated": len(cleaned.queries[task.name]),
         "whole": analysis.mean(task.name, subject),
         "clean": rest.mean(task.name, subject) if rest and task.name in rest.intervals else None}
        for task in analysis.table.tasks if cleaned.queries[task.name]
    ]  # fmt: skip
    models = []
    if rest and cleaned.count:
        models = [
            {**row, "whole": row["cells"][0], "clean": rest.interval("all", row["model"].name)}
            for row in score_rows(analysis)
        ]
    total = sum(task.queries for task in analysis.table.tasks)
    return {"count": cleaned.count, "total": total, "tasks": tasks, "models": models}


def contaminated_metrics(cleaned: Cleaned) -> dict[str, Any]:
    """Return the number of contaminated queries and every model's averages without them, for statistics.json."""
    analysis = cleaned.analysis
    if analysis is None:
        return {"queries": cleaned.count, "averages": {}}
    averages = {
        model.name: {scope: round(analysis.intervals[scope][column].mean, DECIMALS) for scope in analysis.table.scopes}
        for column, model in enumerate(analysis.table.models)
    }
    return {"queries": cleaned.count, "averages": averages}
