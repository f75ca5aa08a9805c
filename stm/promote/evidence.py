"""What the gates judge: scores per query of every evaluated model, and the contamination that was counted.

Reads reports/evaluation/*.json and reports/prepare.json into typed values. Does not know which model is promoted.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from stm.errors import DataError
from stm.files import read_json
from stm.metrics import NDCG
from stm.params.promote import Average
from stm.significance import Groups, group_alike


@dataclass(frozen=True)
class TaskScores:
    """nDCG@10 of one model on one task; `scores[query_id]` lies in [0, 1], and `same_answers[query_id]` is an earlier
    query that asks for the same passages.
    """

    domain: str
    digest: str
    scores: Mapping[str, float]
    same_answers: Mapping[str, str] | None = None  # None: an evaluation of before it was recorded

    @property
    def groups(self) -> Groups:
        """The groups [N] of the queries, in the order of their ids, that ask for the same passages."""
        same_answers = self.same_answers or {}
        return group_alike(same_answers.get(query_id, query_id) for query_id in sorted(self.scores))

    @property
    def mean(self) -> float:
        """The task's nDCG@10."""
        return sum(self.scores.values()) / len(self.scores)


@dataclass(frozen=True)
class Evaluation:
    """One evaluated model: its role in the comparison, its scores by task name (none: it could not be evaluated), and
    which files and prompts were scored.
    """

    name: str
    role: str
    tasks: Mapping[str, TaskScores]
    content: str = ""  # hash of the model folder
    prompts: Mapping[str, str] = field(default_factory=dict)
    path: str = ""  # of that folder, from the root; of a model of the hub its id and commit

    def within(self, average: Average) -> dict[str, TaskScores]:
        """The tasks that a named average covers, in name order."""
        return {name: task for name, task in sorted(self.tasks.items()) if average in ("all", task.domain)}

    def average(self, average: Average) -> float | None:
        """Mean of the task means, every task counting the same; None where the average covers no task."""
        tasks = self.within(average)
        return sum(task.mean for task in tasks.values()) / len(tasks) if tasks else None

    def matches(self, pattern: str) -> bool:
        """Whether a role, a name or a shell pattern of names means this model."""
        return pattern == self.role or fnmatchcase(self.name, pattern)

    def same_queries(self, other: "Evaluation") -> bool:
        """Whether both were scored on the same queries of the same tasks, so that queries can be paired."""
        return {name: (task.digest, set(task.scores)) for name, task in self.tasks.items()} == {
            name: (task.digest, set(task.scores)) for name, task in other.tasks.items()
        }


def read_evaluation(path: Path) -> Evaluation:
    """Read one evaluation report; `DataError` if it lacks scores per query. A model that could not run has no tasks."""
    data = read_json(path)
    try:
        name, role = str(data.get("model", path.stem)), str(data.get("role", ""))
        if data.get("not_run"):
            return Evaluation(name, role, {})
        tasks = {name: _task(task) for name, task in sorted(data["tasks"].items())}
        content, prompts = str(data.get("hashes", {}).get("model", "")), dict(data.get("prompts", {}))
        evaluation = Evaluation(name, role, tasks, content, prompts, str(data.get("path", "")))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} has no nDCG@10 per query ({error!r}); make it again with `dvc repro -f -s evaluate`"
        ) from error
    if not tasks or any(not task.scores for task in tasks.values()):
        raise DataError(f"{path} scores no query; name at least one test task under prepare.tasks in params.yaml")
    return evaluation


def _task(task: Mapping[str, Any]) -> TaskScores:
    scores = {str(query_id): float(score) for query_id, score in task["per_query"][NDCG].items()}
    if wrong := [query_id for query_id, score in scores.items() if not 0 <= score <= 1]:  # NaN is wrong as well
        raise ValueError(f"the score of query {wrong[0]!r} is {scores[wrong[0]]}")
    same = None if "same_answers" not in task else {str(q): str(other) for q, other in task["same_answers"].items()}
    return TaskScores(str(task.get("domain", "")), str(task.get("data", "")), scores, same)


def read_evaluations(folder: Path, names: Collection[str] | None = None) -> dict[str, Evaluation]:
    """Read the reports of a folder by model name, of those `names` alone (None: all); none of a model that ran is a
    `DataError`.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if names is None or path.stem in names]
    found = [read_evaluation(path) for path in paths]
    if not any(evaluation.tasks for evaluation in found):
        raise DataError(f"{folder} holds no evaluation; run `dvc repro evaluate`")
    return {evaluation.name: evaluation for evaluation in found}


def read_contamination(path: Path) -> int | None:
    """Texts shared by training and evaluation data that prepare left; None where it did not count them."""
    if not path.exists():
        return None
    left = (read_json(path).get("contamination") or {}).get("left")
    return None if left is None else int(left)
