"""Retrieval tasks of this project as mteb tasks.

Takes a `stm.tasks.Task` and returns a task object that mteb runs like any of its own. Knows no hub: nothing
is downloaded, and the task is in no registry of mteb.
"""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

from stm.evaluate.corpus import DiskCorpus
from stm.tasks import Passage, Task

SPLIT, SUBSET = "test", "default"


def _metadata(task: Task, revision: str) -> TaskMetadata:
    return TaskMetadata(
        name=task.name,
        description="A retrieval task of this project, run by mteb; it is no part of any MTEB benchmark.",
        type="Retrieval",
        category="t2t",
        dataset={"path": f"local/{task.name}", "revision": revision},
        eval_splits=[SPLIT],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        domains=["Medical"] if task.domain == "medical" else None,
    )


def _corpus(corpus: Mapping[str, Passage]) -> Dataset:
    if isinstance(corpus, DiskCorpus):
        return corpus.dataset
    passages = corpus.values()
    titles, texts = [passage.title for passage in passages], [passage.text for passage in passages]
    return Dataset.from_dict({"id": list(corpus), "title": titles, "text": texts})


class LocalTask(AbsTaskRetrieval):  # type: ignore[misc]
    """One `Task` in mteb's form; `revision` is the hash of its data.

    ArguAna's rule (the query's own passage does not count) is on where the task's notes say `ignore_identical_ids`.
    """

    def __init__(self, task: Task, revision: str) -> None:
        self.metadata = _metadata(task, revision)
        self.ignore_identical_ids = task.ignores_identical_ids
        super().__init__()
        self._task = task

    def load_data(self, **_: Any) -> None:
        """Fill `dataset` from the task, queries without a judgement left out."""
        queries = {key: text for key, text in self._task.queries.items() if self._task.qrels.get(key)}
        self.dataset = {
            SUBSET: {
                SPLIT: {
                    "corpus": _corpus(self._task.corpus),
                    "queries": Dataset.from_dict({"id": list(queries), "text": list(queries.values())}),
                    "relevant_docs": {key: dict(self._task.qrels[key]) for key in queries},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True

    def unload_data(self) -> None:
        """Drop the data, as mteb does, but not the metadata, which here belongs to the object and to no class."""
        self.dataset, self.data_loaded = {}, False
