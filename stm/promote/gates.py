"""The gates: each compares figures with a bound of the params and says in words whether the model passes.

Pure: values in, verdicts out. What is compared is the figure that is recorded, rounded: a difference of means carries
float noise, which must not decide at the very bound. Does not know where the figures come from or what a verdict
leads to.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stm.params.promote import CHAMPION, Comparison, Gates, Limit
from stm.promote.evidence import Evaluation
from stm.promote.lineage import name_files
from stm.significance import count_groups, mean_intervals

DIGITS = 6  # decimals to which figures out of scores are rounded before they are compared and recorded


@dataclass(frozen=True)
class Verdict:
    """One gate's outcome; `figures` holds the numbers behind it, and `detail` says them in words."""

    name: str
    passed: bool
    required: bool
    detail: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether this verdict holds a promotion back."""
        return self.required and not self.passed


@dataclass(frozen=True)
class Measured:
    """Figures of the candidate besides its scores; None stands for what was not measured."""

    contamination: int | None = None
    reload_difference: float | None = None
    megabytes: float | None = None
    query_milliseconds: float | None = None
    changed_files: Sequence[str] | None = None


def judge(
    rules: Gates,
    candidate: Evaluation,
    others: Sequence[Evaluation],
    champion: Evaluation | None,
    measured: Measured,
    *,
    resamples: int,
    seed: int,
) -> list[Verdict]:
    """Judge every gate, comparisons first, in name order within each kind."""
    verdicts = [
        compare(name, rule, candidate, others, champion, resamples=resamples, seed=seed)
        for name, rule in sorted(rules.comparisons.items())
    ]
    verdicts.append(judge_tasks(rules.task_loss, candidate, champion))
    for name in sorted(vars(measured)):
        verdicts.append(judge_limit(name, getattr(rules, name), getattr(measured, name)))
    return verdicts


def compare(
    name: str,
    rule: Comparison,
    candidate: Evaluation,
    others: Sequence[Evaluation],
    champion: Evaluation | None,
    *,
    resamples: int,
    seed: int,
) -> Verdict:
    """Judge one comparison: the lower confidence bound of the gain (or the gain itself) must reach `min_gain`."""
    rivals = [
        other for other in others
        if other.name != candidate.name and any(other.matches(pattern) for pattern in rule.against)
    ]  # fmt: skip
    if CHAMPION in rule.against:
        if champion is None and set(rule.against) == {CHAMPION}:
            return Verdict(name, True, rule.required, "there is no other champion to compare with")
        rivals += [champion] if champion else []
    if reason := _incomparable(rule, candidate, rivals):
        return Verdict(name, False, rule.required, reason)
    rival = max(rivals, key=lambda model: (model.average(rule.average) or 0.0, model.name))
    return _compare_two(name, rule, candidate, rival, resamples, seed)


def _incomparable(rule: Comparison, candidate: Evaluation, rivals: Sequence[Evaluation]) -> str:
    """Why the candidate cannot be compared with all these rivals; empty where it can."""
    if not rivals:
        return f"no evaluated model matches {', '.join(rule.against)}"
    if candidate.average(rule.average) is None:
        return f"no test task belongs to the average {rule.average!r}"
    if unknown := [rival.name for rival in rivals if not rival.tasks]:
        return f"there is no evaluation of {unknown[0]} to compare with"
    if others := [rival.name for rival in rivals if not candidate.same_queries(rival)]:
        return f"{others[0]} was evaluated on other tasks or queries, so it cannot be compared"
    return _too_few(rule, candidate) if rule.significance else ""


def _too_few(rule: Comparison, candidate: Evaluation) -> str:
    """Why there are too few queries for a bound; empty where there are enough.

    If two models are the same, the queries for all of N answers favour one of them with a probability of 2^-N. Where
    that is above the level, no outcome could reach it, but the bootstrap, which is too sure of so few, would still let
    some pass.
    """
    tasks = candidate.within(rule.average)
    if old := [name for name, task in tasks.items() if task.same_answers is None]:
        return (
            f"the evaluation does not say which queries of {old[0]} ask for the same passages; make it again with "
            "`dvc repro -f -s evaluate`"
        )
    counts = [count_groups(task.groups) for task in tasks.values()]
    if min(counts) < 2:
        return "the queries of a task ask for one answer, of which no confidence bound can be had"
    needed = math.ceil(math.log2(1 / rule.significance))
    if sum(counts) < needed:
        return (
            f"the tasks ask for {sum(counts)} different answers (average {rule.average}), of which no confidence bound "
            f"at level {rule.significance:g} can be had; that takes at least {needed}"
        )
    return ""


def _compare_two(
    name: str, rule: Comparison, mine: Evaluation, rival: Evaluation, resamples: int, seed: int
) -> Verdict:
    ours, theirs = mine.average(rule.average) or 0.0, rival.average(rule.average) or 0.0
    gain = bound = ours - theirs
    how = "on the means alone"
    if rule.significance:
        bound = _lower_bound(rule, mine, rival, resamples, seed)
        how = f"lower bound {bound:+.4f} at level {rule.significance:g}"
    passed = round(bound, DIGITS) >= rule.min_gain
    detail = (
        f"{ours:.4f} against {theirs:.4f} of {rival.name} (average {rule.average}): {gain:+.4f}, {how}; "
        f"{'reaches' if passed else 'misses'} {rule.min_gain:+.4f}"
    )
    figures = {
        "candidate": round(ours, DIGITS), "opponent": round(theirs, DIGITS), "opponent_name": rival.name,
        "gain": round(gain, DIGITS), "lower_bound": round(bound, DIGITS), "min_gain": rule.min_gain,
        "significance": rule.significance, "average": rule.average,
    }  # fmt: skip
    return Verdict(name, passed, rule.required, detail, figures)


def _lower_bound(rule: Comparison, mine: Evaluation, rival: Evaluation, resamples: int, seed: int) -> float:
    """One-sided lower confidence bound of the gain; queries are paired and, where they ask for the same passages, drawn
    together; tasks are strata.

    A one-sided bound at level a is the lower end of the two-sided interval of confidence 1 - 2a.
    """
    strata = [
        np.array([[score - rival.tasks[name].scores[key]] for key, score in sorted(task.scores.items())])
        for name, task in mine.within(rule.average).items()
    ]
    groups = [task.groups for task in mine.within(rule.average).values()]
    return mean_intervals(strata, resamples, seed, 1 - 2 * rule.significance, groups)[0].low


def judge_tasks(rule: Limit, candidate: Evaluation, champion: Evaluation | None) -> Verdict:
    """Judge that no single task lost more than the bound against the champion."""
    if champion is None:
        return Verdict("task_loss", True, rule.required, "there is no other champion to compare with")
    if not candidate.same_queries(champion):
        return Verdict("task_loss", False, rule.required, "the champion was evaluated on other tasks or queries")
    losses = {name: champion.tasks[name].mean - task.mean for name, task in sorted(candidate.tasks.items())}
    worst = max(losses, key=lambda name: losses[name])
    loss = round(max(0.0, losses[worst]), DIGITS)
    passed = loss <= rule.at_most
    detail = f"the worst task, {worst}, changed by {-losses[worst]:+.4f}; a loss of {rule.at_most:g} is allowed"
    return Verdict("task_loss", passed, rule.required, detail, {"value": loss, "task": worst})


def judge_limit(name: str, rule: Limit, measured: float | Sequence[str] | None) -> Verdict:
    """Judge one figure against its bound, of files their number; what was not measured does not pass."""
    if measured is None:
        return Verdict(name, False, rule.required, "not measured", {"at_most": rule.at_most})
    files, value = ([], measured) if isinstance(measured, int | float) else (measured, len(measured))
    passed = value <= rule.at_most
    detail = f"{value:g} {'is within' if passed else 'exceeds'} {rule.at_most:g}"
    detail += f": {name_files(files)}" if files else ""
    return Verdict(name, passed, rule.required, detail, {"value": value, "at_most": rule.at_most})
