"""One model's evaluation from its folder to the report that the stage writes: local tasks, tasks of mteb, slices.

Takes a folder, a row of params and the task folders, writes nothing but the embedding store. Does not know where the
folder came from.
"""

import time
from itertools import islice
from pathlib import Path
from typing import Any

from mteb.results import TaskResult

from stm.evaluate.dense import open_model
from stm.evaluate.named import NamedTask
from stm.evaluate.record import Evaluation, describe, read_local_tasks, run_hub, run_local
from stm.evaluate.robustness import ChangedQueries
from stm.model_hash import hash_model
from stm.params.evaluate import EvaluateParams, ModelEntry, OutsideEntry

LOOKED_AT = 500  # passages of a task, to see how many are longer than the model takes
Entry = ModelEntry | OutsideEntry


def about_model(name: str, entry: Entry, model_hash: str) -> dict[str, Any]:
    """Return what the report says of a row of the tables `models` and `outside`, whether it ran or not."""
    if isinstance(entry, OutsideEntry):
        return describe(name, entry.label, "outside", f"{entry.id}@{entry.revision[:12]}", model_hash, entry.group)
    return describe(name, entry.label, entry.role, entry.path, model_hash, entry.group)


def evaluate_folder(
    name: str, folder: Path | str, entry: Entry, params: EvaluateParams, tasks: Path | str, named: list[NamedTask]
) -> tuple[dict[str, Any], dict[str, TaskResult]]:
    """Score the model at `folder` on the task folders under `tasks` and on mteb's `named` ones.

    Returns the report and mteb's own results. Raises `ModelError` for a folder that is no model, `DataError` for a
    task that is not one or for vectors that are not numbers.
    """
    started = time.monotonic()
    local = read_local_tasks(tasks)
    model_hash = hash_model(Path(folder))
    prompts = {"query": entry.query_prompt, "document": entry.passage_prompt}
    opened = open_model(name, folder, model_hash, params, prompts)
    evaluation = Evaluation()
    slices: dict[str, dict[str, float]] = {}
    for task, revision in local:
        changed = ChangedQueries(opened, task, params.slice_queries, params.slice_seed)
        with opened.watched(changed.search):
            run_local(evaluation, opened, [(task, revision)])
        first = [passage.full_text() for passage in islice(task.corpus.values(), LOOKED_AT)]
        evaluation.tasks[task.name]["cut"] = opened.share_cut(first)
        for kind, score in changed.scores().items():
            slices.setdefault(kind, {})[task.name] = score
    run_hub(evaluation, opened, named)
    about = {**about_model(name, entry, model_hash), "prompts": opened.prompts}
    seconds = round(time.monotonic() - started, 1)
    return {**about, **evaluation.as_json(), "robustness": slices, "seconds": seconds}, evaluation.results
