"""From the params' names of mteb tasks and benchmarks to task objects.

A task's data comes from a local copy of its data set where there is one, else from the hub or its cache. Does not load
data.
"""

from pathlib import Path

from stm.errors import ParamsError
from stm.evaluate.hub import NamedTask, find_benchmark, find_task, go_offline
from stm.files import sha256_tree
from stm.hub_models import is_hub_reachable
from stm.params.evaluate import EvaluateParams
from stm.progress import say


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
    found += [find_task(item.name, item.subsets, item.splits, item.domain) for item in params.hub_tasks]
    distinct = list({named.task.metadata.name: named for named in found}.values())
    if params.hub_folder and not Path(params.hub_folder).is_dir():
        raise ParamsError(f"evaluate.hub_folder: {params.hub_folder!r} is no folder; leave it empty for the hub")
    runnable = [named for named in distinct if not named.refusal]
    remote = [named for named in runnable if not params.hub_folder or not use_copy(named, Path(params.hub_folder))]
    if remote and not is_hub_reachable():
        say("the model hub does not answer: of mteb's tasks only those in the local cache are run")
        go_offline()
    return distinct
