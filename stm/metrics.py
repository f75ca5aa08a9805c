"""Retrieval metrics with a written contract, and the exact ranking that they are computed from.

Takes qrels and runs, or embeddings, and returns scores per query; knows nothing of models, tasks or files.

The contract, which is that of pytrec_eval (trec_eval) except where said:

1. `qrels[query_id][passage_id]` is an integer relevance; below 1 it counts as not relevant. The gain is linear.
2. A run is ordered by (float32 score, passage id as a string), both descending. Dictionary order never matters.
3. A query of the qrels that the run lacks scores 0 (pytrec_eval drops it, and so raises the average).
4. A query whose judgements are all below 1 scores 0. A query with no judgement at all is not scored, as in mteb.
5. Queries of the run that the qrels lack are ignored.
6. A NaN, among scores or embeddings, is an error and never a low score.
7. With `ignore_identical_ids`, the passage whose id is the query's own is taken out of the run first. That is ArguAna's
   rule, where a query is itself a passage of the corpus; as in mteb it is off unless the task asks for it.

Nothing that a caller passes in is changed.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from stm.errors import DataError

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]
Floats = npt.NDArray[np.float32]
NDCG, RECALL = METRICS = ("ndcg_at_10", "recall_at_10")  # as all reports name them
CELLS_PER_BLOCK = 8_000_000  # scores held at once: 32 MB of float32


def order_passages(scores: Mapping[str, float], k: int, query_id: str = "") -> list[str]:
    """Return the ids of the best `k` passages by rule 2; a NaN score is a `DataError`."""
    keyed = [(float(np.float32(score)), passage_id) for passage_id, score in scores.items()]
    bad = next((passage_id for score, passage_id in keyed if math.isnan(score)), None)
    if bad is not None:
        raise DataError(f"query {query_id!r}: the score of passage {bad!r} is NaN; the model or its weights are broken")
    return [passage_id for _, passage_id in sorted(keyed, reverse=True)[:k]]


def _ndcg(judged: Mapping[str, int], ranked: Sequence[str], k: int) -> float:
    gains = [max(0, judged.get(passage_id, 0)) for passage_id in ranked]
    ideal = sorted((gain for gain in judged.values() if gain > 0), reverse=True)[:k]
    best = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(ideal))
    return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains)) / best if best else 0.0


def _recall(judged: Mapping[str, int], ranked: Sequence[str], _: int) -> float:
    relevant = {passage_id for passage_id, gain in judged.items() if gain > 0}
    return sum(passage_id in relevant for passage_id in ranked) / len(relevant) if relevant else 0.0


def _per_query(
    measure: Callable[[Mapping[str, int], Sequence[str], int], float],
    qrels: Qrels,
    run: Run,
    k: int,
    ignore_identical_ids: bool,
) -> dict[str, float]:
    if k < 1:
        raise DataError(f"k is {k}; a metric needs at least one rank")
    scores = {}
    for query_id, judged in qrels.items():
        if not judged:
            continue
        found = run.get(query_id, {})
        if ignore_identical_ids:
            found = {passage_id: score for passage_id, score in found.items() if passage_id != query_id}
        scores[query_id] = measure(judged, order_passages(found, k, query_id), k)
    return scores


def ndcg_at_k(qrels: Qrels, run: Run, k: int = 10, *, ignore_identical_ids: bool = False) -> dict[str, float]:
    """Return nDCG@k in [0, 1] per judged query, in the order of `qrels`.

    DCG sums `relevance / log2(rank + 1)` over ranks 1..k and is divided by that of the ideal order (Järvelin and
    Kekäläinen 2002, linear gain, as trec_eval's `ndcg_cut`). Raises `DataError` for a NaN score.
    """
    return _per_query(_ndcg, qrels, run, k, ignore_identical_ids)


def recall_at_k(qrels: Qrels, run: Run, k: int = 10, *, ignore_identical_ids: bool = False) -> dict[str, float]:
    """Return the share of relevant passages among the first k, per judged query, in the order of `qrels`.

    As trec_eval's `recall`: the divisor is the number of relevant passages, even where that is more than k. Raises
    `DataError` for a NaN score.
    """
    return _per_query(_recall, qrels, run, k, ignore_identical_ids)


def missing_queries(qrels: Qrels, run: Run) -> list[str]:
    """Return the judged queries that the run lacks or leaves empty, sorted; they score 0 and are to be reported."""
    return sorted(query_id for query_id, judged in qrels.items() if judged and not run.get(query_id))


def mean(scores: Mapping[str, float]) -> float:
    """Return the mean over queries; `DataError` when there are none, since an average of nothing is no score."""
    if not scores:
        raise DataError("there are no scores to average; the qrels judge no query")
    return math.fsum(scores.values()) / len(scores)


def _check_side(kind: str, embeddings_ND: Floats, ids: Sequence[str]) -> None:
    if embeddings_ND.ndim != 2 or len(embeddings_ND) != len(ids):
        shape = "x".join(str(size) for size in embeddings_ND.shape)
        raise DataError(f"{len(ids)} {kind} ids come with embeddings of shape {shape}; expected one row per id")
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        double = next(key for key in ids if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DataError(f"the {kind} id {double!r} appears twice; ids must be unique")
    finite_N = np.isfinite(embeddings_ND).all(axis=1)
    if not finite_N.all():
        first = ids[int(np.argmin(finite_N))]
        count = int((~finite_N).sum())
        raise DataError(
            f"{count} {kind} embedding(s) hold NaN or infinity, first at {first!r}; "
            "the model's weights are broken or overflow in this precision"
        )


def rank(
    query_embeddings_QD: Floats,
    passage_embeddings_PD: Floats,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    k: int,
    *,
    ignore_identical_ids: bool = False,
) -> dict[str, dict[str, float]]:
    """Return the exact top `k` passages per query by dot product, as `run[query_id][passage_id] = score`, best first.

    Q queries, P passages, D dimensions; L2-normalised rows make the score a cosine. Ties are broken by rule 2, so that
    the cut at `k` is no accident of memory order. With `ignore_identical_ids` the query's own passage is left out
    before the cut. Raises `DataError` for NaN or infinite embeddings, duplicate ids, and shapes that do not fit.
    """
    if k < 1:
        raise DataError(f"k is {k}; a ranking needs at least one rank")
    _check_side("query", query_embeddings_QD, query_ids)
    _check_side("passage", passage_embeddings_PD, passage_ids)
    if query_embeddings_QD.shape[1] != passage_embeddings_PD.shape[1]:
        sizes = f"{query_embeddings_QD.shape[1]} and {passage_embeddings_PD.shape[1]}"
        raise DataError(f"queries and passages have {sizes} dimensions; encode both with the same model")
    if not passage_ids:
        return {query_id: {} for query_id in query_ids}
    run = _rank_blocks(query_embeddings_QD, passage_embeddings_PD, query_ids, passage_ids, k + ignore_identical_ids)
    if ignore_identical_ids:
        for query_id, found in run.items():
            found.pop(query_id, None)
            run[query_id] = dict(list(found.items())[:k])
    return run


def _rank_blocks(
    queries_QD: Floats, passages_PD: Floats, query_ids: Sequence[str], passage_ids: Sequence[str], k: int
) -> dict[str, dict[str, float]]:
    by_id = sorted(range(len(passage_ids)), key=lambda index: passage_ids[index], reverse=True)
    ids = [passage_ids[index] for index in by_id]  # descending, so that a stable sort breaks ties by rule 2
    passages_DP = np.ascontiguousarray(passages_PD[by_id].T, dtype=np.float32)
    depth, block = min(len(ids), k), max(1, CELLS_PER_BLOCK // len(ids))
    run: dict[str, dict[str, float]] = {}
    for start in range(0, len(query_ids), block):
        scores_BP = np.asarray(queries_QD[start : start + block], dtype=np.float32) @ passages_DP
        worst_B = np.partition(scores_BP, -depth, axis=1)[:, -depth]
        for query_id, scores_P, worst in zip(query_ids[start : start + block], scores_BP, worst_B, strict=True):
            kept = np.flatnonzero(scores_P >= worst)
            kept = kept[np.argsort(-scores_P[kept], kind="stable")][:depth]
            run[query_id] = {ids[index]: float(scores_P[index]) for index in kept}
    return run
