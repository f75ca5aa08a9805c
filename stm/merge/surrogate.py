"""Bulk scores of mixes whose embeddings are weighted sums of the embeddings of a few anchors, without a forward pass.

All scores come from inner products between the anchors. Which weights a mix has, and how far its score may be trusted,
is decided elsewhere. Knows nothing of the search.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stm.merge.dev import DevSet, K
from stm.progress import Meter
from stm.text_encoder import Floats

Doubles = npt.NDArray[np.float64]
CANDIDATES_PER_BLOCK = 64
MOST_CELLS = 100_000  # query-passage pairs of all tasks together; ten thousand candidates then take half a minute
MOST_VALUES = 2**27  # inner products of all pairs of anchors: half a GB


@dataclass(frozen=True)
class _TaskGrams:
    """One task's inner products between all pairs of anchors (A anchors, Q queries of the search half, P
    passages).
    """

    scores: Tensor  # [A * A, Q * P]: query of anchor i with passage of anchor j
    norms: Tensor  # [A * A, P]: passage of anchor i with the same passage of anchor j
    gains: Tensor  # [Q, P]: judged relevance
    ideal: Tensor  # [Q]: the best DCG@10
    ignored: Tensor  # [Q, P]: whether the passage does not count for the query


class Surrogate:
    """Bulk scores of mixes from the embeddings of `anchors`: one pair (queries, passages) per anchor, as
    `score_model` makes them.

    Of large tasks a part is enough to rank by: every n-th query, and beside the passages judged for these every n-th
    other one, so that the cost stays below `MOST_CELLS`.
    """

    def __init__(self, dev: DevSet, anchors: Sequence[tuple[Floats, Floats]]) -> None:
        self._size = len(anchors)
        queries_AQD = torch.stack([torch.from_numpy(queries) for queries, _ in anchors])
        passages_APD = torch.stack([torch.from_numpy(passages) for _, passages in anchors])
        self._tasks, start = [], 0
        cells = min(MOST_CELLS, MOST_VALUES // self._size**2) // len(dev.tasks)
        for task in dev.tasks:
            halves, ids, corpus = dev.halves[task.name], list(task.queries), list(task.corpus)
            kept = [index for index, query_id in enumerate(ids) if halves[query_id] == "search"]
            gains = _gains([task.qrels[ids[index]] for index in kept], corpus)
            ignored = torch.zeros_like(gains, dtype=torch.bool)
            if task.ignores_identical_ids:
                ignored = torch.tensor([[passage_id == ids[index] for passage_id in corpus] for index in kept])
            queries, passages = _thin(gains, cells)
            block_AQD = queries_AQD[:, [start + kept[index] for index in queries]]
            start += len(ids)
            rows = [dev.rows[task.name][index] for index in passages]
            gains, ignored = gains[queries][:, passages], ignored[queries][:, passages]
            self._tasks.append(_make_grams(block_AQD, passages_APD[:, rows], gains, ignored))

    def score(self, weights_CA: Doubles) -> Doubles:
        """Mean nDCG@10 over tasks on the search half, for C candidates with one weight per anchor."""
        weights = torch.from_numpy(np.asarray(weights_CA, dtype=np.float32))
        blocks = []
        with Meter("rank candidates", len(weights)) as meter:
            for block in torch.split(weights, CANDIDATES_PER_BLOCK):
                pairs = (block[:, :, None] * block[:, None, :]).reshape(len(block), self._size**2)
                blocks.append(torch.stack([_score_block(pairs, task) for task in self._tasks]).mean(dim=0))
                meter.advance(len(block))
        return torch.cat(blocks).double().numpy()


def _thin(gains: Tensor, cells: int) -> tuple[list[int], list[int]]:
    """Queries and passages of a task with gains [Q, P], no more than `cells` pairs unless the judged alone are more."""
    queries, passages = gains.shape
    if queries * passages <= cells:
        return list(range(queries)), list(range(passages))
    kept = _spread(list(range(queries)), max(1, int((cells / 4) ** 0.5)))  # four passages to a query
    judged = (gains[kept] > 0).any(dim=0)
    others = [index for index in range(passages) if not judged[index]]
    chosen = _spread(others, max(K, cells // len(kept) - int(judged.sum())))
    return kept, sorted([*judged.nonzero().flatten().tolist(), *chosen])


def _spread(items: list[int], most: int) -> list[int]:
    """At most so many of the items, evenly spread."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _gains(judged: Sequence[Mapping[str, int]], passage_ids: Sequence[str]) -> Tensor:
    return torch.tensor([[float(max(0, row.get(p, 0))) for p in passage_ids] for row in judged])


def _discounts(depth: int) -> Tensor:
    return 1 / torch.log2(torch.arange(depth) + 2.0)


def _make_grams(queries_AQD: Tensor, passages_APD: Tensor, gains: Tensor, ignored: Tensor) -> _TaskGrams:
    anchors = len(queries_AQD)
    scores = torch.einsum("iqd,jpd->ijqp", queries_AQD, passages_APD).reshape(anchors**2, -1)
    norms = torch.einsum("ipd,jpd->ijp", passages_APD, passages_APD).reshape(anchors**2, -1)
    depth = min(K, gains.shape[1])
    ideal = (gains.topk(depth, dim=1).values * _discounts(depth)).sum(dim=1).clamp_min(1e-12)
    return _TaskGrams(scores, norms, gains.masked_fill(ignored, 0), ideal, ignored)


def _score_block(pairs: Tensor, task: _TaskGrams) -> Tensor:
    """Mean nDCG@10 per candidate. A query's own norm does not change its ranking and is left out."""
    queries, passages = task.gains.shape
    scores = (pairs @ task.scores).view(len(pairs), queries, passages)
    norms = (pairs @ task.norms).clamp_min(1e-12).sqrt()
    depth = min(K, passages)
    top = (scores / norms[:, None, :]).masked_fill(task.ignored, -torch.inf).topk(depth, dim=2).indices
    gains = task.gains.expand(len(pairs), -1, -1).gather(2, top)
    return ((gains * _discounts(depth)).sum(dim=2) / task.ideal).mean(dim=1)
