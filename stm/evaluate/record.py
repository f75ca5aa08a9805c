"""One model's evaluation over all tasks, as the plain data that the report reads.

Runs the local tasks, which are the pipeline's own, and beside them tasks of the hub; the two are never averaged
together. Does not know what kind of model it runs.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from mteb.results import TaskResult

from stm.evaluate.corpus import DiskCorpus
from stm.evaluate.named import NamedTask
from stm.evaluate.run import MissingTaskError, run_task
from stm.evaluate.tasks import SPLIT, SUBSET, LocalTask
from stm.files import atomic_directory, sha256_tree, write_text
from stm.metrics import METRICS
from stm.progress import say
from stm.tasks import SCOPES, Task, read_task, task_folders

# Whose versions shape a score.
LIBRARIES = ("mteb", "torch", "transformers", "sentence-transformers", "peft", "numpy", "bm25s")


@dataclass
class Evaluation:
    """What one model scored: rows per task (local and of the hub), tasks that could not run, and mteb's own
    results.
    """

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    hub_tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)
    results: dict[str, TaskResult] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return scores and averages as plain data."""
        hub = {"tasks": self.hub_tasks, "averages": average_tasks(self.hub_tasks), "not_run": self.not_run}
        return {"tasks": self.tasks, "averages": average_tasks(self.tasks), "hub": hub}


def average_tasks(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the unweighted means over tasks: of each domain that has any, and of "all".

    Rows of one `task` (its splits and subsets) count as one, their mean, as in `mteb.TaskResult.get_score` (2.x).
    """
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for name, row in tasks.items():
        parts.setdefault(row.get("task", name), []).append(row)
    averages = {}
    for scope in SCOPES:
        chosen = [rows for rows in parts.values() if scope in ("all", rows[0]["domain"])]
        if chosen:
            averages[scope] = {
                metric: fmean(fmean(row[metric] for row in rows) for rows in chosen) for metric in METRICS
            }
    return averages


def read_local_tasks(root: Path | str) -> Iterator[tuple[Task, str]]:
    """Return the task folders under `root` in name order, each with the hash of its data.

    Each is read when it is asked for, its corpus held on disk, so that one task is in memory at a time.
    """
    return ((read_task(folder, SPLIT, hold=DiskCorpus), sha256_tree(folder)) for folder in task_folders(root))


def run_local(evaluation: Evaluation, model: Any, tasks: Iterable[tuple[Task, str]]) -> None:
    """Run the pipeline's own tasks and add their rows to `evaluation`."""
    for task, revision in tasks:
        scores, result = run_task(model, LocalTask(task, revision))
        row = scores[SPLIT, SUBSET]
        own = {"full_queries": len(task.queries), "full_passages": len(task.corpus)}
        full = {key: task.notes.get(key, size) for key, size in own.items()}
        evaluation.tasks[task.name] = {**row.as_json(), "domain": task.domain, "data": revision, **full}
        evaluation.results[task.name] = result
        say(f"  {task.name}: nDCG@10 {row.ndcg_at_10:.3f} ({row.queries} queries, {row.seconds:.0f} s)")


def run_hub(evaluation: Evaluation, model: Any, tasks: Iterable[NamedTask]) -> None:
    """Run tasks of the hub; one that cannot be run or had is named in `not_run`."""
    for named in tasks:
        name = named.task.metadata.name
        try:
            if named.refusal:
                raise MissingTaskError(named.refusal)
            scores, result = run_task(model, named.task)
        except MissingTaskError as error:
            evaluation.not_run[name] = str(error)
            say(f"  {name}: not run; {error}")
            continue
        for (split, subset), row in scores.items():
            part = name if len(scores) == 1 else f"{name} ({subset}, {split})"
            own = {"task": name, "domain": named.domain, "data": named.task.metadata.revision}
            sizes = {"full_queries": row.queries, "full_passages": row.passages}
            evaluation.hub_tasks[part] = {**row.as_json(), **own, **sizes}
        evaluation.results[name if name not in evaluation.results else f"{name}.hub"] = result
        named.task.dataset, named.task.data_loaded = None, False  # twelve corpora at once would not fit


def describe(name: str, label: str, role: str, path: str, model_hash: str, group: str = "") -> dict[str, Any]:
    """Return what identifies the evaluated model and the libraries that ran it."""
    return {
        "model": name, "label": label or name, "role": role, "path": path, "group": group,
        "hashes": {"model": model_hash}, "versions": {name: version(name) for name in LIBRARIES},
    }  # fmt: skip


def write_results(results: Mapping[str, TaskResult], folder: Path | str, not_run: str = "") -> None:
    """Write mteb's own result file of every task into `folder`, all or none; or why there are none, as a text."""
    with atomic_directory(folder) as scratch:
        for name in sorted(results):
            write_text(scratch / f"{name}.json", results[name].model_dump_json(indent=2) + "\n")
        if not_run:
            write_text(scratch / "not_run.txt", f"not run: {not_run}\n")
