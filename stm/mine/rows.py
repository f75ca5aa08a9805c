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

from stm.bm25 import Index, top_k
from stm.mine.judges import Judge, Question
from stm.mine.pool import Candidate, Guard, Pool
from stm.mine.tally import Tally
from stm.params.mine import MineParams
from stm.progress import track
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
    aside: they are `synthesize`'s. Same input, same output.
    """
    rows, set_aside = _without_synthetic(rows)
    pool, tally = Pool.build(rows), Tally()
    negatives: list[list[str]] = []
    origins: list[list[str]] = []
    drafts = _drafts(rows, pool, params, tally)
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


def _drafts(rows: pl.DataFrame, pool: Pool, params: MineParams, tally: Tally) -> Iterator[Draft]:
    """Score the passages for one query after the other: no queries x passages matrix ever exists."""
    lexical = Index(pool.passages).score(rows["anchor"].to_list())
    dense = _dense_scores(rows, pool.passages, params) if params.dense_model else None
    for row in track(rows.iter_rows(named=True), "mine", rows.height):
        scores_P = next(lexical)
        proposals = [(pool.position[text], "given") for text in row["negatives"]]
        proposals += _window(scores_P, params, "bm25")
        if dense is not None:
            scores_P = next(dense)
            proposals += _window(scores_P, params, "dense")
        yield _draft(row, proposals, scores_P, pool, params, tally)


def _window(scores_P: Floats, params: MineParams, origin: str) -> list[tuple[int, str]]:
    ranked = top_k(scores_P, params.rank_to)[params.rank_from - 1 :]
    return [(int(position), origin) for position in ranked]


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


def _draft(
    row: dict[str, Any],
    proposals: Sequence[tuple[int, str]],
    scores_P: Floats,
    pool: Pool,
    params: MineParams,
    tally: Tally,
) -> Draft:
    positive_score = float(scores_P[pool.position[row["positive"]]])
    guard = Guard(pool, params, row["anchor"], row["positive"], row["concept"], positive_score)
    given: list[Candidate] = []
    found: list[Candidate] = []
    for position, origin in proposals:
        candidate = Candidate(position, origin, float(scores_P[position]))
        reason = guard.refuse(candidate)
        if reason:
            tally.refuse(origin, reason)
        else:
            (given if origin == "given" else found).append(candidate)
    for group in (given, found):
        group.sort(key=lambda candidate: -candidate.score)  # stable: equal scores keep the order of proposal
    ranked = [*given[: params.max_given], *found, *given[params.max_given :]]
    return Draft(row, ranked, positive_score)


def _let_judge(chunk: Sequence[Draft], judges: Mapping[str, Judge], pool: Pool, most: int, tally: Tally) -> None:
    """Show the judges what would be kept; what one refuses makes room for the next candidate, which they see too."""
    while asked := [(draft, candidate) for draft in chunk for candidate in draft.ranked[draft.judged : most]]:
        refused: set[tuple[int, int]] = set()
        for (draft, candidate), reason in zip(asked, _ask(judges, _questions(asked, pool)), strict=True):
            if reason:
                tally.refuse(candidate.origin, reason)
                refused.add((id(draft), candidate.position))
        for draft in chunk:
            seen, rest = draft.ranked[:most], draft.ranked[most:]
            passed = [candidate for candidate in seen if (id(draft), candidate.position) not in refused]
            draft.ranked, draft.judged = [*passed, *rest], len(passed)


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
