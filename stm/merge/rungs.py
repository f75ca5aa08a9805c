"""Cheap rungs of the multi-fidelity search: few queries of the search half against a pool of candidate passages.

A rung is a reduced dev set that knows where its texts lie in the whole one, so that what has been evaluated in full has
its rung score for free. Does not know models or the search.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stm.merge.dev import DevSet, K
from stm.metrics import rank
from stm.tasks import Task
from stm.text_encoder import Floats

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rung:
    """`queries` and `passages` are the rows of the rung's texts among those of the whole dev set."""

    name: str
    dev: DevSet
    queries: Rows
    passages: Rows


def make_rung(dev: DevSet, share: float, anchors: Sequence[tuple[Floats, Floats]]) -> Rung:
    """The first `share` of each task's queries of the search half (one at least), and their pooled passages.

    The pool of a query is what is judged for it and what any anchor (its embeddings of all queries and of `dev.texts`)
    ranks among the first ten: pooling as in TREC, with the experts as the systems.
    """
    tasks: list[Task] = []
    texts: dict[int, int] = {}  # row among the texts of `dev` -> row among the rung's
    rows_by_task: dict[str, tuple[int, ...]] = {}
    query_rows, start = [], 0
    for task in dev.tasks:
        halves, ids = dev.halves[task.name], list(task.queries)
        of_search = [query_id for query_id in ids if halves[query_id] == "search"]
        kept = of_search[: max(1, round(share * len(of_search)))]
        places = [start + ids.index(query_id) for query_id in kept]
        start += len(ids)
        pool = _pool(task, kept, places, dev.rows[task.name], anchors)
        rows = dict(zip(task.corpus, dev.rows[task.name], strict=True))
        corpus = {passage_id: task.corpus[passage_id] for passage_id in task.corpus if passage_id in pool}
        rows_by_task[task.name] = tuple(texts.setdefault(rows[passage_id], len(texts)) for passage_id in corpus)
        queries = {query_id: task.queries[query_id] for query_id in kept}
        judged = {query_id: task.qrels[query_id] for query_id in kept}
        tasks.append(Task(task.name, task.domain, corpus, queries, judged, task.notes))
        query_rows += places
    halves_by_task = {task.name: dict.fromkeys(task.queries, "search") for task in tasks}
    reduced = DevSet(tuple(tasks), halves_by_task, tuple(dev.texts[row] for row in texts), rows_by_task)
    return Rung(f"{share:g}", reduced, np.array(query_rows), np.array(list(texts)))


def _pool(
    task: Task, kept: Sequence[str], places: Sequence[int], rows: Sequence[int],
    anchors: Sequence[tuple[Floats, Floats]],
) -> set[str]:  # fmt: skip
    found = {passage_id for query_id in kept for passage_id in task.qrels[query_id]}
    for queries, passages in anchors:
        run = rank(
            queries[list(places)], passages[list(rows)], list(kept), list(task.corpus), K,
            ignore_identical_ids=task.ignores_identical_ids,
        )  # fmt: skip
        found |= {passage_id for scores in run.values() for passage_id in scores}
    return found
