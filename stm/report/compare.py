"""What the scores say: intervals, differences with their tests, winners, and the verdict in words.

Takes the aligned table and returns figures and one sentence; does not know how they are shown.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from stm.errors import ParamsError
from stm.metrics import NDCG
from stm.params.report import ReportParams
from stm.report.scores import ModelInfo, Table
from stm.significance import Comparison, Interval, Resampled, holm, resample

ALL_TASKS = "the average of all tasks"  # the family that the verdict rests on
OPPONENTS = ("base", "warm_up", "expert", "all_data", "merged")


@dataclass(frozen=True)
class Tested:
    """A comparison of the subject with one model, with its p-value after Holm's correction."""

    model: ModelInfo
    comparison: Comparison
    p_holm: float
    level: float

    @property
    def is_significant(self) -> bool:
        """Whether the difference stands at the confidence level after the correction."""
        return self.p_holm < 1 - self.level


@dataclass(frozen=True)
class Analysis:
    """Everything that is said about the table, at one confidence level.

    Keys of the mappings are task names and the scopes "all", "medical" and "general"; lists follow the models of the
    table.
    """

    table: Table
    subject: ModelInfo
    level: float
    resamples: int
    intervals: Mapping[str, list[Interval]]
    tested: Mapping[str, list[Tested]]  # against every model but the subject
    winners: Mapping[str, list[int]]  # columns of the best models, ties included

    def against(self, scope: str, model: str) -> Tested:
        """Return the comparison of the subject with another model in a scope."""
        return next(row for row in self.tested[scope] if row.model.name == model)

    def interval(self, scope: str, model: str) -> Interval:
        """Return a model's nDCG@10 in a scope with its interval."""
        return self.intervals[scope][self.table.column(model)]

    def mean(self, scope: str, model: str) -> float:
        """Return a model's nDCG@10 in a scope."""
        return self.interval(scope, model).mean

    def strongest(self, *roles: str) -> ModelInfo | None:
        """Return the model of those roles with the best average over all tasks, without the subject and the other seeds
        of its group.
        """
        others = [model for model in self.table.models if model.name != self.subject.name]
        rivals = [m for m in others if m.role in roles and not (m.group and m.group == self.subject.group)]
        return max(rivals, key=lambda model: (self.mean("all", model.name), model.name), default=None)


def _choose_subject(table: Table, name: str) -> ModelInfo:
    """Return the model of that name; `ParamsError` with the names that there are for another."""
    models = {model.name: model for model in table.models}
    if name not in models:
        why = f" ({table.left_out[name]})" if name in table.left_out else ""
        known = ", ".join(models)
        raise ParamsError(f"report.subject is {name!r}, which is not among the compared models{why}; there are {known}")
    return models[name]


def families(table: Table) -> dict[str, list[str]]:
    """Return the scopes whose comparisons are corrected together, by what they are on: the average of all tasks, which
    the verdict rests on; the averages of one domain; single tasks.
    """
    domains = [scope for scope in table.scopes if scope != "all"]
    tasks = [task.name for task in table.tasks]
    return {ALL_TASKS: ["all"], "the average of a domain": domains, "a single task": tasks}


def family_sizes(analysis: Analysis) -> dict[str, int]:
    """Return by how many comparisons Holm's correction multiplies the least p-value of each family."""
    return {
        name: sum(len(analysis.tested[scope]) for scope in family) for name, family in families(analysis.table).items()
    }


def needed_resamples(analysis: Analysis) -> dict[str, int]:
    """Return the families in which, for want of resamples, no difference could be significant, however large, with the
    resamples that it takes. The least p-value is 1 / (resamples + 1).
    """
    alpha = 1 - analysis.level
    sizes = family_sizes(analysis)
    return {name: int(size / alpha + 1e-9) for name, size in sizes.items() if size / (analysis.resamples + 1) >= alpha}


def needed_queries(analysis: Analysis) -> dict[str, int]:
    """Return the families in which, for want of queries, no difference could be significant, however large, with the
    queries that it takes. The least p-value is 2^(1 - G), for G different answers to the queries of a task or of all
    tasks of an average.
    """
    found, sizes = {}, family_sizes(analysis)
    for name, scopes in families(analysis.table).items():
        needed = int(2 + math.log2(max(1, sizes[name]) / (1 - analysis.level)))
        if sizes[name] and max(count_answers(analysis.table, scope) for scope in scopes) < needed:
            found[name] = needed
    return found


def why_blind(analysis: Analysis) -> str:
    """Return what is too few for any difference on the average of all tasks to be significant, however large; empty
    where nothing is.
    """
    if ALL_TASKS in needed_queries(analysis):
        return f"too few queries ({count_queries(analysis.table):,}{for_answers(analysis.table)})"
    return f"too few resamples ({analysis.resamples:,})" if ALL_TASKS in needed_resamples(analysis) else ""


def count_answers(table: Table, scope: str) -> int:
    """Return how many different answers the queries of a task, or of all tasks of an average, ask for."""
    positions = table.scopes.get(scope) or [index for index, task in enumerate(table.tasks) if task.name == scope]
    return sum(table.tasks[index].answers for index in positions)


def count_queries(table: Table) -> int:
    """Return how many queries all tasks have."""
    return sum(map(len, table.query_ids))


def for_answers(table: Table) -> str:
    """Return the words that follow a number of queries where some ask for the same; empty where none do."""
    count = count_answers(table, "all")
    return f" for {count:,} different answers" if count < count_queries(table) else ""


def _correct(rows: Mapping[str, list[Tested]], family: list[str]) -> dict[str, list[Tested]]:
    """Holm's correction over all comparisons of the scopes in `family`."""
    flat = [row for scope in family for row in rows[scope]]
    adjusted = iter(holm([row.comparison.p_value for row in flat]))
    return {scope: [replace(row, p_holm=next(adjusted)) for row in rows[scope]] for scope in family}


def analyse(table: Table, params: ReportParams) -> Analysis:
    """Compare the subject with every other model, per task and on the averages, corrected within each of `families`."""
    subject, level = _choose_subject(table, params.subject), params.level
    drawn = resample(table.scores[NDCG], table.column(subject.name), params.resamples, params.seed, table.groups)
    scopes = {**table.scopes, **{task.name: [index] for index, task in enumerate(table.tasks)}}
    raw = {scope: _test(drawn, table, subject, positions, level) for scope, positions in scopes.items()}
    tested = {scope: rows for family in families(table).values() for scope, rows in _correct(raw, family).items()}
    intervals = {scope: clip(drawn.intervals(positions, level)) for scope, positions in scopes.items()}
    winners = {scope: _winners(rows) for scope, rows in intervals.items()}
    return Analysis(table, subject, level, params.resamples, intervals, tested, winners)


def _test(drawn: Resampled, table: Table, subject: ModelInfo, positions: list[int], level: float) -> list[Tested]:
    rows = zip(table.models, drawn.comparisons(positions, level), strict=True)
    return [Tested(model, row, row.p_value, level) for model, row in rows if model.name != subject.name]


def clip(rows: list[Interval]) -> list[Interval]:
    """Return the intervals of scores with limits in [0, 1], as scores lie there; an estimate may pass by a little."""
    return [Interval(row.mean, max(0.0, row.low), min(1.0, row.high)) for row in rows]


def _winners(rows: list[Interval]) -> list[int]:
    means_M = np.array([row.mean for row in rows])
    return [int(index) for index in np.flatnonzero(means_M >= means_M.max() - 1e-9)]


def percent(level: float) -> str:
    """Return a confidence level in words, for example "95 %", with a space that no line ends at."""
    return f"{100 * level:.6g}\u00a0%"


def count_of(number: int, word: str) -> str:
    """Return a number with its word, for example "1 task" or "8 tasks"."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def signed(value: float) -> str:
    """Return a difference with its sign and three decimals; a true minus sign, and no sign for a zero."""
    text = f"{value:+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text.replace("-", "\u2212")


def verdict(analysis: Analysis) -> str:
    """Return one sentence: how the subject stands against the strongest other model of the run, with its interval."""
    subject, rival = analysis.subject, analysis.strongest(*OPPONENTS)
    name, tasks = subject.label[:1].upper() + subject.label[1:], count_of(len(analysis.table.tasks), "task")
    own = f"{name} scores {analysis.mean('all', subject.name):.3f} nDCG@10 on average over {tasks}"
    if rival is None:
        return f"{own}; no other model of this run was evaluated, so there is nothing to compare it with."
    row = analysis.against("all", rival.name)
    c = row.comparison
    interval = f"{percent(analysis.level)} interval {signed(c.low)} to {signed(c.high)}, corrected p = {row.p_holm:.3g}"
    gap = f"difference {signed(c.difference)}, {interval}"
    if row.is_significant and c.difference > 0:
        claim = f"better than the strongest alternative, {rival.label}, by {c.difference:.3f} ({interval})"
    elif row.is_significant:
        claim = f"worse than {rival.label} by {abs(c.difference):.3f} ({interval})"
    elif blind := why_blind(analysis):
        claim = f"with {blind} to show any difference from {rival.label} ({gap})"
    else:
        claim = f"not distinguishable from {rival.label} ({gap})"
    return f"{own}, {claim}{_lexical_clause(analysis)}."


def _lexical_clause(analysis: Analysis) -> str:
    """BM25 and outside models that score more; the pipeline did not make them, but a reader must know."""
    rivals = [analysis.strongest(role) for role in ("lexical", "outside")]
    own = analysis.mean("all", analysis.subject.name)
    ahead = [model for model in rivals if model and analysis.mean("all", model.name) > own]
    return "".join(f"; {model.label} scores more, {analysis.mean('all', model.name):.3f}" for model in ahead)
