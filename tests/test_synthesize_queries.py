"""Written queries: round trip, reasons, rows that keep their passage and negatives; also with the real server."""

from typing import Any

import polars as pl
import pytest

from stm.llm.answers import Request
from stm.llm.store import AnswerStore
from stm.params.llm import Endpoint
from stm.params.synthesize import QueryParams, SynthesizeParams
from stm.schema import ROWS, check_rows
from stm.synthesize.estimate import describe_cost
from stm.synthesize.negatives import synthesize
from stm.synthesize.queries import SOURCE, check_query, tidy_query, write_queries
from stm.tasks import Passage, Task
from tests.fault_server import fault_server

PASSAGES = [
    "An abnormal enlargement of the liver, often felt below the ribs.",
    "Scarring of the kidney after long inflammation.",
    "A sudden loss of blood supply to the brain.",
    "An infection of the lung with fever and cough.",
]
ROWS_IN = pl.DataFrame(
    [
        {"id": f"r{i}", "anchor": "a", "positive": text, "negatives": ["n"], "origins": ["given"], "instruction": "",
         "source": "s", "concept": f"c{i}", "answers": [7]}
        for i, text in enumerate(PASSAGES)
    ],
    schema=ROWS,
)  # fmt: skip
PARAMS = QueryParams(rows=4, kinds=("question",), max_rank=1)


def scripted(body: dict[str, Any]) -> str:
    """A good question for the liver, a copy for the kidney, a stray one for the brain, a refusal for the lung."""
    passage = body["messages"][-1]["content"].splitlines()[0].removeprefix("<passage>").removesuffix("</passage>")
    answers = [
        "Why is my liver so enlarged?",
        "Scarring of the kidney after long",
        "What is a lung fever?",
        "I cannot help.",
    ]
    return answers[PASSAGES.index(passage)]


def test_only_queries_that_find_their_passage_become_rows(store: AnswerStore) -> None:
    with fault_server(answer=scripted) as server:
        endpoint = Endpoint(base_url=server.base_url, model="m")
        written = write_queries(ROWS_IN, PARAMS, endpoint, store, 500)
        assert {body["max_tokens"] for body in server.asked} == {40}
    assert written.report["outcomes"] == {"accepted": 1, "copies_passage": 1, "refusal": 1, "round_trip": 1}
    row = check_rows(written.rows, "written").row(0, named=True)
    assert (row["id"], row["anchor"], row["source"]) == ("r0-question", "Why is my liver so enlarged?", SOURCE)
    assert (row["positive"], row["negatives"], row["concept"]) == (PASSAGES[0], ["n"], "c0")
    assert row["answers"] == []  # those were the other query's
    assert "question" in row["instruction"]
    again = write_queries(ROWS_IN, PARAMS, endpoint, store, 500)  # from the store
    assert again.rows.equals(written.rows)


def test_the_same_question_counts_once(store: AnswerStore) -> None:
    params = QueryParams(rows=1, kinds=("question", "statement"))
    with fault_server(answer=lambda body: "Enlarged liver?") as server:
        report = write_queries(ROWS_IN, params, Endpoint(base_url=server.base_url), store, 500).report
    assert report == {"asked": 2, "accepted": 1, "outcomes": {"accepted": 1, "duplicate": 1}}


@pytest.mark.parametrize("replace_rows", [False, True])
def test_the_passages_own_query_is_one_that_is_there_unless_it_is_replaced(
    store: AnswerStore, replace_rows: bool
) -> None:
    rows = ROWS_IN.with_columns(anchor=pl.lit("Enlarged liver"))
    params = QueryParams(rows=1, kinds=("question",), replace_rows=replace_rows)
    with fault_server(answer=lambda body: "enlarged liver?") as server:
        report = write_queries(rows, params, Endpoint(base_url=server.base_url), store, 500).report
    assert report["outcomes"] == ({"accepted": 1} if replace_rows else {"duplicate": 1})


def test_a_query_that_failed_for_one_passage_may_be_that_of_another(store: AnswerStore) -> None:
    with fault_server(answer=lambda body: "What is a lung fever?") as server:
        report = write_queries(ROWS_IN, PARAMS, Endpoint(base_url=server.base_url), store, 500).report
    assert report["outcomes"] == {"accepted": 1, "round_trip": 3}


def test_what_answers_the_written_query_is_no_negative_of_it(store: AnswerStore) -> None:
    other = "A fever of the lung."
    first = {**ROWS_IN.row(3, named=True), "negatives": [other, "n", PASSAGES[0]], "origins": ["bm25", "given", "bm25"]}
    second = {**ROWS_IN.row(3, named=True), "id": "r5", "positive": other}
    known = {**ROWS_IN.row(0, named=True), "anchor": "What is a lung fever?"}
    rows = pl.DataFrame([first, second, known], schema=ROWS)
    with fault_server(answer=lambda body: "What is a lung fever?") as server:
        written = write_queries(
            rows, PARAMS.model_copy(update={"max_rank": 3}), Endpoint(base_url=server.base_url), store, 500
        )
    assert written.rows.row(0, named=True)["negatives"] == ["n"]
    assert written.rows.row(0, named=True)["origins"] == ["given"]


def test_a_written_query_that_a_row_has_already_takes_its_answer_from_that_rows_negatives(store: AnswerStore) -> None:
    negatives = [PASSAGES[0].upper(), "n"]  # the same passage in other letters
    asker = {**ROWS_IN.row(1, named=True), "anchor": "why is my LIVER so enlarged", "negatives": negatives}
    rows = pl.DataFrame([{**asker, "origins": ["bm25", "given"]}, *ROWS_IN.drop("id").insert_column(0, pl.Series(
        "id", ["s0", "s1", "s2", "s3"])).to_dicts()], schema=ROWS)  # fmt: skip
    with fault_server(answer=scripted) as server:
        params = SynthesizeParams(
            endpoint=Endpoint(base_url=server.base_url), rows=1, max_regenerations=0,
            queries=PARAMS.model_copy(update={"rows": 5}),
        )  # fmt: skip
        found = synthesize(rows, params, store).rows
    assert found.row(0, named=True)["negatives"] == ["n"]
    assert found.row(0, named=True)["origins"] == ["given"]
    (written,) = found.filter(pl.col("source") == SOURCE).to_dicts()
    assert (written["anchor"], written["positive"]) == ("Why is my liver so enlarged?", PASSAGES[0])


def test_a_query_that_was_cut_or_filtered_is_no_row(store: AnswerStore) -> None:
    answers = [
        ("Why is my liver so", "length", "cut"), ("Why is my liver so enlarged?", "content_filter", "filtered"),
        ("Why? And if I", "length", "round_trip"), ("1. liver\n2. belly\n3. ri", "length", "cut"),
    ]  # fmt: skip
    for seed, (text, finish, expected) in enumerate(answers):
        with fault_server(answer=lambda body, text=text: text, finish=finish) as server:
            endpoint = Endpoint(base_url=server.base_url, seed=seed)
            report = write_queries(ROWS_IN, PARAMS.model_copy(update={"rows": 1}), endpoint, store, 500).report
        assert report["outcomes"] == {expected: 1}


@pytest.mark.parametrize(
    ("text", "reason", "elsewhere"),
    [
        ("I have had a pain under my ribs for three days and I can't sleep.", "", "refusal"),
        ("I have a pain under my ribs.", "", "meta_text"),
        ("My daughter can\u2019t keep food down, and her belly is big.", "", ""),
        ("I'm sorry, but no.", "refusal", "refusal"),
        ("I apologize, but I'm not able to help with livers.", "refusal", "refusal"),
        ("Unfortunately, I am unable to write about livers.", "refusal", "refusal"),
        ("I don't have enough information about the person.", "refusal", "refusal"),
        ("I am SmolLM and need to know what swells.", "meta_text", "meta_text"),
        ("I have rephrased it: my belly is big.", "meta_text", "meta_text"),
        ("I cannot help with medical questions.", "refusal", "refusal"),
        ("As an AI I have no body.", "refusal", "refusal"),
    ],
)
def test_whoever_describes_a_situation_may_speak_of_oneself(text: str, reason: str, elsewhere: str) -> None:
    assert check_query(text, PASSAGES[0], PARAMS, is_personal=True) == reason
    assert check_query(text, PASSAGES[0], PARAMS) == elsewhere


def test_a_query_of_an_evaluation_task_is_not_written(store: AnswerStore) -> None:
    passage = {"p": Passage("", "something")}
    task = Task("t", "medical", passage, {"q": "why is my LIVER so enlarged"}, {"q": {"p": 1}})
    queries = PARAMS.model_copy(update={"replace_rows": True})
    with fault_server(answer=scripted) as server:
        params = SynthesizeParams(endpoint=Endpoint(base_url=server.base_url), rows=1, queries=queries)
        report = synthesize(ROWS_IN, params, store, tasks=[task]).report["queries"]
    assert (report["accepted"], report["outcomes"]["in_evaluation"]) == (0, 1)


def test_the_stage_appends_them_when_asked(store: AnswerStore) -> None:
    with fault_server(answer=scripted) as server:
        params = SynthesizeParams(
            endpoint=Endpoint(base_url=server.base_url), rows=1, max_regenerations=0, queries=PARAMS
        )
        result = synthesize(ROWS_IN, params, store)
    assert result.rows.height == 5
    assert result.report["queries"]["accepted"] == 1
    assert len(store.used) == 5


def test_written_queries_take_the_place_of_a_corpus_stand_in(
    store: AnswerStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with fault_server(answer=scripted) as server:
        endpoint = Endpoint(base_url=server.base_url)
        queries = PARAMS.model_copy(update={"replace_rows": True})
        result = synthesize(ROWS_IN, SynthesizeParams(endpoint=endpoint, rows=1, queries=queries), store)
    assert result.rows["id"].to_list() == ["r0-question", "r1", "r2", "r3"]
    assert result.report["queries"]["accepted"] == 1
    assert result.report["queries"]["replaced"] == {"s": 1}
    assert "they stand in the place of rows: 1 of s" in capsys.readouterr().err


def test_written_queries_get_negatives_of_their_own(store: AnswerStore) -> None:
    def answer(body: dict[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        if "one question" in prompt:
            return scripted(body)
        return "A slow shrinking of the spleen, hardly felt at all." if "enlarged?" in prompt else "I cannot help."

    with fault_server(answer=answer) as server:
        endpoint = Endpoint(base_url=server.base_url, concurrency=1)
        queries = PARAMS.model_copy(update={"replace_rows": True})
        params = SynthesizeParams(endpoint=endpoint, rows=1, prompt="full", max_regenerations=0, queries=queries)
        result = synthesize(ROWS_IN, params, store)
        prompts = [body["messages"][-1]["content"] for body in server.asked]
    assert sum("one question" in prompt for prompt in prompts) == 4  # before any negative
    assert ["<query>Why is my liver so enlarged?</query>" in prompt for prompt in prompts] == [False] * 4 + [True]
    first = result.rows.row(0, named=True)
    assert (first["id"], first["origins"]) == ("r0-question", ["synthetic", "given"])
    again = synthesize(ROWS_IN, params, store)  # the server is gone
    assert again.rows.equals(result.rows)


def test_mined_negatives_that_may_answer_the_written_query_go(store: AnswerStore) -> None:
    answering = "My liver is enlarged, so enlarged."
    negatives = pl.Series("negatives", [["A lung.", answering], ["n"], ["n"], ["n"]])
    rows = ROWS_IN.with_columns(negatives, pl.Series("origins", [["given", "bm25"], ["given"], ["given"], ["given"]]))
    with fault_server(answer=scripted) as server:
        params = SynthesizeParams(endpoint=Endpoint(base_url=server.base_url), rows=1, queries=PARAMS)
        result = synthesize(rows, params, store)
    assert result.rows["id"].to_list() == ["r0", "r1", "r2", "r3", "r0-question"]
    assert answering in result.rows["negatives"][0]
    assert result.rows["negatives"][4].to_list() == ["A lung."]
    assert result.rows["origins"][4].to_list() == ["given"]
    assert result.report["queries"]["negatives_too_close"] == 1
    assert result.report["queries"]["replaced"] == {}


def test_the_budget_holds_for_queries_and_they_are_in_the_estimate(
    store: AnswerStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with fault_server(answer=scripted) as server:
        endpoint = Endpoint(base_url=server.base_url, price_in=1.0, concurrency=1, max_tokens=20)
        params = SynthesizeParams(endpoint=endpoint, rows=1, max_regenerations=0, queries=PARAMS, max_total_tokens=130)
        report = synthesize(ROWS_IN, params, store).report
    assert report["queries"]["outcomes"]["budget"] > 0
    assert report["is_budget_exhausted"]
    assert report["tokens_in"] + report["tokens_out"] == 15 * len(store) <= 130
    shown = capsys.readouterr().err
    assert "1 rows and 4 queries, about" in shown.splitlines()[0]
    requests = [Request([{"role": "user", "content": "a"}])] * 4
    for rows, count in ((0, 8), (1000, 8), (6, 6), (4, 4)):  # written queries come after the rows
        told = describe_cost(requests, ROWS_IN, params.model_copy(update={"rows": rows}))
        assert told.startswith(f"{count} rows and 4 queries")
    assert "To go on, raise synthesize.max_total_tokens" in shown


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("I'm sorry, I can't.", "refusal"),
        ("Here is a question: why?", "meta_text"),
        ("What is the purpose of the study?", "meta_text"),
        ("What does this text say on livers?", "meta_text"),
        ("why " * 41, "too_long"),
        ("why " * 40, ""),
        ("liver ribs", ""),
        ("abnormal enlargement of the liver", "copies_passage"),
    ],
)
def test_queries_are_refused_with_a_reason(text: str, reason: str) -> None:
    assert check_query(text, PASSAGES[0], PARAMS) == reason


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Question: Why is my liver large?", "Why is my liver large?"),
        ('Q: "Why is my liver large?"', "Why is my liver large?"),
        ("My question is: What grows, and why?", "What grows, and why?"),
        ("**Keywords:**\n\n1. liver\n2. French fries\n3. ribs", "liver, French fries, ribs"),
        ("- liver\n- well-known signs", "liver, well-known signs"),
        ("liver, ribs", "liver, ribs"),
        ("1. vitamin D\n2. 10,000 IU", "vitamin D, 10,000 IU"),
        ("Is a dose of 2.5 mg - or 3 - enough?", "Is a dose of 2.5 mg - or 3 - enough?"),
        ("What does a 10,000 IU dose do in week 12. Is 5 - 10 mg safe?",) * 2,
        ("A liver: what is it?", "A liver: what is it?"),
        ("Which vitamin is vitamin A?", "Which vitamin is vitamin A?"),
        ("", ""),
    ],
)
def test_labels_and_lists_are_taken_off(text: str, query: str) -> None:
    assert tidy_query(text) == query


def test_the_real_model_writes_queries(store: AnswerStore) -> None:
    params = QueryParams(rows=2, kinds=("question",), max_tokens=24)
    endpoint = Endpoint(concurrency=2, context_tokens=512)
    report = write_queries(ROWS_IN, params, endpoint, store, 500).report
    assert report["asked"] == 2 == sum(report["outcomes"].values())
    assert len(store) == 2
