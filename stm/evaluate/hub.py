"""Tasks and benchmarks of mteb by name, loaded from the hub or its local cache.

Returns task objects; a task that cannot be loaded is for the caller to name as not run. Where the hub does not
answer, the hub client is put into offline mode, so that cached tasks still run and missing ones fail at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import datasets.config
import huggingface_hub.constants
import mteb
from mteb.abstasks import AbsTask

from stm.errors import ParamsError, brief
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


def find_task(name: str, subsets: Sequence[str] = (), splits: Sequence[str] = (), domain: str = "") -> NamedTask:
    """Return the mteb task of that name; `ParamsError` if there is none, it is no retrieval task, or lacks a
    subset.
    """
    try:
        task = mteb.get_task(name, hf_subsets=list(subsets) or None, eval_splits=list(splits) or None)
    except (KeyError, ValueError) as error:
        raise ParamsError(f"evaluate.hub_tasks: mteb cannot give the task {name!r}: {brief(error)}") from error
    if unknown := sorted(set(subsets) - set(task.hf_subsets)):
        raise ParamsError(f"evaluate.hub_tasks: {name!r} has no subset {unknown[0]!r}; it has {_all_subsets(name)}")
    named = NamedTask(task, cast(Domain, domain) if domain else _domain(task))
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
