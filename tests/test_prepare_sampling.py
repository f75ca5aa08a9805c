"""Sampling: even shares, independence of what is drawn, and the form of the rows."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm.prepare import sampling
from stm.prepare.candidates import Candidates, make_frame, tidy
from stm.prepare.contamination import EvaluationIndex
from stm.prepare.sampling import as_rows, draw, share_out
from stm.schema import check_rows
from stm.tasks import Passage, Task
from stm.words import fingerprint

CLEAN = EvaluationIndex([], 0.5)


def make_source(label: str, count: int) -> Candidates:
    columns = {
        "anchor": [f"{label} query {i}" for i in range(count)],
        "positive": [f"{label} passage {i}" for i in range(count)],
        "negatives": [[f"n{i}", f"{label} passage {i}", "z", "z", "y", "x"] for i in range(count)],
    }
    return tidy([Candidates(label, make_frame(columns, label))], "s")[0]


def keys(taken: dict[str, pl.DataFrame]) -> dict[str, list[int]]:
    return {label: frame["row"].to_list() for label, frame in taken.items()}


@pytest.mark.parametrize(
    ("total", "available", "shares"),
    [
        (10, [9, 9], [5, 5]),
        (10, [2, 99], [2, 8]),
        (7, [9, 9, 9], [3, 2, 2]),
        (99, [3, 4], [3, 4]),
        (5, [0, 9], [0, 5]),
        (0, [4], [0]),
    ],
)
def test_share_out(total: int, available: list[int], shares: list[int]) -> None:
    assert share_out(total, available) == shares


@given(st.integers(0, 200), st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_shares_are_whole_and_even(total: int, available: list[int]) -> None:
    shares = share_out(total, available)
    assert sum(shares) == min(total, sum(available))
    assert all(share <= count for share, count in zip(shares, available, strict=True))
    unfilled = [share for share, count in zip(shares, available, strict=True) if share < count]
    assert not unfilled or max(shares) - min(unfilled) <= 1


def test_a_small_draw_is_the_start_of_a_large_one() -> None:
    sources = [make_source("a", 40), make_source("b", 40)]
    small, large, whole = (keys(draw(sources, CLEAN, split="s", total=n, seed=1)[0]) for n in (10, 30, 0))
    for label in ("a", "b"):
        assert small[label] == large[label][:5] == whole[label][:5]
        assert sorted(whole[label]) == list(range(40))
        assert whole[label] != list(range(40))


def test_the_other_end_shares_no_row_until_it_must() -> None:
    sources = [make_source("a", 40)]
    front = keys(draw(sources, CLEAN, split="s", total=20, seed=1)[0])["a"]
    back = keys(draw(sources, CLEAN, split="s", total=20, seed=1, from_end=True)[0])["a"]
    assert sorted(front + back) == list(range(40))


def test_seed_and_split_change_the_draw() -> None:
    draws = [
        keys(draw([make_source("a", 50)], CLEAN, split=s, total=10, seed=n)[0])["a"]
        for s, n in (("s", 1), ("s", 2), ("t", 1))
    ]
    assert len({tuple(rows) for rows in draws}) == 3


def test_only_what_is_drawn_is_tested_and_lost_rows_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "STEP", 4)
    corpus = {str(i): Passage("", f"a passage {i}") for i in range(0, 60, 2)}
    task = Task("t", "general", corpus, {"q": "query"}, {"q": {"0": 1}})
    index = EvaluationIndex([task], 0.5)
    sources = [make_source("a", 60), make_source("b", 60)]
    taken, counts = draw(sources, index, split="s", total=20, seed=1)
    assert [frame.height for frame in taken.values()] == [10, 10]
    assert all(row % 2 for row in taken["a"]["row"])
    assert counts["a"].removed > 0
    assert counts["a"].found_by_task == {"t": counts["a"].removed}
    assert counts["b"].tested < 20
    taken, _ = draw(sources, index, split="s", total=80, seed=1)
    assert [frame.height for frame in taken.values()] == [30, 50]


def test_where_nothing_is_removed_the_counts_are_those_of_the_rows_taken() -> None:
    corpus = {str(i): Passage("", f"a passage {i}") for i in range(0, 600, 2)}
    index = EvaluationIndex([Task("t", "general", corpus, {"q": "query"}, {"q": {"0": 1}})], 0.5)
    taken, counts = draw([make_source("a", 600)], index, split="s", total=20, seed=1, remove=False)
    assert (counts["a"].tested, taken["a"].height) == (20, 20)
    assert counts["a"].found == sum(row % 2 == 0 for row in taken["a"]["row"]) > 0


def test_rows_have_the_schema_and_tidy_negatives() -> None:
    sources = [make_source("a", 6), make_source("b", 6)]
    taken, _ = draw(sources, CLEAN, split="s", total=8, seed=1)
    rows = check_rows(as_rows(taken, sources, "s", 1, 3), "test")
    assert rows.height == 8
    row = rows.row(0, named=True)
    number = row["id"].split("/")[2]
    assert row["id"] == f"s/{row['source']}/{number}"
    assert row["negatives"] == [f"n{number}", "z", "y"]
    assert row["origins"] == ["given"] * 3
    assert set(rows["source"][:6]) == {"a", "b"}


def test_no_negatives_on_request() -> None:
    sources = [make_source("a", 3)]
    taken, _ = draw(sources, CLEAN, split="s", total=0, seed=1)
    rows = check_rows(as_rows(taken, sources, "s", 1, 0), "test")
    assert rows["negatives"].to_list() == rows["origins"].to_list() == [[], [], []]


def pairs(*rows: tuple[str, str, list[str]]) -> list[Candidates]:
    columns = {name: [row[place] for row in rows] for place, name in enumerate(("anchor", "positive", "negatives"))}
    return tidy([Candidates("a", make_frame(columns, "a"))], "s")


def test_rows_know_the_answers_of_candidates_that_were_not_drawn() -> None:
    more = [("q1", text, list[str]()) for text in ("Two.", "three", "x")]
    sources = pairs(("q1", "one", []), ("q2", "two", ["three"]), *more)
    taken = {"a": sources[0].frame.filter(pl.col("row").is_in([0, 1]))}
    rows = {row["anchor"]: row for row in check_rows(as_rows(taken, sources, "s", 1, 3), "test").to_dicts()}
    assert rows["q1"]["answers"] == sorted(map(fingerprint, ("one", "two", "three")))  # "x" is in no drawn row
    assert rows["q2"]["answers"] == []


def test_a_pair_that_is_repeated_once_per_negative_keeps_them_all() -> None:
    source = pairs(("q", "p", ["a"]), ("q", "p", ["b"]), ("q2", "p", []), ("Q", "p!", ["c", "a"]))[0]
    assert source.frame["negatives"].to_list() == [["a", "b", "c", "a"], []]
    assert source.facts["duplicates"] == 2
    rows = as_rows({"a": source.frame}, [source], "s", 1, 7)
    assert sorted(map(sorted, rows["negatives"].to_list())) == [[], ["a", "b", "c"]]


def test_texts_of_signs_alone_differ() -> None:
    assert len({fingerprint(text) for text in ("\U0001f642", "\U0001f44d", "")}) == 3
    assert fingerprint("A  text.") == fingerprint("a text")
    frame = make_frame(
        {"anchor": ["great", "great", "\U0001f642"], "positive": ["\U0001f642", "\U0001f44d", "\U0001f44d"]}, ""
    )
    assert tidy([Candidates("s", frame)], "s")[0].frame.height == 3


def test_only_passages_of_queries_with_several_answers_get_a_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"anchor": ["q", "q", "r"], "positive": ["one", "two", "three"], "negatives": [["three"], ["n"], ["n"]]}
    source = tidy([Candidates("a", make_frame(columns, "a"))], "s")[0]
    asked: list[str] = []

    def note(text: str) -> int:
        asked.append(text)
        return fingerprint(text)

    monkeypatch.setattr(sampling, "fingerprint", note)
    taken, _ = draw([source], CLEAN, split="s", total=0, seed=1)
    rows = as_rows(taken, [source], "s", 1, 4)
    assert sorted(asked) == ["one", "two"]
    several = sorted(map(fingerprint, ("one", "two")))
    assert dict(rows.select("positive", "answers").iter_rows()) == {"one": several, "two": several, "three": []}
