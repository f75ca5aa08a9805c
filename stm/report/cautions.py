"""What a reader must know before relying on the scores: one sentence per limit of this very run.

Takes the analysis and the stages' reports; says only what they hold, the most important first.
"""

from typing import Any

from stm.report.collect import Reports
from stm.report.compare import OPPONENTS, Analysis, count_of
from stm.report.seeds import groups
from stm.report.stages import contamination_view

HUB_UNTESTED = (
    "Training data was compared with the pipeline's own evaluation tasks, not with mteb's: what it shares with those "
    "is not known, and not removed."
)


def cautions(analysis: Analysis, reports: Reports, not_run: list[tuple[str, str]], has_hub: bool = False) -> list[str]:
    """Return the sentences; `not_run` are mteb's tasks that could not be run, with their reasons; `has_hub` says
    whether any was.
    """
    found = [*_unlearned(reports), _resolution(analysis)]
    found += [_left_in(contamination_view(reports)["total"]), _reduced(analysis)]
    if analysis.table.left_out:
        found.append(f"Not compared: {', '.join(analysis.table.left_out)}. The reasons stand above the table.")
    if not_run:
        found.append(f"{len(not_run)} of mteb's tasks could not be run. They are named below the table, with reasons.")
    if has_hub:
        found.append(HUB_UNTESTED)
    if analysis.subject.group not in groups(analysis):
        found.append("One training each, with one seed: no interval on this page covers the luck of a seed.")
    return [sentence for sentence in found if sentence]


def _unlearned(reports: Reports) -> list[str]:
    """A backbone whose start depends on luck, and the trainings that taught nothing, each with its reason."""
    trainings = {"The warm-up": reports.warm_up, "All data": reports.train_all}
    trainings |= {f"Expert {name}": section for name, section in reports.train.items()}
    reasons = {"The backbone": reports.warm_up.get("unsteady")}
    reasons |= {name: section.get("unlearned") for name, section in trainings.items()}
    return [f"{name}: {reason}." for name, reason in reasons.items() if reason]


def _resolution(analysis: Analysis) -> str:
    """How small a difference these queries can show: half the interval against the strongest rival."""
    rival = analysis.strongest(OPPONENTS)
    row = analysis.against("all", rival.name) if rival else None
    if row is None:
        return ""
    reach = (row.comparison.high - row.comparison.low) / 2
    queries = sum(task.queries for task in analysis.table.tasks)
    return f"With these {queries:,} test queries, differences under about {reach:.3f} cannot be told from chance."


def _left_in(total: dict[str, Any]) -> str:
    left = total.get("left")
    if not isinstance(left, int) or not left:
        return ""
    return f"{left:,} training rows that the evaluation tasks also hold were left in: the scores may be too high."


def _reduced(analysis: Analysis) -> str:
    tasks = analysis.table.tasks
    reduced = sum(task.is_reduced for task in tasks)
    if not reduced:
        return ""
    return (
        f"{reduced} of {count_of(len(tasks), 'task')} reduced to a sample, and a smaller corpus is easier to search: "
        "compare the models of this page with each other, not with figures from elsewhere."
    )
