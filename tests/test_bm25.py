"""BM25 against mteb's own baseline, the scorer against the index, ties, and degenerate input."""

import string
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mteb.models.model_implementations.bm25 import BM25Search

from stm.bm25 import NOTHING, Index, Lexicon, tokenize, top_k
from stm.errors import DataError

PASSAGES = [
    "Inflammation of the cartilage of the nose.",
    "Lack of the cartilage of the nasal septum.",
    "The heart pumps blood through the vessels of the body; hearts beat.",
    "Vessels carry blood. Blood carries oxygen.",
    "An abnormality of the nose, noses and nasal septum cartilage.",
    "",
    "\u05dc\u05d1 \U0001f600 p < 0.05",
]
QUERIES = ["nose cartilage", "blood vessels of the heart heart", "oxygen", "of the", "", "\u05dc\u05d1"]


def mteb_run(passages: list[str], queries: list[str], k: int) -> dict[str, dict[str, float]]:
    model = BM25Search()
    common = {"task_metadata": SimpleNamespace(eval_langs=["eng-Latn"]), "hf_split": "test", "hf_subset": "default"}
    corpus = [{"id": str(i), "title": "", "text": text} for i, text in enumerate(passages)]
    model.index(corpus, **common, encode_kwargs={})
    tokens = model._tokenizer.transform(queries)
    found, scores = model.retriever.retrieve(tokens, k=min(k, len(passages)), show_progress=False)
    return {
        str(q): {str(p): float(s) for p, s in zip(found[q], scores[q], strict=True) if s > 0}
        for q in range(len(queries))
    }


def our_run(passages: list[str], queries: list[str], k: int) -> dict[str, dict[str, float]]:
    positions, scores = Index(passages).search(queries, k)
    return {
        str(q): {str(p): float(s) for p, s in zip(positions[q], scores[q], strict=True) if p != NOTHING}
        for q in range(len(queries))
    }


def test_scores_are_those_of_the_mteb_baseline() -> None:
    assert our_run(PASSAGES, QUERIES, 7) == mteb_run(PASSAGES, QUERIES, 7)


def test_rows_are_padded_with_nothing() -> None:
    positions, scores = Index(PASSAGES).search(["oxygen", "", "of the"], 3)
    assert positions.tolist() == [[3, NOTHING, NOTHING], [NOTHING] * 3, [NOTHING] * 3]
    assert scores[:, 1:].max() == 0
    assert scores[0, 0] > 0


def test_search_is_the_same_for_any_batch() -> None:
    index = Index(PASSAGES)
    whole = index.search(QUERIES, 4)
    single = [index.search([query], 4) for query in QUERIES]
    assert np.array_equal(whole[0], np.concatenate([positions for positions, _ in single]))
    assert np.array_equal(whole[1], np.concatenate([scores for _, scores in single]))


def test_equal_scores_come_in_order_of_position() -> None:
    positions, _ = Index(["same words"] * 50 + ["other text"]).search(["same"], 5)
    assert positions.tolist() == [[0, 1, 2, 3, 4]]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]), min_size=1, max_size=60), st.integers(1, 70))
def test_top_k_equals_a_full_sort(values: list[float], k: int) -> None:
    scores = np.array(values, dtype=np.float32)
    expected = sorted((i for i in range(len(values)) if values[i] > 0), key=lambda i: (-values[i], i))[:k]
    assert top_k(scores, k).tolist() == expected


words = st.lists(st.sampled_from(string.ascii_lowercase[:6]).map(lambda c: c * 3), max_size=12).map(" ".join)


@settings(max_examples=30, deadline=None)
@given(st.lists(words, min_size=2, max_size=8).filter(lambda texts: any(texts)), words)
def test_the_lexicon_scores_as_the_index_does(passages: list[str], query: str) -> None:
    expected = next(Index(passages).score([query]))
    found = Lexicon.fit(passages).score([query] * len(passages), passages)
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_words_are_stemmed_and_stopwords_dropped() -> None:
    assert tokenize(["The Hearts are beating", ""]) == [["heart", "beat"], []]


@pytest.mark.parametrize("passages", [[], ["", "  "], ["of the"]])
def test_a_corpus_without_words_is_refused(passages: list[str]) -> None:
    with pytest.raises(DataError, match="corpus"):
        Index(passages)
