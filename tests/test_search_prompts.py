"""The whole search with fakes at its seams: an encoder that reacts to the instruction, and a scripted language
model."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from stages import search_prompts as stage
from stm.encode import Encoder
from stm.errors import EndpointError, ParamsError
from stm.llm.answers import Answer, Failure, Request
from stm.models import load_model
from stm.params.base import parse_section
from stm.params.search_prompts import SearchPromptsParams
from stm.prompts import read_instruction, read_prompts, render
from stm.search_prompts.adapter import RetrievalAdapter
from stm.search_prompts.budgets import BUDGETS
from stm.search_prompts.halves import split_halves
from stm.search_prompts.ledger import Ask, Ledger
from stm.search_prompts.search import Found, search_instruction
from stm.tasks import write_task
from tests.fault_server import fault_server
from tests.own_project import answer
from tests.pico import pico_adapter, pico_backbone
from tests.test_search_prompts_pool import ADJECTIVES
from tests.test_search_prompts_scoring import FakeEncoder, make_task

SEED = "Find the matching card."
SEARCHED, STORY = "data/instructions/searched/nlu.json", "reports/search_prompts/nlu.json"
ANSWERS = "data/answers/search_prompts/nlu.parquet"
BEST = "Given a wish, retrieve the text of the drawer where it lies."
POOL = (
    "Find passages that answer the question.",
    "Retrieve documents that define the term.",
    "Select the texts that support the statement.",
    "Show the paragraphs that explain what is asked.",
    "Locate the sources which give evidence.",
)


def make_params(**changes: object) -> SearchPromptsParams:
    """Small params; everything can be changed."""
    values: dict[str, object] = {
        "budget": "small", "pool_size": 5, "pool_rounds": 1, "samples": 2, "tasks": [], "max_queries": 0,
        "max_passages": 0, "min_gain": 0.0, "copy_words": 4, "feedback_characters": 80,
        "batch_tokens": 0, "seed": 3, "endpoint": {},
    }  # fmt: skip
    return parse_section({**values, **changes}, SearchPromptsParams, "search_prompts")


def is_reflection(request: Request) -> bool:
    """Whether the request shows failed searches."""
    return "went wrong" in request.messages[-1]["content"]


def scripted(reflections: Sequence[str], pool: Sequence[str] = POOL) -> tuple[Ask, list[Request]]:
    """A model that writes the pool, then the given reflections one by one, the last over and over; and the log of its
    requests."""
    log: list[Request] = []

    def ask(requests: Sequence[Request]) -> list[Answer]:
        answers = []
        for request in requests:
            texts = reflections if is_reflection(request) else pool
            place = sum(is_reflection(other) == is_reflection(request) for other in log)
            log.append(request)
            answers.append(Answer(texts[min(place, len(texts) - 1)], "stop", 20, 8))
        return answers

    return ask, log


def run(
    answers: Callable[[str, str], bool], reflections: Sequence[str], pool: Sequence[str] = POOL, **changes: object
) -> tuple[Found, FakeEncoder, list[Request]]:
    """Search over one task of twenty queries."""
    tasks = [make_task("colours")]
    encoder = FakeEncoder(tasks, answers)
    ask, log = scripted(reflections, pool)
    params = make_params(**changes)
    found = search_instruction(tasks, SEED, encoder, lambda text: f"{text}\nQuery: ", Ledger(ask), params)
    return found, encoder, log


def knows(*words: str, share: int = 3) -> Callable[[str, str], bool]:
    """Queries are answered with prompts that hold one of the words; with others only those with a number below
    `share`."""
    return lambda prompt, query: any(word in prompt for word in words) or int(query.split()[-1]) < share


def test_reflection_finds_the_instruction_that_is_best() -> None:
    found, encoder, log = run(knows("drawer"), ["nonsense", BEST, "more nonsense"])
    assert found.instruction == BEST
    report = found.report
    chosen = report["candidates"][report["chosen"]]
    assert (chosen["origin"], chosen["search"]["mean"], chosen["guard"]["mean"]) == ("reflection", 1, 1)
    assert chosen["in_gepa_population"]
    assert report["candidates"][chosen["parent"]]["search"]["mean"] < 1
    assert report["reason"].startswith("replaced the seed instruction: better on both halves")
    assert len(encoder.passages) == 20
    assert len(encoder.queries) == 20 * len(report["candidates"])
    assert report["llm"]["requests"] == len(log)
    assert found.pool == list(POOL)


def test_a_pool_instruction_wins_where_the_model_cannot_reflect() -> None:
    found, _, _ = run(knows("define"), ["I am sorry, I cannot do that."])
    assert found.instruction == "Retrieve documents that define the term."
    assert found.report["candidates"][found.report["chosen"]]["origin"] == "pool"


def test_malformed_replies_are_refused_and_the_rest_of_the_pool_steps_in() -> None:
    malformed = ["Ok!", "", "Find the [topic] of this.", "{}", "\x00", "?" * 5000]
    assert run(knows("evidence"), malformed)[0].instruction == "Locate the sources which give evidence."
    found, _, _ = run(knows(), malformed)
    assert found.instruction == SEED
    attempts = found.report["attempts"]
    assert [attempt["origin"] for attempt in attempts] == ["pool", "pool", "none"]
    reasons = {refusal["reason"] for attempt in attempts for refusal in attempt["refused"]}
    assert reasons >= {"fewer than 4 words", "empty", "a placeholder or markup"}


def test_without_a_pool_and_without_sense_the_seed_stays() -> None:
    found, _, _ = run(knows("drawer"), ["no"], pool=["no"])
    assert (found.instruction, found.pool) == (SEED, [])
    nothing = "kept the seed instruction: no reply of the LLM was a usable instruction in English"
    assert re.fullmatch(nothing + r" \(\d+ of the pool's replies: fewer than 4 words\)", found.report["reason"])
    empty = run(knows("drawer"), [""], pool=[""])[0].report["reason"]
    assert "needs a larger search_prompts.endpoint.max_tokens" in empty
    assert found.report["pool"]["kept"] == 0
    assert len(found.report["candidates"]) == 1


def test_the_guard_half_keeps_the_seed_when_the_winner_does_not_hold() -> None:
    searched, _ = split_halves([make_task("colours")], BUDGETS["small"].queries, seed=3)
    numbers = {int(item.query_id[1:]) for item in searched}

    def overfits(prompt: str, query: str) -> bool:
        return (int(query.split()[-1]) in numbers) == ("drawer" in prompt)

    found, _, _ = run(overfits, [BEST])
    winner = next(row for row in found.report["candidates"] if row["instruction"] == BEST)
    assert winner["search"]["mean"] == 1
    assert winner["guard"]["mean"] < 1
    assert found.instruction == SEED
    assert "does not beat it on the guard half" in found.report["reason"]


def test_a_winner_that_is_level_on_the_guard_half_does_not_replace_the_seed() -> None:
    searched, _ = split_halves([make_task("colours")], BUDGETS["small"].queries, seed=3)
    numbers = {int(item.query_id[1:]) for item in searched}
    found, _, _ = run(lambda prompt, query: int(query.split()[-1]) not in numbers or "drawer" in prompt, [BEST])
    winner = next(row for row in found.report["candidates"] if row["instruction"] == BEST)
    assert winner["search"]["mean"] == winner["guard"]["mean"] == 1
    assert found.instruction == SEED


def test_a_gain_below_the_margin_keeps_the_seed() -> None:
    assert run(knows("drawer", share=12), [BEST])[0].instruction == BEST
    found, _, _ = run(knows("drawer", share=12), [BEST], min_gain=0.9)
    assert found.instruction == SEED
    assert "by more than 0.9" in found.report["reason"]


def test_a_copy_of_dev_content_is_refused() -> None:
    copy = "Find the card for colours wish 7 and all others."
    found, encoder, _ = run(knows("wish 7"), [copy])
    assert copy not in {row["instruction"] for row in found.report["candidates"]}
    refusals = [refusal for attempt in found.report["attempts"] for refusal in attempt["refused"]]
    assert {"text": copy, "reason": "copies dev content: colours wish 7"} in refusals
    assert not any(copy in prompt for prompt, _ in encoder.queries)


def test_an_echo_of_the_request_is_refused() -> None:
    found, _, _ = run(knows("drawer"), ["Find what is asked with and what is to be found."])
    refusals = [refusal for attempt in found.report["attempts"] for refusal in attempt["refused"]]
    assert {refusal["reason"] for refusal in refusals} == {"repeats the request"}


def test_feedback_shows_what_failed_what_was_wanted_and_what_came_instead() -> None:
    found, _, log = run(knows("drawer"), [BEST])
    attempt = found.report["attempts"][0]
    assert 1 <= len(attempt["feedback"]) <= BUDGETS["small"].minibatch
    record = attempt["feedback"][0]
    number = record["query"].split()[-1]
    assert record["wanted"].startswith(f"Card colours {number} ")
    assert record["found"].startswith("Card colours")
    assert record["found"] != record["wanted"]
    assert record["feedback"] == "The wanted passage came at rank 20 of 20."
    shown = next(request for request in log if is_reflection(request)).messages[-1]["content"]
    assert record["query"] in shown
    assert record["wanted"] in shown
    assert record["found"] in shown


def test_samples_of_one_reflection_are_independent_requests() -> None:
    _, _, log = run(knows("drawer"), ["no"], samples=3)
    reflections = [request for request in log if is_reflection(request)]
    assert [request.attempt for request in reflections[:3]] == [0, 1, 2]


def test_the_same_messages_again_ask_for_another_reply() -> None:
    only = "colours wish 0"  # the one query that fails, so that every reflection sees the same
    _, _, log = run(lambda prompt, query: query != only, ["no"], budget="light", samples=2, pool_size=20)
    asked = [(str(request.messages), request.attempt) for request in log if is_reflection(request)]
    assert len({messages for messages, _ in asked}) < len(asked) / 2
    assert len(set(asked)) == len(asked)


def test_a_query_is_shown_once_per_reflection() -> None:
    found, _, _ = run(lambda prompt, query: False, ["no"], budget="heavy", samples=1)
    for attempt in found.report["attempts"]:
        queries = [record["query"] for record in attempt["feedback"]]
        assert len(set(queries)) == len(queries)


@pytest.mark.parametrize("where", ["ask", "record"])
def test_an_error_that_gepa_would_swallow_ends_the_search(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, _ = scripted(["no"])

    def failing(requests: Sequence[Request]) -> Sequence[Answer | Failure]:
        if where == "ask" and is_reflection(requests[0]):
            raise ValueError("a fault of ours")
        return ask(requests)

    def broken(*_: object) -> dict[str, str]:
        raise ValueError("a fault of ours")

    if where == "record":
        monkeypatch.setattr(RetrievalAdapter, "_record", broken)
    tasks = [make_task("colours")]
    encoder = FakeEncoder(tasks, knows("drawer"))
    with pytest.raises(ValueError, match="a fault of ours"):
        search_instruction(tasks, SEED, encoder, str, Ledger(failing), make_params())


def test_a_budget_that_the_dev_tasks_cannot_fill_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    run(knows("drawer"), [BEST], budget="heavy")
    said = capsys.readouterr().err
    assert "the budget heavy allows 300 dev queries per half, of which there are 10 (max_queries and tasks)" in said
    assert "allows 50 pool instructions, of which there are 5 (pool_size)" in said


def test_the_same_answers_give_the_same_result() -> None:
    first, again = (run(knows("drawer", "define"), ["no", BEST, "no"])[0] for _ in range(2))
    assert first == again
    assert json.dumps(first.report, sort_keys=True) == json.dumps(again.report, sort_keys=True)


@pytest.mark.parametrize("budget", ["light", "medium", "heavy"])
def test_larger_budgets_make_their_proposals(budget: str) -> None:
    replies = [f"Retrieve the text number{i} that lies where the wish says." for i in range(200)]
    found, encoder, _ = run(knows("number9"), replies, budget=budget, samples=1)
    assert found.instruction == "Retrieve the text number9 that lies where the wish says."
    assert len(found.report["attempts"]) <= BUDGETS[budget].proposals
    assert len(encoder.passages) == 20


def test_the_seed_is_not_beaten_by_an_equal() -> None:
    found, _, _ = run(lambda prompt, query: True, [BEST])
    assert found.instruction == SEED
    assert found.report["attempts"] == []


@pytest.mark.parametrize("breaks_at", ["pool", "reflection"])
def test_an_endpoint_that_fails_ends_the_search(breaks_at: str) -> None:
    ask, _ = scripted(["no"])

    def failing(requests: Sequence[Request]) -> Sequence[object]:
        if is_reflection(requests[0]) == (breaks_at == "reflection"):
            raise EndpointError("the endpoint is down")
        return ask(requests)

    tasks = [make_task("colours")]
    encoder = FakeEncoder(tasks, knows("drawer"))
    with pytest.raises(EndpointError, match="is down"):
        search_instruction(tasks, SEED, encoder, str, Ledger(failing), make_params())  # type: ignore[arg-type]


def test_params_out_of_range_are_refused() -> None:
    with pytest.raises(ParamsError, match=r"search_prompts\.budget"):
        make_params(budget="huge")
    with pytest.raises(ParamsError, match=r"search_prompts\.min_gain"):
        make_params(min_gain=-1)
    with pytest.raises(ParamsError, match=r"search_prompts: no such setting: pool;"):
        make_params(pool=10)


def prepare_stage(**changes: object) -> None:
    """An expert, dev tasks and params in the current folder."""
    pico_adapter(pico_backbone(Path("base")), Path("models/experts/nlu-ft"), scale=0.2)
    write_task(make_task("colours", 8), "data/tasks/dev/colours", "dev")
    section = make_params(**changes).model_dump()
    Path("params.yaml").write_text(json.dumps({"search_prompts": section}), encoding="utf-8")


def test_the_stage_writes_the_instruction_and_its_story(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare_stage()
    outputs = []
    for _ in range(2):
        ask, _log = scripted([BEST])
        monkeypatch.setattr(stage, "complete_all", lambda requests, *_, ask=ask: ask(requests))
        stage.main("nlu")
        outputs.append([Path(path).read_bytes() for path in (SEARCHED, STORY)])
    assert outputs[0] == outputs[1]
    instruction, pool = read_instruction(SEARCHED)
    story = json.loads(Path(STORY).read_text(encoding="utf-8"))
    assert (instruction, pool) == (story["instruction"], list(POOL))
    assert read_instruction("data/instructions/pool/nlu.json") == ("Find it", list(POOL))
    assert (story["split"], story["budget"], story["candidates"][0]["instruction"]) == ("nlu", "small", "Find it")


def test_another_machine_replays_the_stage_without_an_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written: list[list[bytes]] = []
    with fault_server(answer=answer) as server:
        prepare_stage(endpoint={"base_url": server.base_url, "model": "fake", "retries": 0})
        stage.main("nlu")
        written.append([Path(path).read_bytes() for path in (SEARCHED, STORY, ANSWERS)])
    shutil.rmtree(".stm")
    stage.main("nlu")  # the server is gone, and so is all that this machine remembers but the tracked answers
    written.append([Path(path).read_bytes() for path in (SEARCHED, STORY, ANSWERS)])
    assert written[0] == written[1]


@pytest.mark.parametrize(("limit", "pool"), [({"max_total_tokens": 330}, 4), ({"max_cost": 0.00048}, 5)])
def test_at_its_limit_a_search_ends_with_what_it_has(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limit: dict[str, float],
    pool: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    numbers = iter(range(100))
    with fault_server(
        answer=lambda body: f"Find {ADJECTIVES[next(numbers)]} passages that answer the question."
    ) as server:
        endpoint = {"base_url": server.base_url, "model": "fake", "max_tokens": 96, "price_in": 1, "price_out": 2}
        prepare_stage(endpoint=endpoint, **limit)
        stage.main("nlu")
    llm = json.loads(Path(STORY).read_text(encoding="utf-8"))["llm"]
    assert len(server.asked) == llm["requests"] - llm["failures"]["budget"] > 0
    assert llm["is_budget_exhausted"]
    assert llm["tokens_in"] + llm["tokens_out"] <= limit.get("max_total_tokens", 10**6)
    assert 0 < llm["cost"] <= limit.get("max_cost", 1)
    assert len(read_instruction(SEARCHED)[1]) == pool
    assert "the search ends with what it has. To go on, raise search_prompts.max_total" in capsys.readouterr().err
    once = [Path(path).read_bytes() for path in (SEARCHED, STORY, ANSWERS)]
    shutil.rmtree(".stm")
    stage.main("nlu")  # from the tracked answers, the server is gone
    assert once == [Path(path).read_bytes() for path in (SEARCHED, STORY, ANSWERS)]


def test_a_limit_that_allows_no_answer_is_an_error_and_not_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with fault_server(answer=answer) as server:
        prepare_stage(endpoint={"base_url": server.base_url, "model": "fake"}, max_total_tokens=20)
        with pytest.raises(
            EndpointError, match=r"not allow for a single answer; raise search_prompts\.max_total_tokens"
        ):
            stage.main("nlu")
    assert not server.asked
    assert not Path(SEARCHED).exists()


def query_prompt(template: str, instruction: str) -> str:
    """The rendered query prompt."""
    return render(template, instruction).query


def test_a_real_model_is_searched_from_its_adapter_folder(tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base")
    expert = pico_adapter(base, tmp_path / "expert", scale=0.2)
    prompts = read_prompts(expert)
    tasks = [make_task("colours", 8), make_task("shapes", 8)]
    reports = []
    for _ in range(2):
        encoder = Encoder(load_model(expert))
        ledger = Ledger(scripted([BEST])[0])
        prompt = partial(query_prompt, prompts.template)
        reports.append(search_instruction(tasks, prompts.instruction, encoder, prompt, ledger, make_params()).report)
    assert reports[0] == reports[1]
    assert reports[0]["candidates"][0]["instruction"] == "Find it"
    assert all(0 <= row["guard"]["mean"] <= 1 for row in reports[0]["candidates"])
    assert reports[0]["cost"]["queries_encoded"] == 16 * len(reports[0]["candidates"])
