"""Scores models on the dev tasks: reduced tasks, their queries cut in two halves, nDCG@10 per task and half.

A search may look at the half "search" only; the half "holdout" is for the last decision and the report. Does not know
what is being scored: it takes an encoder and prompts.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from stm.errors import DataError
from stm.halves import cut_in_halves
from stm.metrics import mean, ndcg_at_k, rank
from stm.tasks import Task, choose_tasks
from stm.text_encoder import Floats, TextEncoder

K = 10
HALVES = ("search", "holdout")


class CountingEncoder(TextEncoder, Protocol):
    """An encoder that counts the tokens it has encoded."""

    tokens: int


@dataclass(frozen=True)
class Scores:
    """nDCG@10 by task, half and query: `per_query[task]["search"][query_id]`."""

    per_query: Mapping[str, Mapping[str, Mapping[str, float]]]

    def tasks(self) -> dict[str, dict[str, float]]:
        """The mean by task and half."""
        return {task: {half: mean(halves[half]) for half in HALVES} for task, halves in self.per_query.items()}

    def queries_overall(self) -> dict[str, dict[str, float]]:
        """By task and query, both halves together."""
        return {task: {**halves["search"], **halves["holdout"]} for task, halves in self.per_query.items()}

    def tasks_overall(self) -> dict[str, float]:
        """The mean by task over all queries, both halves together."""
        return {task: mean(scores) for task, scores in self.queries_overall().items()}

    def mean(self, half: str) -> float:
        """The mean over tasks of one half."""
        return mean({task: mean(halves[half]) for task, halves in self.per_query.items()})


def cut_in_two(task: Task, seed: int) -> dict[str, str]:
    """Assign each query of the task to "search" or "holdout", as `cut_in_halves` does.

    The order is a hash of seed, task and query id, so that it does not follow the order in which queries were
    written.
    """
    keys = {
        query_id: hashlib.sha256(f"{seed}\0{task.name}\0{query_id}".encode()).hexdigest() for query_id in task.queries
    }
    halves = cut_in_halves(task, sorted(keys, key=lambda query_id: (keys[query_id], query_id)))
    return {query_id: name for name, half in zip(HALVES, halves, strict=True) for query_id in half}


@dataclass(frozen=True)
class DevSet:
    """The reduced tasks, in name order, with the half of every query; passages that several tasks share stand
    once.
    """

    tasks: tuple[Task, ...]
    halves: Mapping[str, Mapping[str, str]]
    texts: tuple[str, ...]  # the distinct passage texts
    rows: Mapping[
        str, tuple[int, ...]
    ]  # per task: the row in `texts` of each passage, in the order of the task's corpus

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Queries and passages per task, as scored."""
        return {task.name: {"queries": len(task.queries), "passages": len(task.corpus)} for task in self.tasks}


def make_dev_set(tasks: Sequence[Task], names: Sequence[str], max_queries: int, max_passages: int, seed: int) -> DevSet:
    """Choose and reduce tasks as `choose_tasks` does, and cut their queries in two.

    `DataError` for an unknown name and for a task with fewer than two queries.
    """
    tasks = sorted(tasks, key=lambda task: task.name)
    capped = tuple(choose_tasks(tasks, names, max_queries, max_passages, seed))
    for task in capped:
        if len(task.queries) < len(HALVES):
            raise DataError(
                f"the dev task {task.name!r} has {len(task.queries)} judged queries; dev needs at least two"
            )
    positions: dict[str, int] = {}
    rows = {
        task.name: tuple(positions.setdefault(passage.full_text(), len(positions)) for passage in task.corpus.values())
        for task in capped
    }
    return DevSet(capped, {task.name: cut_in_two(task, seed) for task in capped}, tuple(positions), rows)


def query_texts(dev: DevSet) -> list[str]:
    """All queries, task after task."""
    return [text for task in dev.tasks for text in task.queries.values()]


def score_embeddings(dev: DevSet, queries_QD: Floats, passages_PD: Floats) -> Scores:
    """nDCG@10 from the embeddings of `query_texts(dev)` and of `dev.texts`."""
    per_query, start = {}, 0
    for task in dev.tasks:
        block_QD = queries_QD[start : start + len(task.queries)]
        start += len(task.queries)
        passages = passages_PD[list(dev.rows[task.name])]
        ignores = task.ignores_identical_ids
        run = rank(block_QD, passages, list(task.queries), list(task.corpus), K, ignore_identical_ids=ignores)
        scores = ndcg_at_k(task.qrels, run, K, ignore_identical_ids=ignores)
        halves = dev.halves[task.name]
        per_query[task.name] = {half: {q: s for q, s in scores.items() if halves[q] == half} for half in HALVES}
    return Scores(per_query)


def score_model(dev: DevSet, encoder: CountingEncoder, prompts: Mapping[str, str]) -> Scores:
    """Encode and score; `prompts` has the texts "query" and "document" (missing: empty)."""
    return score_embeddings(dev, *embed(dev, encoder, prompts))


def embed(dev: DevSet, encoder: CountingEncoder, prompts: Mapping[str, str]) -> tuple[Floats, Floats]:
    """The embeddings of `query_texts(dev)` and of `dev.texts`."""
    passages = encoder.encode(dev.texts, prompts.get("document", ""), "dev passages")
    return encoder.encode(query_texts(dev), prompts.get("query", ""), "dev queries"), passages
