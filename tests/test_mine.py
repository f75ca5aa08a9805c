"""Mining: guard, margin, rank window, order, statistics, odd text; the dense path with a tiny model."""

import copy
import json
from pathlib import Path
from typing import Any

import bm25s
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm.encode import Encoder
from stm.errors import DataError, ParamsError
from stm.mine.rows import mine
from stm.models import load_model
from stm.params.base import parse_section
from stm.params.mine import MineParams
from stm.schema import ROWS, check_rows, read_rows, write_rows
from stm.words import fingerprint, normalise
from tests.pico import break_weights, pico_backbone

WIDE = MineParams(rank_from=1, rank_to=100, max_ratio=0.999, negatives=20, max_given=20)


def rows_of(*rows: dict[str, Any]) -> pl.DataFrame:
    base = {"negatives": [], "instruction": "", "source": "test", "concept": "", "answers": []}
    full = []
    for number, row in enumerate(rows):
        entry = {"id": f"r{number}", **base, **row}
        entry.setdefault("origins", ["given"] * len(entry["negatives"]))
        full.append(entry)
    return pl.DataFrame(full, schema=ROWS)


def others(count: int) -> list[dict[str, Any]]:
    return [{"anchor": f"filler{i}", "positive": f"filler{i} heart item{i}"} for i in range(count)]


FIRST = {"anchor": "heart valve", "positive": "heart valve heart valve tissue"}


def test_retrieved_negatives_score_below_the_positive_and_fall() -> None:
    mined, report = mine(rows_of(FIRST, *others(5), {"anchor": "x", "positive": "valve of a pump"}), WIDE)
    row = mined.row(0, named=True)
    assert set(row["negatives"]) == {"valve of a pump", *(f"filler{i} heart item{i}" for i in range(5))}
    assert row["negatives"][0] == "valve of a pump"
    assert set(row["origins"]) == {"bm25"}
    assert report["hardness"]["bm25"]["count"] == report["negatives"]
    assert report["hardness"]["all"]["quantiles"]["0.95"] < 1


def test_the_margin_is_relative_and_absolute() -> None:
    rows = rows_of(
        FIRST, {"anchor": "y", "positive": "heart valve"}, {"anchor": "z", "positive": "valve long text here"}
    )
    counts = [
        len(mine(rows, WIDE.model_copy(update=changes))[0]["negatives"][0])
        for changes in ({}, {"max_ratio": 0.5}, {"min_margin": 100.0})
    ]
    assert counts[0] >= counts[1] >= counts[2] == 0
    assert counts[0] > 0
    _, report = mine(rows, WIDE.model_copy(update={"min_margin": 100.0}))
    assert report["guarded_out"]["bm25"]["too_close"] > 0


def test_a_positive_that_the_retriever_cannot_see_gets_given_negatives_only() -> None:
    rows = rows_of({"anchor": "funny bone", "positive": "humerus point", "negatives": ["bone", "elbow"]}, *others(3))
    mined, report = mine(rows, WIDE)
    assert sorted(mined["negatives"][0]) == ["bone", "elbow"]
    assert report["rows_with_unscored_positive"] == 1


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"anchor": "b", "positive": "Heart, valve; heart valve TISSUE!"}, "same_text"),
        ({"anchor": "Heart valve", "positive": "heart and so on"}, "other_positive"),
        ({"anchor": "b", "positive": "heart and so on", "concept": "C1"}, "same_concept"),
        ({"anchor": "b", "positive": "known from elsewhere"}, "other_positive"),
    ],
)
def test_false_negatives_are_guarded_by_reason(other: dict[str, Any], reason: str) -> None:
    known = {"answers": [fingerprint("Known from elsewhere."), fingerprint("not in this file")]}
    given = {**FIRST, **known, "concept": "C1", "negatives": [other["positive"], "a true negative"]}
    mined, report = mine(rows_of(given, other, *others(2)), WIDE)
    assert other["positive"] not in mined["negatives"][0]
    assert "a true negative" in mined["negatives"][0]
    assert report["guarded_out"]["given"] == {reason: 1}


def test_duplicates_by_normal_form_are_kept_once() -> None:
    mined, report = mine(rows_of({**FIRST, "negatives": ["Lung.", "lung", "LUNG!", "..."]}, *others(1)), WIDE)
    assert mined["negatives"][0][0] == "Lung."
    assert mined["origins"][0].to_list().count("given") == 1
    assert report["guarded_out"]["given"] == {"duplicate": 2, "same_text": 1}


def test_given_come_first_and_fill_up() -> None:
    given = {**FIRST, "negatives": ["heart a", "heart valve thing here", "lung"]}
    params = WIDE.model_copy(update={"negatives": 4, "max_given": 1})
    mined, _ = mine(rows_of(given, *others(2)), params)
    assert mined["origins"][0].to_list() == ["given", "bm25", "bm25", "given"]
    assert mined["negatives"][0][0] == "heart valve thing here"
    mined, _ = mine(rows_of(given, *others(2)), params.model_copy(update={"max_given": 9}))
    assert mined["origins"][0].to_list() == ["given", "given", "given", "bm25"]


def test_the_rank_window_counts_from_one() -> None:
    rows = rows_of(FIRST, *others(10))
    first, _ = mine(rows, WIDE.model_copy(update={"rank_from": 2, "rank_to": 4}))
    assert len(first["negatives"][0]) == 3  # rank 1 is the positive itself


def test_given_are_checked_by_margin_only_when_asked() -> None:
    rows = rows_of({**FIRST, "negatives": ["heart valve heart valve"]}, *others(2))
    assert "given" in mine(rows, WIDE)[0]["origins"][0]
    assert "given" not in mine(rows, WIDE.model_copy(update={"check_given": True}))[0]["origins"][0]


def test_queries_are_cut_into_words_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cut, calls = bm25s.tokenize, list[int]()

    def count(texts: list[str], **options: Any) -> Any:
        calls.append(len(texts))
        return cut(texts, **options)

    monkeypatch.setattr("bm25s.tokenize", count)
    mined, _ = mine(rows_of(FIRST, *others(10)), WIDE)
    assert mined["negatives"].list.len().sum() > 0
    assert calls == [11, 11]  # queries and passages


def test_the_dense_model_proposes_and_judges(tmp_path: Path, in_float32: None) -> None:
    folder = pico_backbone(tmp_path / "pico")
    rows = rows_of({**FIRST, "negatives": ["lung"]}, *others(8))
    params = WIDE.model_copy(update={"dense_model": str(folder)})
    mined, report = mine(rows, params)
    assert {origin for row in mined["origins"] for origin in row} == {"given", "bm25", "dense"}
    assert report["hardness"]["dense"]["quantiles"]["0.95"] <= params.max_ratio
    assert mine(rows, params)[0].equals(mined)
    encoder = Encoder(load_model(folder))
    for row in mined.iter_rows(named=True):
        retrieved = [text for text, origin in zip(row["negatives"], row["origins"], strict=True) if origin != "given"]
        vectors = encoder.encode_passages([row["positive"], *retrieved])
        positive, *cosines = (vectors @ encoder.encode_queries([row["anchor"]])[0]).tolist()
        assert cosines == pytest.approx(sorted(cosines, reverse=True), abs=1e-5), "whoever proposed them"
        assert max(cosines, default=-1.0) < params.max_ratio * positive + 1e-5


def test_a_dense_model_that_gives_no_number_is_named_and_takes_no_negative(tmp_path: Path) -> None:
    folder = break_weights(pico_backbone(tmp_path / "pico"))
    rows = rows_of({**FIRST, "negatives": ["lung"]}, *others(6))
    with pytest.raises(DataError) as found:
        mine(rows, WIDE.model_copy(update={"dense_model": str(folder)}))
    assert str(found.value) == (
        f"'{folder}' gives NaN or infinity for 8 of 8 inputs; the model or its weights are broken"
    )


pieces = ["a", "b", "heart", " ", ".", "\x00", "\u202e", "\u05d0", "\U0001f600", "\n"]
text = st.lists(st.sampled_from(pieces), max_size=12).map("".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(text, text, st.lists(text, max_size=3), st.sampled_from(["", "c1", "c2"])), max_size=6))
def test_invariants_hold_for_any_text(items: list[tuple[str, str, list[str], str]]) -> None:
    names = ("anchor", "positive", "negatives", "concept")
    kept = [dict(zip(names, i, strict=True)) for i in items if i[0].strip() and i[1].strip()]
    rows = rows_of(FIRST, *kept)
    before = copy.deepcopy(rows.to_dicts())
    mined, report = mine(rows, WIDE)
    check_rows(mined, "mined")
    assert rows.to_dicts() == before
    assert mined.drop("negatives", "origins").equals(rows.drop("negatives", "origins"))
    for row in mined.to_dicts():
        forms = [normalise(negative) for negative in row["negatives"]]
        assert len(set(forms)) == len(forms) <= WIDE.negatives
        assert normalise(row["positive"]) not in forms
        assert normalise(row["anchor"]) not in forms
    assert report["negatives"] == sum(map(len, mined["negatives"].to_list()))
    assert mine(rows, WIDE)[1] == report


def test_the_stage_reads_and_writes_whole_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages import mine as stage

    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("mine: {negatives: 2, rank_from: 1}\n")
    write_rows(rows_of(FIRST, *others(4)), "data/pairs/nlu.parquet")
    stage.main("nlu")
    once = Path("data/mined/nlu.parquet").read_bytes()
    stage.main("nlu")
    assert Path("data/mined/nlu.parquet").read_bytes() == once
    assert read_rows("data/mined/nlu.parquet").height == 5
    assert json.loads(Path("reports/mine/nlu.json").read_text())["rows"] == 5


def test_a_reversed_window_is_refused() -> None:
    judge = {"endpoint": {"extra": {"stop": "x" * 300}}}
    with pytest.raises(ParamsError, match="rank_to must not be below") as caught:
        parse_section({"rank_from": 9, "rank_to": 3, "judge": judge}, MineParams, "mine")
    assert "given" not in str(caught.value)  # the whole section would be no help
