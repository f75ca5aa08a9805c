"""From the params' names of mteb tasks and benchmarks to task objects, whose data comes from the hub or its cache.

A local copy of a task's data set comes first. A task that cannot be loaded is for the caller to name as not run. Where
the hub does not answer, the hub client is put into offline mode, so that cached tasks still run and missing ones fail
at once. Loads no data.
"""

from dataclasses import dataclass
from pathlib import Path

import datasets.config
import huggingface_hub.constants
import mteb
from mteb.abstasks import AbsTask

from stm.errors import ParamsError, brief
from stm.files import sha256_tree
from stm.hub_models import is_hub_reachable
from stm.params.evaluate import EvaluateParams, HubTask
from stm.progress import say
from stm.tasks import Domain

RETRIEVAL = "Retrieval"  # mteb's word for the type of task


@dataclass(frozen=True)
class NamedTask:
    """A task of mteb and the average that it belongs to."""

    task: AbsTask
    domain: Domain

    @property
    def refusal(self) -> str:
        """Why this project cannot run the task; empty if it can. Reranking of given passages is no retrieval."""
        kind = str(self.task.metadata.type)
        if self.task.is_aggregate:
            return "it is an aggregate of other tasks; name those"
        return "" if kind == RETRIEVAL else f"it is a {kind} task; only retrieval tasks run here"


def go_offline() -> None:
    """Make the hub client use its cache only."""
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_HUB_OFFLINE = True


def _domain(task: AbsTask) -> Domain:
    return "medical" if "Medical" in (task.metadata.domains or []) else "general"


def _all_subsets(name: str) -> str:
    return ", ".join(sorted(map(str, mteb.get_task(name).hf_subsets)))


def find_task(row: HubTask) -> NamedTask:
    """Return the mteb task that the row names; `ParamsError` if there is none, it is no retrieval task, or lacks a
    subset.
    """
    name = row.name
    try:
        task = mteb.get_task(name, hf_subsets=row.subsets or None, eval_splits=row.splits or None)
    except (KeyError, ValueError) as error:
        raise ParamsError(f"evaluate.hub_tasks: mteb cannot give the task {name!r}: {brief(error)}") from error
    if unknown := sorted(set(row.subsets) - set(task.hf_subsets)):
        raise ParamsError(f"evaluate.hub_tasks: {name!r} has no subset {unknown[0]!r}; it has {_all_subsets(name)}")
    named = NamedTask(task, row.domain or _domain(task))
    if named.refusal:
        raise ParamsError(f"evaluate.hub_tasks: {name!r} cannot be run: {named.refusal}")
    return named


def find_benchmark(name: str) -> list[NamedTask]:
    """Return the tasks of an mteb benchmark in its order, those that cannot be run here too; `ParamsError` if there is
    none of that name.
    """
    try:
        benchmark = mteb.get_benchmark(name)
    except (KeyError, ValueError) as error:
        raise ParamsError(f"evaluate.benchmarks: mteb has no benchmark {name!r}: {brief(error)}") from error
    return [NamedTask(task, _domain(task)) for task in benchmark.tasks]


def use_copy(named: NamedTask, folder: Path) -> bool:
    """Point the task to `folder/<id of its data set>` if that is there, with its hash as revision; say if it is."""
    dataset = named.task.metadata.dataset
    copy = folder / str(dataset["path"])
    if not copy.is_dir():
        return False
    local = {**dataset, "path": str(copy), "revision": sha256_tree(copy)}
    named.task.metadata = named.task.metadata.model_copy(update={"dataset": local})
    return True


def load_named_tasks(params: EvaluateParams) -> list[NamedTask]:
    """Return the named tasks, benchmarks first, each task once; `ParamsError` for an unknown name.

    Where the hub does not answer, the hub client is told so: tasks in its cache still run.
    """
    found = [task for benchmark in params.benchmarks for task in find_benchmark(benchmark)]
    found += [find_task(row) for row in params.hub_tasks]
    distinct = list({named.task.metadata.name: named for named in found}.values())
    if params.hub_folder and not Path(params.hub_folder).is_dir():
        raise ParamsError(f"evaluate.hub_folder: {params.hub_folder!r} is no folder; leave it empty for the hub")
    runnable = [named for named in distinct if not named.refusal]
    remote = [named for named in runnable if not params.hub_folder or not use_copy(named, Path(params.hub_folder))]
    if remote and not is_hub_reachable():
        say("the model hub does not answer: of mteb's tasks only those in the local cache are run")
        go_offline()
    return distinct
