"""BM25 over passages: an exact index that returns the best k per query, and a scorer for texts that no index holds.

Settings, stopwords and stemmer are those of mteb's own baseline `mteb/baseline-bm25s` (revision 0_3_0) for English, so
that our BM25 figures are its figures; another language brings words of its own. Scores are made query by query: no
queries x passages matrix ever exists. Does not know what is retrieved for what.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import bm25s
import numpy as np
import numpy.typing as npt
import regex  # type: ignore[import-untyped]
import Stemmer

from stm.errors import DataError
from stm.words import UNSPACED

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG

K1, B = 1.5, 0.75
METHOD = "lucene"
STOPWORDS = "en"
Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int32]
Tokenize = Callable[[Sequence[str]], list[list[str]]]
NOTHING = -1  # fills up rows of `search` where fewer than k passages share a term with the query
LAST_LETTER = 0x34000  # no plane above has letters


def _ranges(kind: str) -> str:
    """The characters of some Unicode properties, as ranges for a class of `re`, which knows no properties."""
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, LAST_LETTER)]))
    return "".join(f"{run[0]}-{run[-1]}" for run in regex.findall(f"[{kind}]+", every))


@cache
def _word_pattern() -> str:
    unspaced, marks = _ranges(UNSPACED), _ranges(r"\p{M}")
    ascii_only = r"[a-z0-9_]{2,}(?!\w)"  # the next part finds these too, in twice the time
    return rf"{ascii_only}|[^\W{unspaced}]{{2,}}|[{unspaced}][{marks}]*"


def tokenize(texts: Sequence[str]) -> list[list[str]]:
    """Lower-cased words of two and more characters, without English stopwords, stemmed (Snowball English).

    In scripts that put no space between words every character is a word, as it is for `stm.words`.
    """
    stemmer, pattern = Stemmer.Stemmer("english"), _word_pattern()
    tokens = bm25s.tokenize(
        list(texts), token_pattern=pattern, stopwords=STOPWORDS, stemmer=stemmer, return_ids=False, show_progress=False
    )
    return [list(words) for words in tokens]


def top_k(scores_P: Floats, k: int) -> Positions:
    """Positions of the k best positive scores, best first; equal scores in order of position."""
    found = np.flatnonzero(scores_P > 0)
    if len(found) > k:
        values = scores_P[found]
        kth = np.partition(values, len(values) - k)[len(values) - k]
        found = found[values >= kth]  # with all ties of the k-th, so that the cut depends on nothing but scores
    order = np.argsort(-scores_P[found], kind="stable")[:k]
    return found[order].astype(np.int32)


class Index:
    """BM25 (Lucene's variant) over P passages, addressed by position.

    Passages and queries may be cut into words in two ways, for what is learnt from passages and then kept to.
    """

    def __init__(self, passages: Sequence[str], cut: Tokenize = tokenize, cut_queries: Tokenize = tokenize) -> None:
        if not passages:
            raise DataError("cannot build a BM25 index over no passages; check the corpus")
        self.size = len(passages)
        self._bm25 = bm25s.BM25(k1=K1, b=B, method=METHOD)
        self._cut_queries = cut_queries
        words = cut(passages)
        if not any(words):
            raise DataError("none of the passages holds a word that BM25 could index; check the corpus")
        self._bm25.index(words, show_progress=False)

    def score(self, queries: Sequence[str]) -> Iterator[Floats]:
        """Yield, query by query, the scores of all P passages (`scores_P`, fresh each time)."""
        for words in self._cut_queries(queries):
            ids = self._bm25.get_tokens_ids(words)
            yield self._bm25.get_scores_from_ids(ids) if ids else np.zeros(self.size, np.float32)

    def score_at(self, queries: Sequence[str], positions: Sequence[Sequence[int]]) -> Iterator[Floats]:
        """Yield, query by query, the scores of the passages at its positions: the numbers of `score` to the last bit,
        in the time that those few take.
        """
        # A sparse matrix with a column of passages for every term, each in order of position.
        data, passages, starts = (self._bm25.scores[name] for name in ("data", "indices", "indptr"))
        for words, wanted in zip(self._cut_queries(queries), positions, strict=True):
            places = np.asarray(wanted, dtype=passages.dtype)
            scores = np.zeros(len(places), np.float32)
            for term in self._bm25.get_tokens_ids(words):
                column = slice(starts[term], starts[term + 1])
                found = np.searchsorted(passages[column], places).clip(max=column.stop - column.start - 1)
                scores += np.where(passages[column][found] == places, data[column][found], np.float32(0))
            yield scores

    def search(self, queries: Sequence[str], k: int) -> tuple[Positions, Floats]:
        """Return positions and scores of the best k passages, both [Q, k], best first.

        Passages that share no term with the query are not found; their places hold `NOTHING` (-1) and 0.
        """
        positions_QK = np.full((len(queries), k), NOTHING, dtype=np.int32)
        scores_QK = np.zeros((len(queries), k), dtype=np.float32)
        for row, scores_P in enumerate(self.score(queries)):
            best = top_k(scores_P, k)
            positions_QK[row, : len(best)], scores_QK[row, : len(best)] = best, scores_P[best]
        return positions_QK, scores_QK


@dataclass(frozen=True)
class Lexicon:
    """Term statistics of a corpus, enough to give any text the score that it would have as one of its passages."""

    size: int
    mean_length: float
    frequencies: Counter[str]  # in how many passages a term occurs
    _cut: dict[str, list[str]] = field(default_factory=dict)  # the words of the last call's texts alone

    @classmethod
    def fit(cls, passages: Sequence[str]) -> "Lexicon":
        """Count terms over passages."""
        words = tokenize(passages)
        frequencies: Counter[str] = Counter()
        for row in words:
            frequencies.update(set(row))
        mean_length = sum(map(len, words)) / max(1, len(words))
        return cls(len(words), mean_length or 1.0, frequencies)

    def score(self, queries: Sequence[str], passages: Sequence[str]) -> list[float]:
        """BM25 score of each passage for the query of the same place; the formula of `Index` (Lucene's, bm25s 0.3).

        A text is cut into words once per call, and not at all if it was in the call before: that is most of the work.
        """
        texts = dict.fromkeys([*queries, *passages])
        for text in self._cut.keys() - texts.keys():
            del self._cut[text]
        new = [text for text in texts if text not in self._cut]
        self._cut.update(zip(new, tokenize(new), strict=True))
        return [self._score(self._cut[q], self._cut[p]) for q, p in zip(queries, passages, strict=True)]

    def _score(self, query: Sequence[str], passage: Sequence[str]) -> float:
        counts, norm = Counter(passage), K1 * (1 - B + B * len(passage) / self.mean_length)
        return sum(self._idf(term) * counts[term] / (counts[term] + norm) for term in query if term in counts)

    def _idf(self, term: str) -> float:
        seen = self.frequencies.get(term, 0)
        return float(np.log(1 + (self.size - seen + 0.5) / (seen + 0.5)))
