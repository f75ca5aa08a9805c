"""Changed queries: what is changed, that it is the same twice, and that scores follow."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm.evaluate import robustness
from stm.evaluate.models import DenseModel
from stm.evaluate.robustness import FOREIGN, KINDS, add_typos, sample_queries, score_kinds
from stm.tasks import Passage, Task
from stm.text_encoder import Floats

WORDS = ["heart", "liver", "nerve", "blood"]


class CaseBlind:
    """Finds a word wherever it stands, unless it is spelt otherwise; remembers the prompts."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "") -> Floats:
        self.prompts.append(prompt)
        return np.array([[float(word in text.lower()) for word in WORDS] for text in texts], dtype=np.float32)


def make_task() -> Task:
    corpus = {word: Passage("", word) for word in WORDS}
    return Task("organs", "medical", corpus, {w: w for w in WORDS}, {w: {w: 1} for w in WORDS})


def test_scores_per_kind_and_task_follow_the_change() -> None:
    encoder = CaseBlind()
    scores = score_kinds(DenseModel(encoder, {"query": "Q: ", "document": None}, "m", "r"), [make_task()], 10, seed=1)
    assert list(scores) == list(KINDS)
    assert scores["as it is"]["organs"] == scores["capitals"]["organs"] == scores["no prompt"]["organs"] == 1.0
    assert scores["typos"]["organs"] < 1.0
    assert encoder.prompts == ["Q: ", "Q: ", "Q: ", "", FOREIGN, ""]
    again = score_kinds(
        DenseModel(CaseBlind(), {"query": "Q: ", "document": None}, "m", "r"), [make_task()], 10, seed=1
    )
    assert again == scores


def test_a_model_without_a_prompt_is_not_asked_with_another() -> None:
    scores = score_kinds(DenseModel(CaseBlind(), {}, "m", "r"), [make_task()], 10, seed=1)
    assert list(scores) == ["as it is", "typos", "capitals"]
    assert score_kinds(DenseModel(CaseBlind(), {}, "m", "r"), [make_task()], 0, seed=1) == {}


def test_the_sample_is_seeded_sorted_and_bounded() -> None:
    task = make_task()
    assert sample_queries(task, 10, 1) == sorted(WORDS)
    assert len(sample_queries(task, 2, 1)) == 2
    assert sample_queries(task, 2, 1) == sample_queries(task, 2, 1)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.integers(0, 10))
def test_typos_keep_words_and_change_few_letters(text: str, seed: int) -> None:
    changed = add_typos(text, random.Random(seed))
    assert changed == add_typos(text, random.Random(seed))
    before, after = text.split(" "), changed.split(" ")
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert abs(len(old) - len(new)) <= 1
        assert old[:1] == new[:1]
        assert old == new or len(old) >= 4


@pytest.mark.parametrize("text", ["heart", "myocardial infarction of the heart"])
def test_a_query_with_a_long_word_gets_a_typo_from_most_seeds(text: str) -> None:
    assert sum(add_typos(text, random.Random(seed)) != text for seed in range(50)) > 40


def test_slices_of_the_corpus_do_not_change_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    model = DenseModel(CaseBlind(), {"query": "Q: ", "document": None}, "m", "r")
    whole = score_kinds(model, [make_task()], 10, seed=1)
    monkeypatch.setattr(robustness, "SLICE", 2)
    assert score_kinds(model, [make_task()], 10, seed=1) == whole
