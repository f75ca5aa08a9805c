"""Judges in the false-negative guard: a real cross-encoder, an LLM behind an endpoint, both, budget and replay."""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification

from stm.errors import DataError, EndpointError, ModelError
from stm.llm.store import AnswerStore
from stm.mine.judges import LIMIT_REACHED, describe_cost, make_judges
from stm.mine.rows import mine
from stm.params.llm import Endpoint
from stm.params.mine import JudgeParams, MineParams
from stm.schema import write_rows
from stm.synthesize.judge import read_opinion
from tests.fault_server import fault_server
from tests.pico import break_weights, pico_backbone, pico_tokenizer
from tests.test_mine import rows_of

ROWS = rows_of(
    {"anchor": "heart valve", "positive": "heart valve heart valve tissue", "negatives": ["lung heart"]},
    *({"anchor": f"query{i} valve", "positive": f"valve query{i} query{i} item{i}"} for i in range(12)),
)
WIDE = MineParams(rank_from=1, rank_to=100, max_ratio=0.999, negatives=4, max_given=1)


def pico_cross_encoder(folder: Path, labels: int = 1) -> Path:
    """A random two-layer BERT with a head whose scores spread over (0, 1)."""
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=258, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=128, num_labels=labels, pad_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    return folder


def negatives_of(rows: pl.DataFrame) -> list[list[str]]:
    return [list(row) for row in rows["negatives"].to_list()]


def test_the_cross_encoder_refuses_what_it_ranks_with_the_positive(store: AnswerStore, tmp_path: Path) -> None:
    folder = pico_cross_encoder(tmp_path / "cross")
    params = WIDE.model_copy(update={"judge": JudgeParams(cross_encoder=str(folder), max_ratio=0.9)})
    mined, report = mine(ROWS, params, make_judges(params.judge, store))
    plain, _ = mine(ROWS, WIDE.model_copy(update={"negatives": 64}))
    model = CrossEncoder(str(folder), device="cpu")
    some_refused = False
    for row, kept, ranked in zip(ROWS.to_dicts(), negatives_of(mined), negatives_of(plain), strict=True):
        texts = [row["positive"], *ranked]
        scores = model.predict([(row["anchor"], t) for t in texts], activation_fn=torch.nn.Sigmoid()).tolist()
        passed = [text for text, score in zip(ranked, scores[1:], strict=True) if score < 0.9 * scores[0]]
        assert kept == passed[: params.negatives]
        some_refused |= len(passed) < len(ranked)
    assert some_refused
    refused = sum(reasons.get("cross_encoder", 0) for reasons in report["guarded_out"].values())
    assert 0 < refused < report["judges"]["cross_encoder"]["asked"]
    assert report["judges"]["cross_encoder"]["asked"] == refused + report["negatives"]


@pytest.mark.parametrize(("name", "value"), [("classifier.weight", torch.nan), ("classifier.bias", torch.inf)])
def test_a_cross_encoder_that_gives_no_number_is_an_error_and_takes_no_negative(
    store: AnswerStore, tmp_path: Path, name: str, value: float
) -> None:
    folder = pico_cross_encoder(tmp_path / "cross")
    break_weights(folder, name, value)
    params = WIDE.model_copy(update={"judge": JudgeParams(cross_encoder=str(folder))})
    with pytest.raises(DataError) as found:
        mine(ROWS, params, make_judges(params.judge, store))
    assert re.match(rf"'{folder}' gives NaN or infinity for (\d+) of \1 inputs; the model or its", str(found.value))


def test_what_is_no_cross_encoder_is_refused(store: AnswerStore, tmp_path: Path) -> None:
    faults = {
        "LlamaModel": str(pico_backbone(tmp_path / "plain")),
        "3 outputs": str(pico_cross_encoder(tmp_path / "three", labels=3)),
        "cannot load": str(tmp_path),
        "no revision": "some/cross-encoder",
    }
    for message, name in faults.items():
        with pytest.raises(ModelError, match=message):
            make_judges(JudgeParams(cross_encoder=name), store)


def says_yes_to_even_items(body: dict[str, Any]) -> str:
    prompt = body["messages"][-1]["content"]
    passage = prompt.split("<passage>")[1].split("</passage>")[0]
    digits = "".join(c for c in passage.rsplit(" ", 1)[-1] if c.isdigit())
    return "maybe" if digits == "1" else "Yes" if digits and int(digits) % 2 == 0 else "no."


def test_the_llm_refuses_answers_and_the_next_candidate_is_asked_about(store: AnswerStore) -> None:
    with fault_server(answer=says_yes_to_even_items) as server:
        judge = JudgeParams(llm=True, endpoint=Endpoint(base_url=server.base_url, model="m"))
        params = WIDE.model_copy(update={"judge": judge})
        mined, report = mine(ROWS, params, make_judges(judge, store))
        asked = len(server.asked)
        assert all(body["temperature"] == 0.0 for body in server.asked)
    for kept in negatives_of(mined):
        assert not [text for text in kept if text.endswith(("item0", "item1", "item2", "item4", "item8"))]
        assert len(kept) == 4  # refused ones were replaced
    guarded = report["guarded_out"]["bm25"]
    assert guarded["answers_query"] > 0 < guarded["unjudged"]
    assert (
        report["judges"]["llm"]["asked"]
        == asked
        == guarded["answers_query"] + guarded["unjudged"] + report["negatives"]
    )
    again, _ = mine(ROWS, params, make_judges(judge, store))  # the server is gone
    assert again.equals(mined)


def test_both_judges_see_every_negative_that_is_kept(store: AnswerStore, tmp_path: Path) -> None:
    folder = pico_cross_encoder(tmp_path / "cross")
    with fault_server(answer=says_yes_to_even_items) as server:
        judge = JudgeParams(
            cross_encoder=str(folder), max_ratio=0.9, llm=True, endpoint=Endpoint(base_url=server.base_url, model="m")
        )
        judges = make_judges(judge, store)
        assert list(judges) == ["cross_encoder", "llm"]
        mined, report = mine(ROWS, WIDE, judges)
    only_llm = report["judges"]["llm"]["asked"]
    assert report["judges"]["cross_encoder"]["asked"] > only_llm >= report["negatives"]
    model = CrossEncoder(str(folder), device="cpu")
    for row, kept in zip(ROWS.to_dicts(), negatives_of(mined), strict=True):
        pairs = [(row["anchor"], text) for text in (row["positive"], *kept)]
        scores = model.predict(pairs, activation_fn=torch.nn.Sigmoid()).tolist()
        assert all(score < 0.9 * scores[0] for score in scores[1:])
        assert not [text for text in kept if text.endswith(("item0", "item2", "item4", "item8"))]


def test_a_judge_that_cannot_answer_is_an_error_and_takes_no_negative(store: AnswerStore) -> None:
    with fault_server(lambda number, body: "400") as server:
        judge = JudgeParams(llm=True, endpoint=Endpoint(base_url=server.base_url, retries=0))
        with pytest.raises(EndpointError, match="HTTP 400"):
            mine(ROWS, WIDE, make_judges(judge, store))
        assert len(server.asked) == 8


def test_a_question_that_always_fails_takes_its_negative_alone(store: AnswerStore) -> None:
    failing: list[str] = []

    def behave(number: int, body: dict[str, Any]) -> str:
        prompt = body["messages"][-1]["content"]
        if number and not failing:  # the second to come, whichever that is
            failing.append(prompt)
        return "500" if prompt in failing else "ok"

    with fault_server(behave, answer=lambda body: "no") as server:
        endpoint = Endpoint(base_url=server.base_url, model="m", retries=0, concurrency=8)
        runs = [mine(ROWS, WIDE, make_judges(JudgeParams(llm=True, endpoint=endpoint), store)) for _ in range(2)]
    for _, report in runs:
        assert sum(reasons.get("unjudged", 0) for reasons in report["guarded_out"].values()) == 1
    (prompt,) = failing
    query, passage = (re.search(f"<{tag}>(.*?)</{tag}>", prompt)[1] for tag in ("query", "passage"))
    kept = dict(zip(ROWS["anchor"], negatives_of(runs[0][0]), strict=True))
    assert passage not in kept[query]
    assert runs[0][0].equals(runs[1][0])


def test_a_question_that_is_asked_again_is_paid_for_once(store: AnswerStore) -> None:
    row = {"anchor": "a query", "negatives": ["wrong one", "wrong two"], "origins": ["given"] * 2, "answers": []}
    rows = [{**row, "id": f"r{i}", "positive": f"passage {i}", "concept": "c", "instruction": "", "source": "s"}
            for i in range(2100)]  # fmt: skip
    with fault_server(answer=lambda body: "no") as server:
        endpoint = Endpoint(base_url=server.base_url, model="m", price_in=1.0, price_out=1.0)
        params = MineParams(negatives=2, judge=JudgeParams(llm=True, max_total_tokens=400, endpoint=endpoint))
        table = pl.DataFrame(rows, schema=ROWS.schema)
        _, report = mine(table, params, make_judges(params.judge, store))
        assert len(server.asked) == 2
    told = report["judges"]["llm"]
    assert (told["tokens_in"] + told["tokens_out"], told["unasked"]) == (30, 0), "of 4,200 questions in three portions"


def test_a_judge_that_nobody_understands_is_an_error_and_takes_no_negative(store: AnswerStore) -> None:
    with fault_server(answer=lambda body: "Let me think about") as server:
        judge = JudgeParams(llm=True, endpoint=Endpoint(base_url=server.base_url))
        judges = make_judges(judge, store)
        with pytest.raises(EndpointError, match=r"none of the judge's \d+ replies .* \"Let me think about\""):
            mine(ROWS, WIDE, judges)


def test_a_judge_that_was_understood_may_decline_some_rows(store: AnswerStore) -> None:
    def answer(body: dict[str, Any]) -> str:
        is_open = body["messages"][-1]["content"].split("<query>")[1].split("</query>")[0] != ROWS["anchor"][0]
        return "no" if is_open else "I would rather not say"

    with fault_server(answer=answer) as server:
        judge = JudgeParams(llm=True, endpoint=Endpoint(base_url=server.base_url))
        mined, report = mine(ROWS, WIDE, make_judges(judge, store))
    assert [bool(kept) for kept in negatives_of(mined)] == [False, *[True] * (ROWS.height - 1)]
    assert report["guarded_out"]["bm25"]["unjudged"] >= 8


def test_a_limit_of_money_without_prices_is_refused() -> None:
    with pytest.raises(ValidationError, match="price_in and price_out"):
        JudgeParams(llm=True, max_cost=5.0)
    JudgeParams(llm=True, max_cost=5.0, endpoint=Endpoint(price_out=1.0))


def test_a_model_without_a_temperature_is_sent_none_by_the_judge(store: AnswerStore) -> None:
    with fault_server(answer=lambda body: "no") as server:
        judge = JudgeParams(llm=True, endpoint=Endpoint(base_url=server.base_url, temperature=None, max_tokens=500))
        mine(ROWS, WIDE, make_judges(judge, store))
        assert all("temperature" not in body and body["max_tokens"] == 500 for body in server.asked)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [("No.", ""), (" **no**", ""), ("Yes, it does", "answers_query"), ("Not sure", "unjudged"), ("None", "unjudged"),
     ("no idea", "unjudged"), ("Yesterday", "unjudged"), ("", "unjudged"), ("No - it is about lungs", ""),
     ("Answer: no", ""), ("**Answer:** Yes.", "answers_query"), ("\u201cNo\u201d", ""), ("No\n\nIt is about lungs", ""),
     ("**No**\r\n", ""), ("no\u00a0", ""),
     ("No \u2014 it is about lungs", ""), ("no (other organ)", "")],
)  # fmt: skip
def test_one_word_is_read_and_nothing_else(reply: str, reason: str) -> None:
    assert read_opinion(reply) == reason


def test_the_estimate_counts_what_is_sent() -> None:
    judge = JudgeParams(llm=True)
    latin, chinese = (ROWS.with_columns(pl.lit(letter * 100).alias("anchor")) for letter in ("a", "\u80ba"))
    counts = [int(re.findall(r"about (\d+) prompt", describe_cost(rows, 3, judge))[0]) for rows in (latin, chinese)]
    assert counts[1] - counts[0] >= 0.98 * 3 * ROWS.height * 100 * (3 - 1) / 3.5
    priced = JudgeParams(llm=True, endpoint=Endpoint(price_in=2.0, price_out=5.0, max_tokens=7))
    cost = (2.0 * counts[0] + 5.0 * 7 * 3 * ROWS.height) / 1e6
    assert f"up to {3 * ROWS.height} questions" in describe_cost(latin, 3, priced)
    assert f"up to {cost:.4g} money units" in describe_cost(latin, 3, priced)


def test_at_the_limit_negatives_stay_unjudged_and_are_counted(store: AnswerStore) -> None:
    with fault_server(answer=lambda body: "no") as server:
        judge = JudgeParams(llm=True, max_total_tokens=400, endpoint=Endpoint(base_url=server.base_url, concurrency=1))
        mined, report = mine(ROWS, WIDE, make_judges(judge, store))
        llm = report["judges"]["llm"]
        assert 0 < llm["asked"] == len(server.asked)
        assert llm["asked"] + llm["unasked"] == report["negatives"]
        assert llm["tokens_in"] + llm["tokens_out"] <= 400
        assert llm["is_budget_exhausted"]
    assert mined.equals(mine(ROWS, WIDE)[0])


def test_the_stage_judges_reports_and_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stages import mine as stage

    monkeypatch.chdir(tmp_path)
    write_rows(ROWS, "data/pairs/nlu.parquet")
    with fault_server(answer=says_yes_to_even_items) as server:
        endpoint = f"{{base_url: '{server.base_url}', model: m, price_in: 1.0, price_out: 2.0, concurrency: 1}}"
        judge = f"{{llm: true, max_total_tokens: 300, endpoint: {endpoint}}}"
        Path("params.yaml").write_text(f"mine: {{negatives: 2, rank_from: 1, judge: {judge}}}\n")
        stage.main("nlu")
    shown = capsys.readouterr().err
    assert shown.startswith("mine nlu: up to 26 questions to the judge, about ")
    assert "money units" in shown.splitlines()[0]
    assert LIMIT_REACHED in shown
    once = Path("data/mined/nlu.parquet").read_bytes(), Path("data/answers/mine/nlu.parquet").read_bytes()
    assert json.loads(Path("reports/mine/nlu.json").read_text())["judges"]["llm"]["asked"] > 0
    Path(".stm/llm.sqlite").unlink()
    stage.main("nlu")  # from the answers in data/ alone, the server is gone
    assert once == (Path("data/mined/nlu.parquet").read_bytes(), Path("data/answers/mine/nlu.parquet").read_bytes())
