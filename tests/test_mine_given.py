"""Rows that given negatives fill: nothing is retrieved for them, and they come out as they would otherwise."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm.bm25 import Floats, Index
from stm.mine.judges import Judge, Question
from stm.mine.rows import mine
from tests.pico import pico_backbone
from tests.test_mine import WIDE, rows_of

WORDS = ["heart", "valve", "lung", "bone", "kidney", "stone", "fever", "rash"]
FILLED = WIDE.model_copy(update={"negatives": 2, "max_given": 2})


@dataclass
class Refuses:
    """A judge that refuses some passages; with none it only has everything retrieved."""

    passages: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    def judge(self, questions: Sequence[Question]) -> list[str]:
        self.asked += [question.passage for question in questions]
        return ["stub" if question.passage in self.passages else "" for question in questions]

    def report(self) -> dict[str, Any]:
        return {}


def judged_by(judge: Judge) -> dict[str, Judge]:
    return {"stub": judge}


def random_rows(count: int, seed: int) -> pl.DataFrame:
    """Rows with none to four given negatives, of few words, so that many are refused and many scores are equal."""
    rng = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(rng.choices(WORDS, k=length))

    rows = [
        {"anchor": text(2), "positive": text(5), "negatives": [text(4) for _ in range(rng.randrange(5))]}
        for _ in range(count)
    ]
    return rows_of(*({**row, "concept": rng.choice(["", "c1", "c2"])} for row in rows))


@pytest.fixture
def retrieved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries that all passages were scored for."""
    queries: list[str] = []
    score = Index.score

    def record(index: Index, texts: Sequence[str]) -> Iterator[Floats]:
        queries.extend(texts)
        return score(index, texts)

    monkeypatch.setattr(Index, "score", record)
    return queries


def test_only_rows_with_room_are_retrieved_for(retrieved: list[str]) -> None:
    rows = rows_of(
        {"anchor": "full heart", "positive": "heart a", "negatives": ["lung", "bone"]},
        {"anchor": "half heart", "positive": "heart b heart", "negatives": ["rash"]},
        {"anchor": "guarded heart", "positive": "heart c heart", "negatives": ["stone", "Heart c heart!"]},
        {"anchor": "no heart", "positive": "heart d heart"},
    )
    mined, _ = mine(rows, FILLED)
    assert retrieved == ["half heart", "guarded heart", "no heart"]
    assert mined["negatives"][0].to_list() == ["lung", "bone"]
    retrieved.clear()
    mine(rows, FILLED.model_copy(update={"max_given": 1}))
    assert len(retrieved) == 4, "retrieved ones come before the second given one"
    retrieved.clear()
    mine(rows, FILLED, judged_by(Refuses()))
    assert len(retrieved) == 4, "a judge may make room"


@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negatives": 1, "max_given": 1},
        {"negatives": 1, "max_given": 3},
        {"check_given": True, "max_ratio": 0.8},
        {"check_given": True, "min_margin": 0.3, "negatives": 1},
        {"max_given": 1},
    ],
)
def test_the_rows_are_those_of_retrieving_for_all(tmp_path: Path, changes: dict[str, Any], with_model: bool) -> None:
    dense = {"dense_model": str(pico_backbone(tmp_path / "pico"))} if with_model else {}
    params = FILLED.model_copy(update={**changes, **dense})
    rows = random_rows(40 if with_model else 150, seed=1)
    (mined, report), (wanted, full) = mine(rows, params), mine(rows, params, judged_by(Refuses()))
    assert mined.equals(wanted)
    assert {**report, "guarded_out": 0, "judges": 0} == {**full, "guarded_out": 0, "judges": 0}
    assert report["guarded_out"].get("given") == full["guarded_out"].get("given")


def test_a_given_negative_that_a_judge_refuses_makes_room_for_a_retrieved_one() -> None:
    rows = rows_of(
        {"anchor": "heart valve", "positive": "heart valve heart valve", "negatives": ["heart lung"]},
        {"anchor": "other", "positive": "heart alone"},
    )
    params = FILLED.model_copy(update={"negatives": 1})
    assert mine(rows, params)[0]["negatives"][0].to_list() == ["heart lung"]
    judge = Refuses(frozenset(["heart lung"]))
    mined, _ = mine(rows, params, judged_by(judge))
    assert (mined["negatives"][0].to_list(), mined["origins"][0].to_list()) == (["heart alone"], ["bm25"])
    assert judge.asked[0] == "heart lung"


texts = st.lists(st.sampled_from([*WORDS, "of", "\u9ad8\u8840\u538b", ""]), max_size=9).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, min_size=1, max_size=12), st.lists(texts, max_size=4), st.randoms(use_true_random=False))
def test_scores_of_a_few_passages_are_those_of_all(passages: list[str], queries: list[str], rng: random.Random) -> None:
    index = Index(["heart", *passages])
    wanted = [rng.choices(range(index.size), k=rng.randrange(4)) for _ in queries]
    few, every = index.score_at(queries, wanted), index.score(queries)
    for positions, scores, scores_P in zip(wanted, few, every, strict=True):
        assert scores.dtype == np.float32
        assert scores.tobytes() == scores_P[positions].tobytes()
