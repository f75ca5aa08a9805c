"""How near texts are to each other, as validation asks it: by BM25 or by a dense model's cosine.

One small protocol, two implementations. Knows nothing of thresholds.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stm.bm25 import Lexicon


class Similarity(Protocol):
    """One finite score per pair, in order; higher is nearer, 0 or less is unrelated; changes no input, raises for no
    text. `DataError` where a model gives no number.
    """

    def query_to_passage(self, queries: Sequence[str], passages: Sequence[str]) -> list[float]:
        """How well each passage answers the query of the same place."""

    def passage_to_passage(self, references: Sequence[str], passages: Sequence[str]) -> list[float]:
        """How much of each reference's topic its passage shares: 1 for the reference itself."""


class LexicalSimilarity:
    """BM25 with the term statistics of a corpus."""

    def __init__(self, corpus: Sequence[str]) -> None:
        self._lexicon = Lexicon.fit(corpus)

    def query_to_passage(self, queries: Sequence[str], passages: Sequence[str]) -> list[float]:
        """BM25 scores."""
        return self._lexicon.score(queries, passages)

    def passage_to_passage(self, references: Sequence[str], passages: Sequence[str]) -> list[float]:
        """BM25 score of the passage over that of the reference, with the reference as query."""
        scores = self._lexicon.score([*references, *references], [*passages, *references])
        found, own = scores[: len(references)], scores[len(references) :]
        return [score / best if best > 0 else 1.0 for score, best in zip(found, own, strict=True)]


class DenseSimilarity:
    """Cosine under a sentence-transformers model."""

    def __init__(self, name: str, revision: str = "") -> None:
        # Imported here: without a dense model this stage must not load torch.
        from stm.encode import Encoder
        from stm.named_models import load_retriever

        self._encoder, self._name = Encoder(load_retriever(name, revision)), name

    def query_to_passage(self, queries: Sequence[str], passages: Sequence[str]) -> list[float]:
        """Cosines of queries and passages, each with the model's own prompt."""
        return self._cosines(self._encoder.encode_queries(list(queries)), passages)

    def passage_to_passage(self, references: Sequence[str], passages: Sequence[str]) -> list[float]:
        """Cosines of passages."""
        return self._cosines(self._encoder.encode_passages(list(references)), passages)

    def _cosines(self, left_ND: npt.NDArray[np.float32], passages: Sequence[str]) -> list[float]:
        from stm.named_models import check_finite

        cosines_N = (left_ND * self._encoder.encode_passages(list(passages))).sum(axis=1)
        return [float(cosine) for cosine in check_finite(cosines_N, self._name)]
