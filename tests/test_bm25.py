"""BM25 against mteb's own baseline, the scorer against the index, ties, and degenerate input."""

import string
from types import SimpleNamespace
from typing import Any

import bm25s
import numpy as np
import pytest
import Stemmer
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from mteb.models.model_implementations.bm25 import BM25Search

from stm.bm25 import NOTHING, Index, Lexicon, tokenize, top_k
from stm.errors import DataError
from stm.evaluate.lexical import LexicalModel
from stm.evaluate.run import run_task
from stm.evaluate.tasks import SPLIT, SUBSET, LocalTask
from stm.tasks import Passage, Task

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


def mteb_run(passages: list[str], queries: list[str], k: int, language: str = "eng") -> dict[str, dict[str, float]]:
    model = BM25Search()
    common = {"task_metadata": SimpleNamespace(eval_langs=[language]), "hf_split": "test", "hf_subset": "default"}
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


spaced = st.text(st.characters(max_codepoint=0x0DFF, exclude_categories=["Cs"]), max_size=40)  # all below Thai


@settings(max_examples=300, deadline=None)
@given(st.lists(spaced, min_size=1, max_size=5))
def test_text_in_spaced_scripts_is_cut_as_the_baseline_cuts_it(texts: list[str]) -> None:
    stemmer = Stemmer.Stemmer("english")
    assert tokenize(texts) == bm25s.tokenize(
        texts, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )


def test_characters_of_scripts_without_spaces_are_words() -> None:
    assert tokenize(["\u9ad8\u8840\u5727 and iPhone\u624b\u673a 3", "\u0e01\u0e35\u0e02"]) == [
        ["\u9ad8", "\u8840", "\u5727", "iphon", "\u624b", "\u673a"], ["\u0e01\u0e35", "\u0e02"]
    ]  # fmt: skip
    passages = [
        "\u9ad8\u8840\u538b\u60a3\u8005\u5e94\u5c11\u5403\u76d0",
        "\u611f\u5192\u53d1\u70e7\u591a\u559d\u70ed\u6c34",
    ]
    positions, _ = Index(passages).search(["\u53d1\u70e7\u4e86\u600e\u4e48\u529e", "\u9ad8\u8840\u538b"], 2)
    assert positions.tolist() == [[1, NOTHING], [0, NOTHING]]


class InLanguage(LocalTask):
    """A task as mteb has it in some language, which may say which passages are to be ranked."""

    def __init__(self, task: Task, languages: list[str], top_ranked: dict[str, list[str]] | None = None) -> None:
        super().__init__(task, "r")
        self.metadata = self.metadata.model_copy(update={"eval_langs": languages})
        self.top_ranked_ids = top_ranked

    def load_data(self, **options: Any) -> None:
        super().load_data(**options)
        self.dataset[SUBSET][SPLIT]["top_ranked"] = self.top_ranked_ids


def make_task(passages: list[str], queries: list[str]) -> Task:
    qrels = {str(index): {str(index): 1} for index in range(len(queries))}
    corpus = {str(index): Passage("", text) for index, text in enumerate(passages)}
    return Task("mine", "general", corpus, {str(index): text for index, text in enumerate(queries)}, qrels)


class Kept(LexicalModel):
    """Keeps what it found."""

    def search(self, queries: Any, **options: Any) -> dict[str, dict[str, float]]:
        self.run = super().search(queries, **options)
        return self.run


def hub_run(task: LocalTask) -> dict[str, dict[str, float]]:
    model = Kept("bm25")
    run_task(model, task)
    return model.run


TEXTS = {  # passages, then queries
    "zho-Hans": (
        ["\u9ad8\u8840\u538b\u5c11\u5403\u76d0", "\u611f\u5192\u53d1\u70e7"],
        ["\u9ad8\u8840\u538b", "\u53d1\u70e7\u4e86"],
    ),
    "tha-Thai": (
        ["\u0e1b\u0e27\u0e14\u0e2b\u0e31\u0e27", "\u0e44\u0e02\u0e49"],
        ["\u0e2b\u0e31\u0e27", "\u0e44\u0e02\u0e49"],
    ),
    "fra-Latn": (["Les maladies du coeur", "la fi\u00e8vre et les maux"], ["maladie des coeurs", "fi\u00e8vres"]),
    "pol-Latn": (["choroby serca i krew", "krew i ucho", "krew w nosie"], ["serca", "ucho krew"]),
}


@pytest.mark.parametrize("language", sorted(TEXTS))
def test_a_task_of_mteb_in_another_language_has_the_scores_of_the_baseline(
    language: str, capsys: pytest.CaptureFixture[str]
) -> None:
    passages, queries = TEXTS[language]
    found = hub_run(InLanguage(make_task(passages, queries), [language]))
    assert capsys.readouterr().err == ""
    assert found == mteb_run(passages, queries, 7, language)


def test_a_task_in_two_languages_is_taken_for_english() -> None:
    found = hub_run(InLanguage(make_task(PASSAGES, QUERIES[:3]), ["spa-Latn", "eng-Latn"]))
    assert found == mteb_run(PASSAGES, QUERIES[:3], 7)


def test_only_passages_that_the_task_lists_for_a_query_are_ranked() -> None:
    task = make_task(PASSAGES, QUERIES[:3])
    whole, some = hub_run(InLanguage(task, ["eng-Latn"])), {"0": ["1", "3"], "2": []}
    found = hub_run(InLanguage(task, ["eng-Latn"], some))
    assert found == {"0": {"1": whole["0"]["1"]}, "1": whole["1"], "2": {}}


class Conversations(LocalTask):
    """A task whose queries are turns of a conversation, as MTRAG and TopiOCQA have them."""

    def load_data(self, **options: Any) -> None:
        super().load_data(**options)
        queries = self.dataset[SUBSET][SPLIT]["queries"]
        turns = [[{"role": "user", "content": text}] for text in queries["text"]]
        self.dataset[SUBSET][SPLIT]["queries"] = Dataset.from_dict({"id": queries["id"], "text": turns})


def test_a_conversation_is_one_query() -> None:
    task = make_task(PASSAGES, QUERIES[:3])
    assert {key: set(found) for key, found in hub_run(Conversations(task, "r")).items()} == {
        key: set(found) for key, found in hub_run(LocalTask(task, "r")).items()
    }


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
