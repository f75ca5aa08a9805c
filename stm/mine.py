"""Hard negatives for training rows, given or retrieved, with a margin and a guard against false negatives.

Rows go in, the same rows with ranked negatives and a statistics report come out. The margin is that of NV-Retriever
(arXiv 2407.15831): a negative must score clearly below the positive of its own row. Knows nothing of files or of
training.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from stm.bm25 import Index, top_k
from stm.params.mine import MineParams
from stm.progress import track

Floats = npt.NDArray[np.float32]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 12  # of width 0.1; the last one holds everything from 1.1 on
DENSE_BATCH = 64  # queries per similarity block, so that a block of a million passages stays at 256 MB


def normalise(text: str) -> str:
    """The form in which two texts count as the same: NFKC, without case and punctuation, words single-spaced."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if c.isalnum() else " " for c in folded).split())


@dataclass
class Pool:
    """The unique passages of a file, and what is known of each that may forbid it as a negative."""

    passages: list[str] = field(default_factory=list)
    position: dict[str, int] = field(default_factory=dict)
    forms: list[str] = field(default_factory=list)
    concepts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # form -> concepts it answers
    answers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # query form -> forms that answer it

    @classmethod
    def build(cls, rows: pl.DataFrame) -> "Pool":
        """Collect positives and negatives in the order of the rows."""
        pool = cls()
        columns = rows.select("anchor", "positive", "negatives", "concept").iter_rows()
        for anchor, positive, negatives, concept in columns:
            for text in (positive, *negatives):
                if text not in pool.position:
                    pool.position[text] = len(pool.passages)
                    pool.passages.append(text)
                    pool.forms.append(normalise(text))
            form = pool.forms[pool.position[positive]]
            pool.answers[normalise(anchor)].add(form)
            if concept:
                pool.concepts[form].add(concept)
        return pool


@dataclass(frozen=True)
class Candidate:
    """A passage that may become a negative of a row, with its score for that row's query."""

    position: int
    origin: str
    score: float


class Guard:
    """Says why a candidate may not be a negative of its row; the empty string if it may."""

    def __init__(
        self, pool: Pool, params: MineParams, anchor: str, positive: str, concept: str, positive_score: float
    ) -> None:
        self.pool, self.params, self.concept, self.positive_score = pool, params, concept, positive_score
        self.anchor, self.taken = normalise(anchor), set[str]()
        self.positive = pool.forms[pool.position[positive]]

    def refuse(self, candidate: Candidate) -> str:
        """Return the first reason that holds; an accepted candidate counts as taken."""
        form = self.pool.forms[candidate.position]
        if not form or form in (self.positive, self.anchor):
            return "same_text"
        if form in self.pool.answers[self.anchor]:
            return "other_positive"
        if self.concept and self.concept in self.pool.concepts.get(form, ()):
            return "same_concept"
        if form in self.taken:
            return "duplicate"
        if self._is_too_close(candidate):
            return "too_close"
        self.taken.add(form)
        return ""

    def _is_too_close(self, candidate: Candidate) -> bool:
        if candidate.origin == "given" and not self.params.check_given:
            return False
        limit = min(self.positive_score * self.params.max_ratio, self.positive_score - self.params.min_margin)
        return candidate.score >= limit


def _window(scores_P: Floats, params: MineParams, origin: str) -> list[tuple[int, str]]:
    ranked = top_k(scores_P, params.rank_to)[params.rank_from - 1 :]
    return [(int(position), origin) for position in ranked]


def _dense_scores(rows: pl.DataFrame, passages: Sequence[str], folder: str) -> Iterator[Floats]:
    """Yield `scores_P` (cosines) per row; one block of queries at a time."""
    # Imported here: a stage without a dense model must not load torch.
    from stm.encode import Encoder
    from stm.models import load_model

    encoder = Encoder(load_model(folder))
    passages_PD = encoder.encode_passages(list(passages))
    queries_QD = encoder.encode_queries(rows["anchor"].to_list())
    for start in range(0, len(queries_QD), DENSE_BATCH):
        yield from queries_QD[start : start + DENSE_BATCH] @ passages_PD.T


class Tally:
    """Counts and score ratios for the report."""

    def __init__(self) -> None:
        self.origins: Counter[str] = Counter()
        self.guarded: dict[str, Counter[str]] = defaultdict(Counter)
        self.ratios: dict[str, list[float]] = defaultdict(list)
        self.per_row: Counter[int] = Counter()
        self.unscored = 0

    def add(self, kept: Sequence[Candidate], positive_score: float) -> None:
        """Count the negatives of one row."""
        self.per_row[len(kept)] += 1
        self.unscored += positive_score <= 0
        for candidate in kept:
            self.origins[candidate.origin] += 1
            if positive_score > 0:
                self.ratios[candidate.origin].append(candidate.score / positive_score)

    def report(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        everything = [ratio for ratios in self.ratios.values() for ratio in ratios]
        return {
            "rows": self.per_row.total(),
            "negatives": self.origins.total(),
            "negatives_by_origin": dict(sorted(self.origins.items())),
            "rows_by_negatives": {str(count): rows for count, rows in sorted(self.per_row.items())},
            "rows_without_negatives": self.per_row[0],
            "rows_with_unscored_positive": self.unscored,
            "guarded_out": {origin: dict(sorted(c.items())) for origin, c in sorted(self.guarded.items())},
            "hardness": {name: summarise(r) for name, r in [("all", everything), *sorted(self.ratios.items())]},
        }


def summarise(ratios: Sequence[float]) -> dict[str, Any]:
    """Quantiles and a histogram (bins of width 0.1) of score(negative) / score(positive)."""
    if not ratios:
        return {"count": 0, "quantiles": {}, "histogram": [0] * BINS}
    values = np.asarray(ratios, dtype=np.float64)
    bins = np.bincount(np.clip((values * 10).astype(int), 0, BINS - 1), minlength=BINS)
    quantiles = {f"{q:g}": round(float(np.quantile(values, q)), 4) for q in QUANTILES}
    return {"count": len(ratios), "quantiles": quantiles, "histogram": bins.tolist()}


def mine(rows: pl.DataFrame, params: MineParams) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the rows with at most `params.negatives` negatives each, and the report.

    Given negatives come first (up to `max_given`), then retrieved ones, each group by falling score. With a dense model
    its cosines judge the margin and BM25 proposes beside it; otherwise BM25 scores do both. Same input, same output.
    """
    pool, tally = Pool.build(rows), Tally()
    lexical = Index(pool.passages).score(rows["anchor"].to_list())
    dense = _dense_scores(rows, pool.passages, params.dense_model) if params.dense_model else None
    negatives: list[list[str]] = []
    origins: list[list[str]] = []
    for row in track(rows.iter_rows(named=True), "mine", rows.height):
        scores_P = next(lexical)
        proposals = [(pool.position[text], "given") for text in row["negatives"]]
        proposals += _window(scores_P, params, "bm25")
        if dense is not None:
            scores_P = next(dense)
            proposals += _window(scores_P, params, "dense")
        kept = _choose(row, proposals, scores_P, pool, params, tally)
        negatives.append([pool.passages[candidate.position] for candidate in kept])
        origins.append([candidate.origin for candidate in kept])
    columns = [pl.Series("negatives", negatives, pl.List(pl.String)), pl.Series("origins", origins, pl.List(pl.String))]
    return rows.with_columns(columns), {**tally.report(), "passages": len(pool.passages)}


def _choose(
    row: dict[str, Any],
    proposals: Sequence[tuple[int, str]],
    scores_P: Floats,
    pool: Pool,
    params: MineParams,
    tally: Tally,
) -> list[Candidate]:
    positive_score = float(scores_P[pool.position[row["positive"]]])
    guard = Guard(pool, params, row["anchor"], row["positive"], row["concept"], positive_score)
    given: list[Candidate] = []
    found: list[Candidate] = []
    for position, origin in proposals:
        candidate = Candidate(position, origin, float(scores_P[position]))
        reason = guard.refuse(candidate)
        if reason:
            tally.guarded[origin][reason] += 1
        else:
            (given if origin == "given" else found).append(candidate)
    for group in (given, found):
        group.sort(key=lambda candidate: -candidate.score)  # stable: equal scores keep the order of proposal
    ranked = [*given[: params.max_given], *found, *given[params.max_given :]]
    kept = ranked[: params.negatives]
    tally.add(kept, positive_score)
    return kept
