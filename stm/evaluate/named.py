"""From the params' names of mteb tasks and benchmarks to task objects.

Keeps the hub modules unloaded where nothing is named. Does not load data.
"""

from stm.evaluate.hub import NamedTask, find_benchmark, find_task, go_offline, is_hub_reachable
from stm.params.evaluate import EvaluateParams
from stm.progress import say


def load_named_tasks(params: EvaluateParams) -> list[NamedTask]:
    """Return the named tasks, benchmarks first, each task once; `ParamsError` for an unknown name.

    Where the hub does not answer, the hub client is told so: tasks in its cache still run.
    """
    found = [task for benchmark in params.benchmarks for task in find_benchmark(benchmark)]
    found += [find_task(item.name, item.subsets, item.splits, item.domain) for item in params.hub_tasks]
    distinct = {named.task.metadata.name: named for named in found}
    if distinct and not is_hub_reachable():
        say("the model hub does not answer: of mteb's tasks only those in the local cache are run")
        go_offline()
    return list(distinct.values())
