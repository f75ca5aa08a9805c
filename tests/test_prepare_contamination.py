"""Contamination: exact and near matches, stock phrases, agreement with a plain reference, removal and counts."""

import random
import unicodedata
from typing import Literal

import numpy as np
import polars as pl
import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from stm import words
from stm.prepare import contamination
from stm.prepare.contamination import EvaluationIndex, hash_grams, normalise, touched_queries
from stm.prepare.decontamination import Counts, decontaminate
from stm.tasks import Passage, Task

LONG = "one two three four five six seven eight nine ten eleven twelve"


def make_task(name: str, passages: list[Passage], queries: list[str] | None = None, **notes: object) -> Task:
    corpus = {f"p{i}": passage for i, passage in enumerate(passages)}
    texts = {f"q{i}": text for i, text in enumerate(queries or ["unrelated query"])}
    return Task(name, "general", corpus, texts, {"q0": {"p0": 1}}, notes)


def find(texts: list[str], *tasks: Task, max_overlap: float = 0.5) -> list[tuple[int, str]]:
    index = EvaluationIndex(tasks, max_overlap)
    return index.name_tasks(index.match(pl.Series(texts, dtype=pl.String))).rows()


@pytest.mark.parametrize("text", ["Heart attack", "  heart-ATTACK! ", "HEART\tattack."])
def test_equal_words_are_found_whatever_case_and_punctuation(text: str) -> None:
    assert find([text, "heart"], make_task("t", [Passage("", "heart attack")])) == [(0, "t")]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
def test_equal_words_are_found_whatever_their_unicode_form(form: Literal["NFC", "NFD", "NFKD"]) -> None:
    task = make_task("t", [Passage("", "Caf\u00e9 au lait spots and \ufb01brosis")])
    assert find([unicodedata.normalize(form, "caf\u00e9 au lait spots and \ufb01brosis")], task) == [(0, "t")]
    assert find(["caf au lait spots and fibrosis"], task) == []


@pytest.mark.parametrize("sign", ["\u00ad", "\u200b", "\u200d", "\ufeff", "\u2060"])
def test_invisible_characters_are_no_matter(sign: str) -> None:
    plain = "what causes hypertension " + LONG
    hidden = plain.replace("hyper", f"hyper{sign}").replace("ele", f"e{sign}le")
    assert find([hidden], make_task("t", [Passage("", plain)])) == [(0, "t")]
    assert find([plain], make_task("t", [Passage("", hidden)])) == [(0, "t")]
    assert words.normalise(hidden) == words.normalise(plain)
    assert words.fingerprint(hidden) == words.fingerprint(plain)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Stra\u00dfe", "STRASSE"),
        ("\u039f\u0394\u039f\u03a3 \u03ba\u03b1\u03b9", "\u03bf\u03b4\u03bf\u03c3 \u039a\u0391\u0399"),
    ],
)
def test_letters_whose_case_is_folded_are_found(text: str, other: str) -> None:
    assert find([other], make_task("t", [Passage("", text)])) == [(0, "t")]


def test_the_form_is_that_of_all_other_comparisons_for_every_character() -> None:
    letters = [chr(code) for code in range(0x30000) if unicodedata.category(chr(code)) not in ("Cs", "Cn", "Lo")]
    texts = [text for letter in letters for text in (letter, f"a{letter}B c", f"{letter} {letter.upper()}\u0301")]
    differing = [
        text for text, form in zip(texts, normalise(pl.Series(texts)), strict=True) if form != words.normalise(text)
    ]
    # Of scripts without spaces every character is a word of its own in the guard.
    unspaced = regex.compile(f"[{words.UNSPACED}]", regex.V1)
    assert [text for text in differing if not unspaced.search(unicodedata.normalize("NFKC", text))] == []


def test_fingerprints_of_plain_texts_stay_what_files_hold() -> None:
    texts = ("Stra\u00dfe, no. 5!", "caf\u00e9 \u5fc3", "C++", "?!")
    assert [words.fingerprint(text) for text in texts] == [
        5970690215091962906,
        17217038932630210419,
        3981009880206486555,
        11528102465844907301,
    ]


def test_marks_are_part_of_their_words() -> None:
    assert find(["\u0915\u093f"], make_task("t", [Passage("", "\u0915\u0940")])) == [], "two vowel signs, two words"


def test_a_titled_passage_is_found_with_and_without_its_title() -> None:
    task = make_task("t", [Passage("A title", "some text")])
    assert find(["a title some text", "Some text", "a title"], task) == [(0, "t"), (1, "t")]


def test_queries_are_found_and_all_tasks_are_named() -> None:
    first = make_task("first", [Passage("", "x")], ["shared words"])
    second = make_task("second", [Passage("", "shared words")])
    assert find(["Shared words"], first, second) == [(0, "first"), (0, "second")]


def test_texts_without_letters_match_nothing() -> None:
    assert find(["!!!", "", "?"], make_task("t", [Passage("", "...")])) == []


def test_other_scripts_are_compared_too() -> None:
    assert find(["СЕРДЦЕ", "心"], make_task("t", [Passage("", "сердце")])) == [(0, "t")]


def test_near_copies_are_found_both_ways() -> None:
    task = make_task("t", [Passage("", LONG)])
    inside = "before it " * 20 + LONG + " and after it" * 20
    part = " ".join(LONG.split()[:9])
    assert find([LONG + " thirteen", inside, part, "quite another text of more than eight words here"], task) == [
        (0, "t"),
        (1, "t"),
        (2, "t"),
    ]


def test_the_tolerated_overlap_is_a_threshold() -> None:
    task = make_task("t", [Passage("", LONG)])  # five 8-grams
    half = " ".join(LONG.split()[:10]) + " a b c d e f g"  # shares three of the five
    assert find([half], task, max_overlap=0.5) == [(0, "t")]
    assert find([half], task, max_overlap=0.6) == []
    one = " ".join(LONG.split()[:8]) + " a b c d e f g h i j k"
    assert find([one], task, max_overlap=0.0) == [(0, "t")]


def test_stock_phrases_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "COMMON", 3)
    stock = "any disease in which the cause of it is"
    task = make_task("t", [Passage("", f"{stock} number{i}") for i in range(5)])
    assert find([f"{stock} something else", f"{stock} number3"], task) == [(1, "t")]
    assert EvaluationIndex([task], 0.5).describe()["stock_phrases"] == 2


def test_the_passages_of_an_open_corpus_may_be_trained_on_but_not_its_queries() -> None:
    task = make_task("t", [Passage("", LONG)], ["a query"], open_corpus=True)
    assert find([LONG, "a query"], task) == [(1, "t")]


def test_no_tasks_and_no_texts() -> None:
    assert find(["text"]) == []
    assert find([], make_task("t", [Passage("", "x")])) == []


def test_slices_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    texts = [" ".join(rng.choice("abcdefgh") for _ in range(rng.randint(1, 30))) for _ in range(60)]
    task = make_task("t", [Passage("", text) for text in texts[:30]])
    whole = find(texts, task)
    monkeypatch.setattr(contamination, "SLICE", 7)
    assert find(texts, task) == whole


def reference_grams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}


def is_same(text: str, other: str, max_overlap: float) -> bool:
    mine, theirs = reference_grams(text), reference_grams(other)
    return text == other or len(mine & theirs) > max_overlap * min(len(mine), len(theirs))


TEXTS = st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=14).map(" ".join), min_size=1, max_size=8)


@given(TEXTS, TEXTS, st.sampled_from([0.0, 0.3, 0.5, 0.9]))
@settings(max_examples=60, deadline=None)
def test_agrees_with_a_plain_reference(passages: list[str], texts: list[str], max_overlap: float) -> None:
    task = make_task("t", [Passage("", passage) for passage in passages], ["query"])
    expected = [(i, "t") for i, text in enumerate(texts) if any(is_same(text, p, max_overlap) for p in passages)]
    assert find(texts, task, max_overlap=max_overlap) == expected


def test_grams_never_cross_texts() -> None:
    grams, owners = hash_grams(normalise(pl.Series(["a b c d", "e f g h i j k l", "", "a b c d e f g h i"])))
    assert owners.tolist() == [1, 3, 3]
    assert len(set(grams.tolist())) == 3


def make_rows(*rows: tuple[str, str, list[str]]) -> pl.DataFrame:
    schema = pl.Schema([("anchor", pl.String()), ("positive", pl.String()), ("negatives", pl.List(pl.String))])
    frame = pl.DataFrame(list(rows), schema=schema, orient="row").with_row_index("row")
    return frame.with_columns(synthetic=pl.lit(""))


def test_rows_go_for_anchor_or_positive_and_negatives_alone() -> None:
    index = EvaluationIndex([make_task("t", [Passage("", "leaked passage")], ["leaked query"])], 0.5)
    rows = make_rows(
        ("leaked query", "fine", []),
        ("leaked query", "leaked passage", ["x"]),
        ("fine", "fine too", ["b", "Leaked passage", "a"]),
        ("other", "leaked passage", []),
        ("kept", "whole", []),
    )
    clean, counts = decontaminate(rows, index)
    assert clean.rows() == [(2, "fine", "fine too", ["b", "a"], ""), (4, "kept", "whole", [], "")]
    expected = {"tested": 5, "found": 3, "found_by_task": {"t": 3}, "negatives": 3, "negatives_found": 1}
    assert counts.describe() == {**expected, "removed": 3, "negatives_removed": 1}
    whole, kept = decontaminate(rows, index, remove=False)
    assert whole.equals(rows)
    assert kept.describe() == {**expected, "removed": 0, "negatives_removed": 0}
    assert kept.texts == counts.texts
    assert len(counts.texts) == 2


def test_clean_rows_stay_as_they_are() -> None:
    rows = make_rows(("a", "b", ["z", "y"]), ("c", "d", []))
    clean, counts = decontaminate(rows, EvaluationIndex([make_task("t", [Passage("", "x")])], 0.5))
    assert clean.equals(rows)
    assert (counts.removed, counts.negatives_removed) == (0, 0)


def test_counts_add_up() -> None:
    index = EvaluationIndex([make_task("t", [Passage("", "leak")])], 0.5)
    total = Counts()
    for _ in range(2):
        total.add(decontaminate(make_rows(("leak", "x", [])), index)[1])
    assert total.describe()["found_by_task"] == {"t": 2}


def test_touched_queries_are_those_met_themselves_or_by_a_relevant_passage() -> None:
    corpus = {"p0": Passage("Title", "met without title"), "p1": Passage("", "judged 0"), "p2": Passage("", LONG)}
    queries = {"q0": "by passage", "q1": "by itself", "q2": "by a near copy", "q3": "by nothing", "q4": "by nobody"}
    qrels = {"q0": {"p0": 1}, "q1": {"p1": 1}, "q2": {"p2": 2}, "q3": {"p1": 0, "p0": 0}, "q4": {"p1": 1}}
    qrels["q4"] = qrels["q1"] = {"p1": 0}
    task = Task("t", "general", corpus, queries, qrels)
    index = EvaluationIndex([task], 0.5)
    texts = pl.Series(["Met, without TITLE!", "by itself", "before " + LONG, "judged 0", "by"])
    met = index.match(texts)["text"].to_numpy()
    assert touched_queries(task, met) == ["q0", "q1", "q2"]
    opened = Task("t", "general", corpus, queries, qrels, {"open_corpus": True})
    assert touched_queries(opened, met) == ["q1"]
    assert touched_queries(task, np.empty(0, np.uint64)) == []


def test_buckets_sieve_and_slices_agree_with_the_plain_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contamination, "SLICE", 50)
    rng = random.Random(3)
    passages = [" ".join(rng.choice("abc") for _ in range(rng.randint(5, 20))) for _ in range(300)]
    texts = [" ".join(rng.choice("abc") for _ in range(rng.randint(5, 20))) for _ in range(120)] + passages[::40]
    index = EvaluationIndex([make_task("t", [Passage("", text) for text in passages])], 0.4)
    expected = [(i, "t") for i, text in enumerate(texts) if any(is_same(text, p, 0.4) for p in passages)]
    assert 0 < len(expected) < len(texts)
    assert index.name_tasks(index.match(pl.Series(texts))).rows() == expected


@pytest.mark.parametrize(
    "script",
    [
        "\u809d\u810f\u80bf\u5927\u662f\u4e00\u79cd\u5e38\u89c1\u7684\u4f53\u5f81",
        "\u0e15\u0e31\u0e1a\u0e42\u0e15\u0e40\u0e1b\u0e47\u0e19\u0e2d\u0e32\u0e01\u0e32\u0e23\u0e17\u0e35\u0e48\u0e1e\u0e1a\u0e1a\u0e48\u0e2d\u0e22",
    ],
)
def test_near_copies_are_found_where_no_spaces_stand_between_words(script: str) -> None:
    task = Task("t", "medical", {"p": Passage("", script)}, {"q": "query"}, {"q": {"p": 1}})
    index = EvaluationIndex([task], 0.5)
    texts = [script, "\u7b2c\u4e00 " + script, script[:-1] + "x", "\u5fc3 heart", "heart"]
    assert index.match(pl.Series(texts))["index"].to_list() == [0, 1, 2]
