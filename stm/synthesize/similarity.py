"""How near texts are to each other, as validation asks it: by BM25 or by a dense model's cosine.

One small protocol, two implementations. Knows nothing of thresholds.
"""

from collections.abc import Sequence
from typing import Protocol

from stm.bm25 import Lexicon


class Similarity(Protocol):
    """One score per pair, in order; higher is nearer, 0 or less is unrelated; changes no input, raises for no text."""

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
        own = self._lexicon.score(references, references)
        return [
            score / best if best > 0 else 1.0
            for score, best in zip(self._lexicon.score(references, passages), own, strict=True)
        ]


class DenseSimilarity:
    """Cosine under a sentence-transformers model."""

    def __init__(self, name: str, revision: str = "") -> None:
        # Imported here: without a dense model this stage must not load torch.
        from stm.encode import Encoder
        from stm.named_models import load_retriever

        self._encoder = Encoder(load_retriever(name, revision))

    def query_to_passage(self, queries: Sequence[str], passages: Sequence[str]) -> list[float]:
        """Cosines of queries and passages, each with the model's own prompt."""
        queries_ND = self._encoder.encode_queries(list(queries))
        passages_ND = self._encoder.encode_passages(list(passages))
        return [float(score) for score in (queries_ND * passages_ND).sum(axis=1)]

    def passage_to_passage(self, references: Sequence[str], passages: Sequence[str]) -> list[float]:
        """Cosines of passages."""
        references_ND = self._encoder.encode_passages(list(references))
        passages_ND = self._encoder.encode_passages(list(passages))
        return [float(score) for score in (references_ND * passages_ND).sum(axis=1)]
