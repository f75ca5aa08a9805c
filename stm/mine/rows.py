"""Hard negatives for training rows, given or retrieved, with a margin and a guard against false negatives.

Rows go in, the same rows with ranked negatives and a statistics report come out. The margin is that of NV-Retriever
(arXiv 2407.15831): a negative must score clearly below the positive of its own row. Knows nothing of files or of
training.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from stm.bm25 import Index, tokenize, top_k
from stm.mine.judges import Judge, Question
from stm.mine.pool import Candidate, Guard, Pool
from stm.mine.tally import Tally
from stm.params.mine import MineParams
from stm.progress import say, track
from stm.schema import explode_negatives, replace_negatives

Floats = npt.NDArray[np.float32]
DENSE_BATCH = 64  # queries per similarity block, so that a block of a million passages stays at 256 MB
CHUNK = 1024  # rows whose candidates are in memory at once, and which judges see together; more for batch files


@dataclass
class Draft:
    """A row with all candidates that the guard let through, the best first; `judged` of them have passed all judges."""

    row: dict[str, Any]
    ranked: list[Candidate]
    positive_score: float
    judged: int = 0


def mine(
    rows: pl.DataFrame, params: MineParams, judges: Mapping[str, Judge] | None = None
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the rows with at most `params.negatives` negatives each, and the report.

    Given negatives come first (up to `max_given`), then retrieved ones, each group by falling score. With a dense model
    its cosines judge the margin and BM25 proposes beside it; otherwise BM25 scores do both. Synthetic negatives are set
    aside: they are `synthesize`'s. Where given ones fill a row and nobody judges them, nothing is retrieved for it, so
    that the report counts no retrieved one as refused there. Same input, same output.
    """
    rows, set_aside = _without_synthetic(rows)
    pool, tally = Pool.build(rows), Tally()
    negatives: list[list[str]] = []
    origins: list[list[str]] = []
    drafts = _drafts(rows, pool, params, tally, retrieve_always=bool(judges))
    endpoint, asked = params.judge.endpoint, max(1, params.negatives)
    size = max(CHUNK, endpoint.requests_at_once // asked) if params.judge.llm else CHUNK
    while chunk := list(islice(drafts, size)):
        if judges:
            _let_judge(chunk, judges, pool, params.negatives, tally)
        for draft in chunk:
            kept = draft.ranked[: params.negatives]
            tally.add(kept, draft.positive_score)
            negatives.append([pool.passages[candidate.position] for candidate in kept])
            origins.append([candidate.origin for candidate in kept])
    columns = [pl.Series("negatives", negatives, pl.List(pl.String)), pl.Series("origins", origins, pl.List(pl.String))]
    report = {**tally.report(), "passages": len(pool.passages), "synthetic_set_aside": set_aside}
    report["judges"] = {name: judge.report() for name, judge in (judges or {}).items()}
    return rows.with_columns(columns), report


def _without_synthetic(rows: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Rows without their synthetic negatives, and how many those were."""
    long = explode_negatives(rows)
    kept = long.filter(pl.col("origins") != "synthetic")
    return replace_negatives(rows, kept), long.height - kept.height


def _drafts(
    rows: pl.DataFrame, pool: Pool, params: MineParams, tally: Tally, *, retrieve_always: bool
) -> Iterator[Draft]:
    """Score the passages for one query after the other: no queries x passages matrix ever exists.

    Nothing is retrieved for a row that its given negatives fill, unless a judge may refuse some of them.
    """
    say(f"mine: indexing {len(pool.passages)} passages")
    anchors = rows["anchor"].to_list()
    words = dict(zip(anchors, tokenize(anchors), strict=True))  # all at once: one by one they take longer than scoring
    index = Index(pool.passages, cut_queries=lambda queries: [words[query] for query in queries])
    columns = rows.select("positive", "negatives").iter_rows()
    places = [[pool.position[text] for text in (positive, *negatives)] for positive, negatives in columns]
    near = index.score_at(anchors, places)
    dense = _dense_scores(rows, pool.passages, params) if params.dense_model else None
    for row, own in zip(track(rows.iter_rows(named=True), "mine", rows.height), places, strict=True):
        dense_P = None if dense is None else next(dense)
        positive_score, *scores = (next(near) if dense_P is None else dense_P[own]).tolist()
        guard = Guard(pool, params, row["anchor"], row["positive"], row["concept"], positive_score)
        proposed = [Candidate(position, "given", score) for position, score in zip(own[1:], scores, strict=True)]
        given = _accept(proposed, guard, tally)
        first, rest = given[: params.max_given], given[params.max_given :]
        found: list[Candidate] = []
        if retrieve_always or len(first) < params.negatives:
            found = _accept(_retrieve(next(index.score([row["anchor"]])), dense_P, params), guard, tally)
        yield Draft(row, [*first, *found, *rest], positive_score)


def _accept(candidates: Sequence[Candidate], guard: Guard, tally: Tally) -> list[Candidate]:
    """Those that may be negatives by falling score; equal scores keep their order."""
    kept: list[Candidate] = []
    for candidate in candidates:
        if reason := guard.refuse(candidate):
            tally.refuse(candidate.origin, reason)
        else:
            kept.append(candidate)
    return sorted(kept, key=lambda candidate: -candidate.score)


def _retrieve(lexical_P: Floats, dense_P: Floats | None, params: MineParams) -> list[Candidate]:
    """The passages in the rank window of BM25 and of the dense model, if there is one; its scores are then theirs."""
    scores_P = lexical_P if dense_P is None else dense_P
    ranked = [("bm25", lexical_P)] + ([] if dense_P is None else [("dense", dense_P)])
    return [
        Candidate(int(position), origin, float(scores_P[position]))
        for origin, by_P in ranked
        for position in top_k(by_P, params.rank_to)[params.rank_from - 1 :]
    ]


def _dense_scores(rows: pl.DataFrame, passages: Sequence[str], params: MineParams) -> Iterator[Floats]:
    """Yield `scores_P` (cosines) per row; one block of queries at a time. `DataError` if an embedding is not finite."""
    # Imported here: a stage without a dense model must not load torch.
    from stm.encode import Encoder
    from stm.named_models import check_finite, load_retriever

    encoder = Encoder(load_retriever(params.dense_model, params.dense_revision))
    passages_PD = check_finite(encoder.encode_passages(list(passages)), params.dense_model)
    queries_QD = check_finite(encoder.encode_queries(rows["anchor"].to_list()), params.dense_model)
    for start in range(0, len(queries_QD), DENSE_BATCH):
        yield from queries_QD[start : start + DENSE_BATCH] @ passages_PD.T


def _let_judge(chunk: Sequence[Draft], judges: Mapping[str, Judge], pool: Pool, most: int, tally: Tally) -> None:
    """Show the judges what would be kept; what one refuses makes room for the next candidate, which they see too."""
    while asked := [(draft, candidate) for draft in chunk for candidate in draft.ranked[draft.judged : most]]:
        for draft in chunk:
            draft.judged = min(most, len(draft.ranked))
        for (draft, candidate), reason in zip(asked, _ask(judges, _questions(asked, pool)), strict=True):
            if reason:
                tally.refuse(candidate.origin, reason)
                draft.ranked.remove(candidate)
                draft.judged -= 1


def _ask(judges: Mapping[str, Judge], questions: Sequence[Question]) -> list[str]:
    """The first reason that a judge has against each passage; later judges see only what the earlier ones passed."""
    reasons = [""] * len(questions)
    for judge in judges.values():
        open_ = [place for place, reason in enumerate(reasons) if not reason]
        for place, reason in zip(open_, judge.judge([questions[place] for place in open_]), strict=True):
            reasons[place] = reason
    return reasons


def _questions(asked: Sequence[tuple[Draft, Candidate]], pool: Pool) -> list[Question]:
    return [
        Question(
            draft.row["instruction"], draft.row["anchor"], draft.row["positive"], pool.passages[candidate.position]
        )
        for draft, candidate in asked
    ]
