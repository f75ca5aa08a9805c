"""Changed queries: what is changed, that it is the same twice, and that scores follow."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm.encode import Encoder
from stm.evaluate import models
from stm.evaluate.models import DenseModel
from stm.evaluate.robustness import FOREIGN, KINDS, ChangedQueries, add_typos, sample_queries
from stm.evaluate.run import run_task
from stm.evaluate.score import evaluate_folder
from stm.evaluate.tasks import LocalTask
from stm.params.evaluate import EvaluateParams, ModelEntry
from stm.tasks import Passage, Task, write_task
from stm.text_encoder import Floats
from tests.pico import pico_backbone

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


def score_kinds(encoder: CaseBlind, prompts: dict[str, str], count: int = 10) -> dict[str, float]:
    """The scores of each kind beside an evaluation of the task."""
    model, task = DenseModel(encoder, prompts, "m", "r"), make_task()
    changed = ChangedQueries(model, task, count, seed=1)
    with model.watched(changed.search):
        run_task(model, LocalTask(task, "r"))
    return changed.scores()


def test_scores_per_kind_follow_the_change_and_no_passage_is_encoded_twice() -> None:
    encoder = CaseBlind()
    scores = score_kinds(encoder, {"query": "Q: "})
    assert list(scores) == list(KINDS)
    assert scores["as it is"] == scores["capitals"] == scores["no prompt"] == 1.0
    assert scores["typos"] < 1.0
    evaluation, kinds = ["Q: ", ""], ["Q: ", "Q: ", "Q: ", "", FOREIGN]
    assert encoder.prompts == evaluation + kinds
    assert score_kinds(CaseBlind(), {"query": "Q: "}) == scores


def test_a_model_without_a_prompt_is_not_asked_with_another() -> None:
    assert list(score_kinds(CaseBlind(), {})) == ["as it is", "typos", "capitals"]


def test_without_queries_nothing_is_asked() -> None:
    encoder = CaseBlind()
    assert score_kinds(encoder, {}, count=0) == {}
    assert len(encoder.prompts) == 2


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


def test_a_word_of_four_letters_is_long_enough_for_a_typo_and_one_of_three_is_not() -> None:
    assert any(add_typos("bone", random.Random(seed)) != "bone" for seed in range(20))
    assert all(add_typos("eye", random.Random(seed)) == "eye" for seed in range(20))


def test_slices_of_the_corpus_do_not_change_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score_kinds(CaseBlind(), {"query": "Q: "})
    monkeypatch.setattr(models, "SLICE", 2)
    assert score_kinds(CaseBlind(), {"query": "Q: "}) == whole


@pytest.mark.parametrize("megabytes", [0, 10])
def test_every_text_of_a_model_is_encoded_once_with_or_without_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, megabytes: int
) -> None:
    monkeypatch.chdir(tmp_path)
    write_task(make_task(), Path("tasks/organs"), "test")
    pico_backbone(Path("pico"))
    seen: list[str] = []

    def encode(self: Encoder, texts: Sequence[str], prompt: str = "", description: str = "") -> Floats:
        seen.extend(prompt + text for text in texts)
        return encoded(self, texts, prompt, description)

    encoded = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", encode)
    params = EvaluateParams(batch_tokens=0, store_megabytes=megabytes, slice_queries=10)
    report, _ = evaluate_folder("m", "pico", ModelEntry(path="pico"), params, "tasks", [])
    assert report["robustness"]["as it is"]["organs"] == report["tasks"]["organs"]["ndcg_at_10"]
    assert [seen.count(word) for word in WORDS] == ([2] * 4 if not megabytes else [1] * 4)  # passage, and no prompt
