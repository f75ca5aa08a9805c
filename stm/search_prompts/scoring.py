"""The score of an instruction: nDCG@10 on dev queries, with the passages encoded once and only the queries per
instruction.

Takes tasks and an encoder; returns outcomes per query, kept so that nothing is encoded twice. Does not know where
instructions come from.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stm.metrics import ndcg_at_k, rank
from stm.search_prompts.halves import Item
from stm.tasks import Task
from stm.text_encoder import Floats, TextEncoder

CUT = 10
SHOWN = 3  # passages kept per outcome, for feedback


class PassageEncoder(TextEncoder, Protocol):
    """An encoder that knows its model's passage prompt."""

    def encode_passages(self, texts: Sequence[str]) -> Floats:
        """Return float32 unit rows [N, D] of passages, each after the model's own prompt."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What an instruction did for one query."""

    score: float  # nDCG@10 in [0, 1]
    top: tuple[str, ...]  # ids of the first passages, best first
    wanted: str  # id of the best-placed relevant passage that a less relevant one precedes; if none, of the best-placed
    position: int  # its rank from 1


class Scorer:
    """Scores instructions on dev queries; the passages of all tasks are encoded when it is made, each distinct text
    once.
    """

    def __init__(self, tasks: Sequence[Task], encoder: PassageEncoder, render: Callable[[str], str]) -> None:
        self.tasks = {task.name: task for task in tasks}
        self._encoder, self._render = encoder, render
        self._outcomes: dict[tuple[str, Item], Outcome] = {}
        self.encoded_queries = 0
        texts = [passage.full_text() for task in tasks for passage in task.corpus.values()]
        distinct = list(dict.fromkeys(texts))
        self.encoded_passages = len(distinct)
        rows = dict(zip(distinct, encoder.encode_passages(distinct), strict=True))
        self._passages = {
            task.name: np.stack([rows[passage.full_text()] for passage in task.corpus.values()]) for task in tasks
        }

    def outcomes(self, instruction: str, items: Sequence[Item]) -> list[Outcome]:
        """Return what the instruction does for each item; only queries not seen with it before are encoded."""
        missing = sorted({item for item in items if (instruction, item) not in self._outcomes})
        if missing:
            texts = [self.tasks[item.task].queries[item.query_id] for item in missing]
            rows = self._encoder.encode(texts, prompt=self._render(instruction), description="score an instruction")
            self.encoded_queries += len(missing)
            for name in sorted({item.task for item in missing}):
                picked = [index for index, item in enumerate(missing) if item.task == name]
                self._judge(instruction, name, [missing[index].query_id for index in picked], rows[picked])
        return [self._outcomes[instruction, item] for item in items]

    def _judge(self, instruction: str, name: str, query_ids: list[str], queries_QD: Floats) -> None:
        task, passages_PD = self.tasks[name], self._passages[name]
        ids = list(task.corpus)
        place = {passage_id: index for index, passage_id in enumerate(ids)}
        ignores = task.ignores_identical_ids
        run = rank(queries_QD, passages_PD, query_ids, ids, CUT, ignore_identical_ids=ignores)
        qrels = {query_id: task.qrels[query_id] for query_id in query_ids}
        scores = ndcg_at_k(qrels, run, CUT, ignore_identical_ids=ignores)
        for query_id, query_D in zip(query_ids, queries_QD, strict=True):
            similarity_P = passages_PD @ query_D
            if ignores and query_id in place:
                similarity_P[place[query_id]] = -np.inf
            grades = {place[p]: score for p, score in sorted(task.qrels[query_id].items()) if score > 0}
            grades_P = np.zeros(len(ids))
            grades_P[list(grades)] = list(grades.values())
            before = {grade: similarity_P[grades_P < grade].max(initial=-np.inf) for grade in set(grades.values())}
            late = [index for index, grade in grades.items() if similarity_P[index] <= before[grade]]
            wanted = ids[max(late or grades, key=lambda index: similarity_P[index])]
            position = 1 + int((similarity_P > similarity_P[place[wanted]]).sum())
            outcome = Outcome(scores[query_id], tuple(run[query_id])[:SHOWN], wanted, position)
            self._outcomes[instruction, Item(name, query_id)] = outcome

    def mean(self, instruction: str, items: Sequence[Item]) -> float:
        """Mean nDCG@10 over the items."""
        return float(np.mean([outcome.score for outcome in self.outcomes(instruction, items)]))

    def by_task(self, instruction: str, items: Sequence[Item]) -> dict[str, float]:
        """Mean nDCG@10 per task."""
        names = sorted({item.task for item in items})
        return {name: self.mean(instruction, [item for item in items if item.task == name]) for name in names}

    def reencoding_ratio(self, instruction: str, items: Sequence[Item]) -> float:
        """Characters encoded per score if passages were encoded each time, over those of the queries alone."""
        prompt = len(self._render(instruction))
        queries = sum(prompt + len(self.tasks[item.task].queries[item.query_id]) for item in items)
        passages = sum(len(p.full_text()) for task in self.tasks.values() for p in task.corpus.values())
        return (queries + passages) / queries
