"""BM25 as a model that mteb runs: an `mteb` SearchProtocol around this project's index.

Passages are title and text, queries the bare text: a lexical model has no prompt. Knows nothing of files.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from stm.bm25 import K1, METHOD, NOTHING, STOPWORDS, B, Index
from stm.evaluate.models import model_meta

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG itself
REVISION = f"bm25s {version('bm25s')}, {METHOD}, k1={K1}, b={B}, stopwords {STOPWORDS}, Snowball English"


class LexicalModel:
    """Indexes one corpus at a time, as mteb asks; passages that share no term with a query are not in its ranking."""

    def __init__(self, name: str) -> None:
        self.mteb_model_meta = model_meta(name, REVISION)
        self._index: Index | None = None
        self._ids: list[str] = []

    def index(self, corpus: Sequence[Mapping[str, Any]], **_: Any) -> None:
        """Index a corpus with the columns id, title (optional) and text."""
        rows = list(corpus)
        self._ids = [str(row["id"]) for row in rows]
        self._index = Index([f"{row.get('title') or ''} {row['text']}".strip() for row in rows])

    def search(self, queries: Sequence[Mapping[str, Any]], *, top_k: int, **_: Any) -> dict[str, dict[str, float]]:
        """Return `run[query_id][passage_id] = score` for the corpus that was indexed last."""
        if self._index is None:
            raise RuntimeError("index() comes before search()")
        rows = list(queries)
        positions_QK, scores_QK = self._index.search([row["text"] for row in rows], min(top_k, len(self._ids)))
        return {
            str(row["id"]): {
                self._ids[position]: float(score)
                for position, score in zip(positions, scores, strict=True)
                if position != NOTHING
            }
            for row, positions, scores in zip(rows, positions_QK, scores_QK, strict=True)
        }
