"""What a reader must know before relying on the scores: one sentence per limit of this very run.

Takes the analysis and the stages' reports; says only what they hold, the most important first.
"""

from collections.abc import Iterable

from stm.report.collect import Reports, dig
from stm.report.compare import (
    OPPONENTS,
    Analysis,
    count_of,
    count_queries,
    for_answers,
    needed_queries,
    needed_resamples,
    percent,
    why_blind,
)
from stm.report.hub import NotRun
from stm.report.seeds import groups
from stm.report.stages import contamination_view
from stm.significance import corrected_width

MUCH_CUT = 0.1  # share of a task's passages
HUB_UNTESTED = (
    "Training data was compared with the pipeline's own evaluation tasks, not with mteb's: what it shares with those "
    "is not known, and not removed."
)


def cautions(analysis: Analysis, reports: Reports, not_run: list[NotRun], hub: Analysis | None = None) -> list[str]:
    """Return the sentences; `not_run` are mteb's tasks that some model could not be run on, `hub` is the comparison on
    those that were.
    """
    found = [
        *_unlearned(reports),
        *_blind(analysis),
        _resolution(analysis),
        _lonely(analysis),
        left_in(reports),
    ]
    found += [_cut(analysis, reports), _reduced(analysis)]
    if analysis.table.left_out:
        found.append(f"Not compared: {', '.join(analysis.table.left_out)}. The reasons stand above the table.")
    if not_run:
        count = len({row.task for row in not_run})
        found.append(f"{count} of mteb's tasks could not be run. They are named below the table, with reasons.")
    if hub is not None:
        found += [HUB_UNTESTED, *_blind(hub, " of mteb"), _lonely(hub, " of mteb")]
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


def _blind(analysis: Analysis, source: str = "") -> list[str]:
    """Where the test has too few queries or resamples to find any difference."""
    found = []
    if needed := needed_queries(analysis):
        count, same = count_queries(analysis.table), for_answers(analysis.table)
        found.append(
            f"With {count:,} test {'query' if count == 1 else 'queries'}{same} {_nothing(analysis, needed, source)}: "
            f"add queries until there are at least {max(needed.values()):,}{' answers' if same else ''} for each."
        )
    if needed := needed_resamples(analysis):
        found.append(
            f"With {analysis.resamples:,} resamples {_nothing(analysis, needed, source)}: raise report.resamples to at "
            f"least {max(needed.values()):,}, or lower report.level."
        )
    return found


def _nothing(analysis: Analysis, families: Iterable[str], source: str) -> str:
    where = " or on ".join(families)
    return f"no difference on {where}{source}, however large, can be significant at {percent(analysis.level)}"


def _resolution(analysis: Analysis) -> str:
    """How small a difference these queries can show: half the interval against the strongest rival, which is widened
    since what the page calls better or worse has to pass Holm's correction over all comparisons with the subject.

    Nothing where `_blind` says that no difference at all can be shown, or where a task's one answer has no interval.
    """
    rival = analysis.strongest(*OPPONENTS)
    if rival is None or why_blind(analysis) or _lonely_tasks(analysis):
        return ""
    width, gap = corrected_width(len(analysis.tested["all"]), analysis.level), analysis.against("all", rival.name)
    reach = width * (gap.comparison.high - gap.comparison.low) / 2
    return (
        f"With these {count_queries(analysis.table):,} test queries{for_answers(analysis.table)}, differences under "
        f"about {reach:.3f} from {rival.label} cannot be told from chance, and even larger ones cannot where a model "
        "does well on other queries."
    )


def _lonely_tasks(analysis: Analysis) -> list[str]:
    """The tasks whose queries all ask for the same."""
    return [task.name for task in analysis.table.tasks if task.answers == 1]


def _lonely(analysis: Analysis, source: str = "") -> str:
    """Tasks whose luck no interval covers: one value shows no spread."""
    names = _lonely_tasks(analysis)
    if not names or why_blind(analysis):
        return ""
    return (
        f"Queries for a single answer, of which no spread is known, make up {count_of(len(names), 'task')}{source} "
        f"({', '.join(names)}): intervals of averages are too narrow, and how small a difference can be shown is not "
        "known. Add queries."
    )


def left_in(reports: Reports) -> str:
    """Return how much known contamination the training data holds; empty where there is none."""
    left = contamination_view(reports)["total"].get("left")
    if not isinstance(left, int) or not left:
        return ""
    return (
        f"{left:,} rows and negatives, those of the warm-up included, that an evaluation task also holds were left in: "
        "the scores may be too high."
    )


def _cut(analysis: Analysis, reports: Reports) -> str:
    """The tasks many of whose passages the subject sees only the beginning of."""
    tasks = dig(reports.evaluation, analysis.subject.name, "tasks", default={})
    shares = {name: dig(row, "cut") for name, row in sorted(tasks.items())}
    cut = {name: share for name, share in shares.items() if isinstance(share, float) and share >= MUCH_CUT}
    if not cut:
        return ""
    named = ", ".join(f"{share:.0%} of {name}" for name, share in cut.items())
    return (
        f"Passages are longer than the model takes, and it saw their beginnings only: {named}. BM25 sees whole texts. "
        "Raise backbone.max_tokens to have more of them read."
    )


def _reduced(analysis: Analysis) -> str:
    tasks = analysis.table.tasks
    reduced = sum(task.is_reduced for task in tasks)
    if not reduced:
        return ""
    return (
        f"{reduced} of {count_of(len(tasks), 'task')} reduced to a sample, and a smaller corpus is easier to search: "
        "compare the models of this page with each other, not with figures from elsewhere."
    )
