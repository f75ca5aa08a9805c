"""Evaluations of several models as one table of aligned scores per query.

Takes the evaluation reports and returns models, tasks and arrays in a fixed order; a model that was scored on other
queries than the rest is left out by name and never compared. Draws no conclusion.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stm.errors import DataError
from stm.metrics import METRICS, NDCG
from stm.significance import Groups, count_groups, group_alike
from stm.tasks import SCOPES

Signature = tuple[tuple[str, str, tuple[str, ...]], ...]
ROLES = ("merged", "all_data", "expert", "warm_up", "base", "lexical", "outside")


@dataclass(frozen=True)
class ModelInfo:
    """A model of the table; models of one `group` are one method trained with several seeds."""

    name: str
    label: str
    role: str
    group: str = ""


@dataclass(frozen=True)
class TaskInfo:
    """A task of the table: its sizes as evaluated, and those before the caps."""

    name: str
    domain: str
    queries: int
    passages: int
    full_queries: int
    full_passages: int
    answers: int  # distinct sets of relevant passages among the queries

    @property
    def is_reduced(self) -> bool:
        """Whether caps made the task smaller."""
        return self.queries < self.full_queries or self.passages < self.full_passages


@dataclass(frozen=True)
class Table:
    """Aligned scores: `scores[metric][task]` is [N queries, M models], in the order of `query_ids[task]` and
    `models`.
    """

    models: list[ModelInfo]
    tasks: list[TaskInfo]
    query_ids: list[list[str]]
    scores: Mapping[str, list[npt.NDArray[np.float64]]]
    left_out: Mapping[str, str]  # model -> why it is not in the table
    groups: list[Groups]  # per task: queries of one group ask for the same answers

    @property
    def scopes(self) -> dict[str, list[int]]:
        """Return the averages that cover any task, of "all", "medical" and "general", with their tasks' positions."""
        covered = {s: [row for row, task in enumerate(self.tasks) if s in ("all", task.domain)] for s in SCOPES}
        return {scope: positions for scope, positions in covered.items() if positions}

    def column(self, model: str) -> int:
        """Return the column of a model of the table."""
        return [info.name for info in self.models].index(model)

    def task_means(self, metric: str) -> npt.NDArray[np.float64]:
        """Return the means [tasks, models]."""
        return np.array([values_NM.mean(axis=0) for values_NM in self.scores[metric]])


def without_queries(table: Table, left_out: Mapping[str, Collection[str]]) -> Table:
    """Return the table without those queries (task -> ids); a task of which no query stays goes with them."""
    rows = [
        [row for row, query_id in enumerate(ids) if query_id not in left_out.get(task.name, ())]
        for task, ids in zip(table.tasks, table.query_ids, strict=True)
    ]
    stays = [index for index, kept in enumerate(rows) if kept]
    groups = [group_alike(table.groups[index][rows[index]]) for index in stays]
    return replace(
        table,
        tasks=[
            replace(table.tasks[index], queries=len(rows[index]), answers=count_groups(found))
            for index, found in zip(stays, groups, strict=True)
        ],
        query_ids=[[table.query_ids[index][row] for row in rows[index]] for index in stays],
        groups=groups,
        scores={name: [arrays[index][rows[index]] for index in stays] for name, arrays in table.scores.items()},
    )


def _signature(evaluation: Mapping[str, Any]) -> Signature:
    """What makes two evaluations comparable: the same tasks, data and queries."""
    rows = sorted(evaluation["tasks"].items())
    return tuple((name, str(row.get("data")), tuple(sorted(row["per_query"][NDCG]))) for name, row in rows)


def _signatures(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, Signature]:
    try:
        return {name: _signature(data) for name, data in evaluations.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError("an evaluation lacks scores per query; run `dvc repro -f -s evaluate` for new ones") from error


def keep_shared(evaluations: Mapping[str, Mapping[str, Any]], subject: str) -> dict[str, dict[str, Any]]:
    """Return the evaluations with those of the subject's tasks alone that half of them at least have in common; where
    there is none, with all of its tasks.
    """
    signatures = _signatures(evaluations)
    counts = Counter(task for found in signatures.values() for task in found)
    common = [task for task in signatures[subject] if 2 * counts[task] >= len(signatures)]
    shared = {name for name, _, _ in common or signatures[subject]}
    return {
        name: {**data, "tasks": {task: row for task, row in data["tasks"].items() if task in shared}}
        for name, data in evaluations.items()
    }


def name_rerun(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the command that evaluates these models again and, with `-s`, runs no stage before that."""
    stages = []
    for name, data in sorted(evaluations.items()):
        # A row of `outside` has an id and a commit in place of a path.
        is_of_hub = data.get("role") == "outside" and re.search(r"@[0-9a-f]{7,40}$", str(data.get("path")))
        stages.append("bm25" if data.get("role") == "lexical" else f"{'outside' if is_of_hub else 'evaluate'}@{name}")
    return f"dvc repro -f -s {' '.join(stages)}"


def _order(info: ModelInfo) -> tuple[int, str]:
    return (ROLES.index(info.role) if info.role in ROLES else len(ROLES), info.name)


def build_table(evaluations: Mapping[str, Mapping[str, Any]], subject: str) -> Table:
    """Align the evaluations that share tasks, data and queries with the subject, or without it with most others."""
    not_run = {name: str(data["not_run"]) for name, data in sorted(evaluations.items()) if data.get("not_run")}
    evaluations = {name: data for name, data in evaluations.items() if name not in not_run}
    if not evaluations:
        raise DataError("no model was evaluated; " + "; ".join(f"{name}: {why}" for name, why in not_run.items()))
    signatures = _signatures(evaluations)
    common = Counter(signatures[name] for name in sorted(signatures)).most_common(1)[0][0]
    wanted = signatures.get(subject, common)
    if not wanted:
        raise DataError("the evaluations hold no task; name test tasks under prepare.tasks in params.yaml")
    kept = {name: data for name, data in evaluations.items() if signatures[name] == wanted}
    models = _distinct_labels(sorted((_model_info(name, data) for name, data in kept.items()), key=_order))
    rows = kept[models[0].name]["tasks"]
    ordered = sorted(wanted, key=lambda found: (rows[found[0]].get("domain", "general") != "medical", found[0]))
    query_ids = [list(ids) for _, _, ids in ordered]
    groups = [_groups(kept, name, ids) for name, _, ids in ordered]
    tasks = [_task_info(name, rows[name], found) for (name, _, _), found in zip(ordered, groups, strict=True)]
    scores = {metric: _arrays(kept, models, tasks, query_ids, metric) for metric in METRICS}
    left_out = {name: _stale(name, data) for name, data in sorted(evaluations.items()) if name not in kept}
    left_out |= {name: f"not run; {why}" for name, why in not_run.items()}
    return Table(models, tasks, query_ids, scores, left_out, groups)


def _stale(name: str, data: Mapping[str, Any]) -> str:
    return f"scored on other tasks or queries; run `{name_rerun({name: data})}` and `dvc repro` to score it again"


def _model_info(name: str, row: Mapping[str, Any]) -> ModelInfo:
    return ModelInfo(name, str(row.get("label") or name), str(row.get("role", "outside")), str(row.get("group") or ""))


def _distinct_labels(models: Sequence[ModelInfo]) -> list[ModelInfo]:
    counts = Counter(model.label for model in models)
    return [replace(m, label=f"{m.label} ({m.name})") if counts[m.label] > 1 else m for m in models]


def _task_info(name: str, row: Mapping[str, Any], groups_N: Groups) -> TaskInfo:
    queries, passages = int(row.get("queries", 0)), int(row.get("passages", 0))
    return TaskInfo(
        name, str(row.get("domain", "general")), queries, passages,
        int(row.get("full_queries", queries)), int(row.get("full_passages", passages)), count_groups(groups_N),
    )  # fmt: skip


def _groups(evaluations: Mapping[str, Mapping[str, Any]], task: str, query_ids: Sequence[str]) -> Groups:
    """Which queries ask for the same, by any of the evaluations: they share the task's data."""
    for evaluation in evaluations.values():
        same = evaluation["tasks"][task].get("same_answers")
        if isinstance(same, Mapping):
            return group_alike(str(same.get(query_id, query_id)) for query_id in query_ids)
    raise DataError(
        f"no evaluation says which queries of {task} ask for the same answers; run `{name_rerun(evaluations)}`"
    )


def _arrays(
    kept: Mapping[str, Mapping[str, Any]], models: Sequence[ModelInfo], tasks: Sequence[TaskInfo],
    query_ids: Sequence[Sequence[str]], metric: str,
) -> list[npt.NDArray[np.float64]]:  # fmt: skip
    return [
        np.array([[kept[m.name]["tasks"][task.name]["per_query"][metric][q] for m in models] for q in ids], dtype=float)
        for task, ids in zip(tasks, query_ids, strict=True)
    ]
