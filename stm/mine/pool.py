"""The passages of a split, what is known of each, and the guard that says why one may not be a negative of a row.

Rows go in; positions in a list of unique passages stand for texts from here on. Knows nothing of retrieval.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import polars as pl

from stm.params.mine import MineParams
from stm.words import fingerprint, normalise


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
        columns = rows.select("anchor", "positive", "negatives", "concept", "answers").iter_rows()
        known: dict[str, set[int]] = defaultdict(set)  # query form -> fingerprints
        for anchor, positive, negatives, concept, answers in columns:
            for text in (positive, *negatives):
                if text not in pool.position:
                    pool.position[text] = len(pool.passages)
                    pool.passages.append(text)
                    pool.forms.append(normalise(text))
            form = pool.forms[pool.position[positive]]
            pool.answers[normalise(anchor)].add(form)
            known[normalise(anchor)].update(answers)
            if concept:
                pool.concepts[form].add(concept)
        named = {fingerprint(form): form for form in pool.forms} if any(known.values()) else {}
        for query, prints in known.items():
            pool.answers[query].update(named[number] for number in prints if number in named)
        return pool


@dataclass(frozen=True, slots=True)
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
