"""Judging many answers: a replay shows how far it is, on one line at a time, and what is saved changes no verdict."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm.bm25 import Lexicon, tokenize
from stm.llm.answers import Answer
from stm.llm.store import AnswerStore
from stm.params.synthesize import Validation
from stm.progress import Meter
from stm.synthesize.language import LOOKED_AT, _script, main_script
from stm.synthesize.negatives import synthesize
from stm.synthesize.prompt import Triplet
from stm.synthesize.similarity import LexicalSimilarity
from stm.synthesize.validate import check_margins, check_text, copied_share, ngrams, tidy, validate
from stm.words import words_of
from tests.fault_server import fault_server
from tests.test_synthesize import params_of, rows_of, write_negative

WORDS = "swollen liver kidney fluid abnormal enlargement absence birth infection shrinks slowly often after of the a"
TEXTS = st.lists(st.sampled_from(WORDS.split()), min_size=1, max_size=12).map(" ".join)
TRIPLETS = st.builds(Triplet, st.just(""), TEXTS, TEXTS, TEXTS | st.just(""))
LIMITS = st.sampled_from([0.0, 0.2])


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("stm.params.llm.REQUESTS", "stm.synthesize.negatives.REQUESTS"):
        monkeypatch.setattr(place, 3)
    monkeypatch.setattr("stm.progress.LOG_EVERY_SECONDS", -1.0)


def lines_of(shown: str) -> list[str]:
    return [line.split(" in ")[0].strip() for line in shown.splitlines() if "check negatives" in line]


@pytest.mark.usefixtures("small_chunks")
def test_a_replay_shows_its_progress(store: AnswerStore, capsys: pytest.CaptureFixture[str]) -> None:
    with fault_server(answer=write_negative) as server:
        params = params_of(server)
        first = synthesize(rows_of(8), params, store)
    expected = [f"check negatives, attempt 1: {done}/8" for done in (3, 6, 8)]
    shown = capsys.readouterr().err
    assert lines_of(shown) == expected
    assert "write negatives, attempt 2: 3/3" in shown  # which says it all: three are checked in one part
    again = synthesize(rows_of(8), params, store)  # the server is gone
    shown = capsys.readouterr().err
    assert lines_of(shown) == expected
    assert "write negatives" not in shown
    assert again.rows.equals(first.rows)


@pytest.mark.usefixtures("small_chunks")
def test_rows_without_an_answer_count_as_done(store: AnswerStore, capsys: pytest.CaptureFixture[str]) -> None:
    with fault_server(lambda n, b: "400" if "liver0" in str(b) else "ok", answer=write_negative) as server:
        synthesize(rows_of(4), params_of(server, max_regenerations=0), store)
    assert lines_of(capsys.readouterr().err) == [f"check negatives, attempt 1: {done}/4" for done in (3, 4)]


@pytest.mark.usefixtures("small_chunks")
def test_no_two_meters_are_open_at_once(store: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    seen: set[str] = set()

    def enter(self: Meter) -> Meter:
        assert not opened, f"{self.description} opens beside {opened}"
        opened.append(self.description)
        seen.add(self.description)
        return self

    monkeypatch.setattr(Meter, "__enter__", enter)
    monkeypatch.setattr(Meter, "__exit__", lambda self, *_: opened.remove(self.description))

    def answer(body: dict[str, Any]) -> str:
        return "No." if "one word, yes or no" in body["messages"][-1]["content"] else write_negative(body)

    with fault_server(answer=answer) as server:
        synthesize(rows_of(8), params_of(server, max_regenerations=0, validation={"judge": True}), store)
    assert seen == {"write negatives, attempt 1", "check negatives, attempt 1", "judge"}


def test_batch_files_are_judged_in_parts(store: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_server(answer=write_negative) as server:
        params = params_of(server, max_regenerations=0)
        whole = synthesize(rows_of(8), params, store)
    monkeypatch.setattr("stm.synthesize.negatives.REQUESTS", 3)
    shown: list[int] = []
    monkeypatch.setattr(Meter, "advance", lambda self, count=1, note="": shown.append(count))
    endpoint = params.endpoint.model_copy(update={"batch": True})
    parts = synthesize(rows_of(8), params.model_copy(update={"endpoint": endpoint}), store)
    assert shown == [3, 3, 2]
    assert parts.rows.equals(whole.rows)
    assert parts.report["rejected"] == whole.report["rejected"]


def judge_plainly(
    answers: Sequence[Answer], rows: Sequence[Triplet], params: Validation, lexicon: Lexicon
) -> list[tuple[str, str]]:
    """The rules as docs/synthesis.md states them: every score, for every text."""
    verdicts = []
    for answer, row in zip(answers, rows, strict=True):
        text = tidy(answer.text, is_cut=False)
        reason = check_text(text, row, params)
        if not reason:
            topic, own = lexicon.score([row.positive, row.positive], [text, row.positive])
            score, positive, mined = lexicon.score([row.query] * 3, [text, row.positive, row.mined])
            compared = mined if row.mined else None
            reason = check_margins(topic / own if own > 0 else 1.0, score, positive, compared, params)
        verdicts.append((text, reason))
    return verdicts


@given(st.lists(st.tuples(TRIPLETS, TEXTS), max_size=6), LIMITS, LIMITS, LIMITS)
def test_verdicts_are_those_of_the_plain_rules(
    pairs: list[tuple[Triplet, str]], min_topic: float, min_ratio: float, min_ratio_to_mined: float
) -> None:
    params = Validation(
        min_words=1, max_copy=1.0, min_topic=min_topic, min_ratio=min_ratio, min_ratio_to_mined=min_ratio_to_mined
    )
    corpus = [row.positive for row, _ in pairs]
    rows, answers = [row for row, _ in pairs], [Answer(text, "stop", 1, 1) for _, text in pairs]
    expected = judge_plainly(answers, rows, params, Lexicon.fit(corpus))
    assert validate(answers, rows, params, LexicalSimilarity(corpus)) == expected


@given(st.lists(st.lists(st.tuples(TEXTS, TEXTS), max_size=4), max_size=4))
def test_scores_are_those_of_the_lexicon_in_whichever_order_texts_come(calls: list[list[tuple[str, str]]]) -> None:
    corpus = ["swollen liver", "an infection of the kidney"]
    similarity = LexicalSimilarity(corpus)
    for pairs in calls:
        queries, passages = [query for query, _ in pairs], [passage for _, passage in pairs]
        assert similarity.query_to_passage(queries, passages) == Lexicon.fit(corpus).score(queries, passages)
        assert similarity._lexicon._cut.keys() == {*queries, *passages}, "of earlier calls nothing is held"


@pytest.mark.parametrize("limits", [{"min_topic": 0.0}, {}, {"min_ratio_to_mined": 0.01}])
def test_no_passage_is_cut_into_words_twice(limits: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    cut: Counter[str] = Counter()

    def count(texts: Sequence[str]) -> list[list[str]]:
        cut.update(texts)
        return tokenize(texts)

    similarity = LexicalSimilarity(["swollen liver", "an infection of the kidney"])
    monkeypatch.setattr("stm.bm25.tokenize", count)
    row = Triplet("", "swollen liver", "An abnormal liver swollen by fluid.", "Absence of the liver from birth.")
    answer = Answer("A liver that shrinks slowly by fluid.", "stop", 1, 1)
    validate([answer] * 3, [row] * 3, Validation(**limits), similarity)
    mined = [row.mined] if "min_ratio_to_mined" in limits else []
    del cut[row.query]  # short, and may be cut again
    assert cut == dict.fromkeys([row.positive, answer.text, *mined], 1)


def test_a_limit_of_zero_asks_for_no_score() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.asked: list[str] = []

        def query_to_passage(self, queries: Sequence[str], passages: Sequence[str]) -> list[float]:
            self.asked.append(passages[0])
            return [1.0 if passages[0].startswith("positive") else 0.5] * len(passages)

        def passage_to_passage(self, references: Sequence[str], passages: Sequence[str]) -> list[float]:
            self.asked.append("topic")
            return [0.5] * len(passages)

    row = Triplet("", "the query", "positive words on one subject", "mined words on some other subject")
    answer = Answer("written words about yet another subject", "stop", 1, 1)
    for limits, asked in (
        ({"min_topic": 0.0}, [row.positive, answer.text]),
        ({}, [row.positive, "topic", answer.text]),
        ({"min_topic": 0.0, "min_ratio_to_mined": 0.1}, [row.positive, answer.text, row.mined]),
    ):
        recorder = Recorder()
        assert validate([answer], [row], Validation(**limits), recorder) == [(answer.text, "")]
        assert recorder.asked == asked


@given(st.text(max_size=60), st.text(max_size=60), st.integers(1, 4))
def test_copied_share_is_what_it_says(left: str, right: str, n: int) -> None:
    ours, theirs = (ngrams(words_of(text), min(n, len(words_of(left)), len(words_of(right)))) for text in (left, right))
    shares = [sum(g in b for g in a) / len(a) for a, b in ((ours, theirs), (theirs, ours)) if ours and theirs]
    assert copied_share(left, right, n) == max(shares, default=0.0)


@given(st.text(st.sampled_from("ab \u0436\u0438\u809d\u306e\u30ab1.")))
def test_the_main_script_is_counted_by_letters(text: str) -> None:
    counts = Counter(_script(char) for char in text[:LOOKED_AT] if char.isalpha())
    kana = counts.pop("HIRAGANA", 0) + counts.pop("KATAKANA", 0)
    if not kana:
        assert main_script(text) == min(counts, key=lambda script: (-counts[script], script), default="")
