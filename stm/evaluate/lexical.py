"""BM25 as a model that mteb runs: an `mteb` SearchProtocol around this project's index.

Passages are title and text, queries the bare text: a lexical model has no prompt. English, which a task of one's own
is taken for, is cut into words by `stm.bm25`, any other language by mteb's own baseline. Knows nothing of files.
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from typing import Any

import numpy as np
from datasets import Dataset
from mteb._create_dataloaders import create_dataloader
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_implementations.bm25 import BM25Tokenizer
from mteb.types import PromptType

from stm.bm25 import K1, METHOD, B, Floats, Index
from stm.bm25 import top_k as best_positions
from stm.evaluate.models import model_meta

REVISION = f"bm25s {version('bm25s')}, {METHOD}, k1={K1}, b={B}, words by language as in mteb {version('mteb')}"
ENGLISH = "eng"


def _language(task: TaskMetadata, subset: str) -> str:
    """The ISO 639-3 code of a subset's language; where there are several, English, as in mteb's baseline."""
    languages = {code.split("-")[0] for code in task.hf_subsets_to_langscripts.get(subset, [])}
    return languages.pop() if len(languages) == 1 else ENGLISH


def _cut(tokenize: Callable[[list[str]], Any], texts: Sequence[str]) -> list[list[str]]:
    with redirect_stderr(io.StringIO()):  # its bars
        found = tokenize(list(texts))
    words = {place: word for word, place in found.vocab.items()}
    return [[words[place] for place in row] for row in found.ids]


def _index(passages: Sequence[str], language: str) -> Index:
    if language == ENGLISH:
        return Index(passages)
    mtebs = BM25Tokenizer(language)
    return Index(passages, lambda texts: _cut(mtebs.fit_transform, texts), lambda texts: _cut(mtebs.transform, texts))


def _only(scores_P: Floats, positions: list[int]) -> Floats:
    kept = np.zeros_like(scores_P)
    kept[positions] = scores_P[positions]
    return kept


class LexicalModel:
    """Indexes one corpus at a time, as mteb asks; passages that share no term with a query are not in its ranking."""

    def __init__(self, name: str) -> None:
        self.mteb_model_meta = model_meta(name, REVISION)
        self._index: Index | None = None
        self._ids: list[str] = []

    def index(
        self, corpus: Iterable[Mapping[str, Any]], *, task_metadata: TaskMetadata, hf_subset: str, **_: Any
    ) -> None:
        """Index a corpus with the columns id, title (optional) and text."""
        rows = list(corpus)
        self._ids = [str(row["id"]) for row in rows]
        # As the baseline joins them: where every character is a word, the line break is one.
        texts = [f"{row.get('title') or ''}\n{row['text']}" for row in rows]
        self._index = _index(texts, _language(task_metadata, hf_subset))

    def search(
        self,
        queries: Dataset,
        *,
        task_metadata: TaskMetadata,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Return `run[query_id][passage_id] = score` for the corpus that was indexed last.

        Of a query that `top_ranked` names, only the passages that it lists are ranked.
        """
        if self._index is None:
            raise RuntimeError("index() comes before search()")
        loader = create_dataloader(queries, task_metadata=task_metadata, prompt_type=PromptType.query, **encode_kwargs)
        texts = [text for batch in loader for text in batch["text"]]  # as dense models see them: conversations joined
        positions = {key: position for position, key in enumerate(self._ids)} if top_ranked else {}
        run = {}
        for query_id, scores_P in zip(queries["id"], self._index.score(texts), strict=True):
            if top_ranked and query_id in top_ranked:
                scores_P = _only(scores_P, [positions[key] for key in top_ranked[query_id] if key in positions])
            best = best_positions(scores_P, top_k)
            run[str(query_id)] = {self._ids[position]: float(scores_P[position]) for position in best}
        return run
