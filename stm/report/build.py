"""Puts the report together: from the stages' reports to the figures, the page and a summary in words.

Reads no files itself and writes none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm.params.base import MERGED
from stm.params.report import ReportParams
from stm.report import metrics, stages, views
from stm.report.card import EMPTY_CARD, model_card
from stm.report.cautions import cautions
from stm.report.collect import Reports
from stm.report.compare import OPPONENTS, Analysis, analyse, count_of, percent, verdict
from stm.report.contaminated import Cleaned, clean_analysis, contaminated_metrics, contaminated_view
from stm.report.failures import find_failures
from stm.report.graph import draw_graph, stage_states
from stm.report.hub import hub_analysis, hub_view, not_run
from stm.report.negatives import negatives_view
from stm.report.render import render_page
from stm.report.scores import build_table
from stm.report.seeds import seed_differences, seed_metrics, seed_rows
from stm.report.slices import robustness_view, slice_view
from stm.tasks import Task

Found = tuple[Analysis, Cleaned, Analysis | None]


@dataclass(frozen=True)
class Built:
    """The report: metrics for DVC, the page, the model card, CSV files for plots by name, and the summary's lines."""

    metrics: dict[str, Any]
    statistics: dict[str, Any]
    page: str
    card: str
    plots: dict[str, str]
    summary: list[str]


def build_report(reports: Reports, tasks: Mapping[str, Task], params: ReportParams) -> Built:
    """Build everything; `tasks` holds the test tasks' texts for the failures, and may be empty."""
    found = analysis, cleaned, hub = _analyse_all(reports, params)
    plots = {
        "scores.csv": metrics.scores_csv(analysis, hub),
        "training.csv": metrics.training_csv(stages.losses(reports)),
        "merge.csv": metrics.merge_csv(reports.merge.get("trials", [])),
    }
    page = render_page({
        **_score_views(analysis, params), **_query_views(analysis, reports, tasks, params),
        **_further_scores(analysis, cleaned, hub, reports), **_stage_views(reports, params),
    })  # fmt: skip
    figures = {
        "models": metrics.metrics_json(analysis), "hub": metrics.hub_json(hub), "dev": metrics.dev_json(reports),
    }  # fmt: skip
    statistics = {
        "subject": analysis.subject.name, "comparisons": metrics.comparisons_json(analysis),
        "seeds": seed_metrics(analysis), "without_contaminated": contaminated_metrics(cleaned),
    }  # fmt: skip
    return Built(figures, statistics, page, _card(reports, params, found), plots, summarise(analysis))


def _analyse_all(reports: Reports, params: ReportParams) -> Found:
    """What the scores of the subject say: on all queries, without the contaminated ones, and on mteb's tasks."""
    analysis = analyse(build_table(reports.evaluation, params.subject), params)
    return analysis, clean_analysis(analysis, reports, params), hub_analysis(reports, params)


def _is_merged(row: Mapping[str, Any]) -> bool:
    return Path(str(row.get("path"))).as_posix() == MERGED


def _card(reports: Reports, params: ReportParams, found: Found) -> str:
    """The card of the merged model, whichever model the report's subject is."""
    merged = [name for name, row in sorted(reports.evaluation.items()) if _is_merged(row) and row["tasks"]]
    if not merged:
        return EMPTY_CARD
    if params.subject not in merged:
        found = _analyse_all(reports, params.model_copy(update={"subject": merged[0]}))
    analysis, cleaned, hub = found
    return model_card(analysis, reports, cleaned, hub)


def _further_scores(analysis: Analysis, cleaned: Cleaned, hub: Analysis | None, reports: Reports) -> dict[str, Any]:
    return {
        "contaminated": contaminated_view(analysis, cleaned), "seeds": seed_rows(analysis),
        "seed_differences": seed_differences(analysis), "hub": hub_view(hub, reports),
        "cautions": cautions(analysis, reports, not_run(reports), hub),
    }  # fmt: skip


def _score_views(analysis: Analysis, params: ReportParams) -> dict[str, Any]:
    table = analysis.table
    return {
        "verdict": verdict(analysis), "subject": analysis.subject, "headline": views.headline(analysis),
        "level": percent(params.level), "alpha": f"{1 - params.level:.3g}",
        "resamples": params.resamples, "columns": views.score_columns(analysis),
        "rows": views.score_rows(analysis), "recall": views.recall_rows(analysis), "tasks": table.tasks,
        "comparisons": views.comparison_rows(analysis), "charts": views.charts(analysis), "left_out": table.left_out,
    }  # fmt: skip


def _query_views(
    analysis: Analysis, reports: Reports, tasks: Mapping[str, Task], params: ReportParams
) -> dict[str, Any]:
    return {
        "slices": slice_view(analysis, tasks), "robustness": robustness_view(analysis, reports.evaluation),
        "failures": find_failures(analysis, reports.evaluation, tasks, params.failures),
        "has_texts": bool(tasks), "shows_failures": params.failures > 0,
    }  # fmt: skip


def _stage_views(reports: Reports, params: ReportParams) -> dict[str, Any]:
    return {
        "data": stages.data_view(reports), "contamination": stages.contamination_view(reports),
        "negatives": negatives_view(reports, params.samples), "training": stages.training_view(reports),
        "prompts": stages.prompts_view(reports), "selected": stages.select_view(reports),
        "merge": stages.merge_view(reports), "cost": stages.cost_view(reports),
        "provenance": stages.provenance_view(reports), "graph": draw_graph(stage_states(reports)),
        "states": stage_states(reports),
    }  # fmt: skip


def summarise(analysis: Analysis) -> list[str]:
    """Return the averages of base, best expert, all-data, merged and BM25, and the verdict, as lines for a
    terminal.
    """
    shown = [analysis.strongest(role) for role in ("base", "expert", "all_data", "merged", "lexical")]
    models = [model for model in shown if model] + [analysis.subject]
    width = max(len(model.label) for model in models)
    lines = [f"average nDCG@10 over {count_of(len(analysis.table.tasks), 'test task')}:"]
    lines += [f"  {model.label.ljust(width)}  {analysis.mean('all', model.name):.3f}" for model in models]
    return [*lines, verdict(analysis)] if analysis.strongest(*OPPONENTS) else lines
