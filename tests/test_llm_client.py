"""The LLM client against a server that fails on demand: every request ends, nothing is asked twice, nothing leaks."""

import dataclasses
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from stm.errors import DataError, EndpointError
from stm.llm import client
from stm.llm.answers import Answer, Budget, Failure, Outcome, Request, canonical_request, request_key
from stm.llm.client import complete_all
from stm.llm.faults import FaultError, parse_retry_after, read_answer
from stm.llm.store import AnswerStore, tracked_answers
from stm.params.llm import Endpoint
from tests.fault_server import FaultServer, completion, fault_server

FAULTS = ["429", "500", "silence", "cut", "closed", "junk", "html", "empty", "list"]
KEY = "sk-very-secret-0123456789"


def ask(*texts: str) -> list[Request]:
    return [Request([{"role": "user", "content": text}]) for text in texts]


def endpoint_of(server: FaultServer, **changes: object) -> Endpoint:
    settings: dict[str, object] = {"retry_seconds": 0.01, "timeout_seconds": 10, "concurrency": 32, "model": "m"}
    return Endpoint(base_url=server.base_url, **{**settings, **changes})


def test_answers_come_in_order_and_replay_without_the_endpoint(store: AnswerStore) -> None:
    requests = ask(*(f"q{i}" for i in range(100)))
    with fault_server() as server:
        endpoint = endpoint_of(server)
        answers = complete_all(requests, endpoint, store)
    assert [a.text for a in answers] == [f"echo q{i} 1" for i in range(100)]
    assert {(a.tokens_in, a.tokens_out, a.finish_reason, a.is_replayed) for a in answers} == {(10, 5, "stop", False)}
    again = complete_all(requests, endpoint, store)
    assert [a.text for a in again] == [a.text for a in answers]
    assert all(a.is_replayed for a in again)


def test_equal_requests_are_asked_once_and_attempts_are_new_samples(store: AnswerStore) -> None:
    with fault_server() as server:
        one = [{"role": "user", "content": "a"}]
        outcomes = complete_all([Request(one), Request(one), Request(one, attempt=1)], endpoint_of(server), store)
        assert [body["seed"] for body in server.asked] == [1, 2]
        assert [o.text for o in outcomes] == ["echo a 1", "echo a 1", "echo a 2"]
        complete_all([Request(one), Request(one, attempt=1)], endpoint_of(server, seed=None), store)
        assert len(server.asked) == 4, "without a seed as well"
        assert server.asked[2] == server.asked[3] == {k: v for k, v in server.asked[0].items() if k != "seed"}


def test_a_third_of_faults_ends_every_request(store: AnswerStore) -> None:
    rng = random.Random(3)
    requests = ask(*(f"q{i}" for i in range(300)))
    with fault_server(lambda n, b: rng.choice(FAULTS) if rng.random() < 0.3 else "ok") as server:
        outcomes = complete_all(requests, endpoint_of(server, retries=8, timeout_seconds=2), store)
        assert set(FAULTS) <= set(server.kinds)
        assert server.most_in_flight <= 32
    answered = [o for o in outcomes if isinstance(o, Answer)]
    assert len(answered) >= 298
    assert all(o.reason and o.detail for o in outcomes if isinstance(o, Failure))
    assert len(store) == len(answered)
    assert max(server.answered.values()) == 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("429", "rate_limited"),
        ("500", "server_error"),
        ("silence", "timeout"),
        ("cut", "connection"),
        ("junk", "not_json"),
        ("nul", "not_json"),
        ("closed", "connection"),
        ("html", "not_json"),
        ("empty", "no_choices"),
        ("list", "no_choices"),
        ("failed", "server_error"),
        ("400", "rejected"),
        ("403-text", "rejected"),
    ],
)
def test_each_fault_has_its_reason(store: AnswerStore, kind: str, reason: str) -> None:
    with fault_server(lambda n, body: kind if body["messages"][0]["content"] == "bad" else "ok") as server:
        outcomes = complete_all(
            ask("first", "bad", "last"), endpoint_of(server, retries=1, concurrency=1, timeout_seconds=2), store
        )
        assert server.kinds[kind] == (1 if reason == "rejected" else 2)
    assert [isinstance(o, Answer) for o in outcomes] == [True, False, True]
    assert outcomes[1].reason == reason


@pytest.mark.parametrize("kind", ["401", "402", "403-account", "404", "quota", "429-long"])
def test_a_broken_account_costs_one_call_and_shows_no_key(
    store: AnswerStore, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with fault_server(lambda n, b: kind) as server:
        with pytest.raises(EndpointError) as caught:
            complete_all(ask(*map(str, range(50))), endpoint_of(server, api_key_env="MY_KEY"), store)
        assert len(server.asked) == 1
        assert KEY in server.headers[0]
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stop_does_not_wait_for_requests_that_wait(store: AnswerStore) -> None:
    with fault_server(lambda n, b: ["ok", "429-minute", "401"][min(n, 2)]) as server:
        start = time.monotonic()
        with pytest.raises(EndpointError, match="1 new answers are kept"):
            complete_all(ask(*"abcdef"), endpoint_of(server, concurrency=2), store)
        assert time.monotonic() - start < 30
        assert server.kinds == {"ok": 1, "429-minute": 1, "401": 1}


def test_an_endpoint_that_answers_nothing_names_the_variable_of_the_key(
    store: AnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with (
        fault_server(lambda n, b: "html") as server,
        pytest.raises(EndpointError, match=r"MY_KEY \(which is not set\)"),
    ):
        complete_all(ask("a"), endpoint_of(server, api_key_env="MY_KEY", retries=0), store)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("wrong", [KEY[:8] + "\n" + KEY[8:], f"\u201c{KEY}\u201d"])
def test_a_key_that_no_header_can_hold_is_one_line_without_it(
    store: AnswerStore, batch: bool, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", wrong)
    with fault_server() as server, pytest.raises(EndpointError) as caught:
        complete_all(ask("a"), endpoint_of(server, api_key_env="MY_KEY", batch=batch), store)
    assert "MY_KEY" in str(caught.value)
    assert KEY[8:] not in str(caught.value)


def test_blanks_around_a_key_are_no_part_of_it(store: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", f"{KEY}\n")
    with fault_server() as server:
        complete_all(ask("a"), endpoint_of(server, api_key_env="MY_KEY"), store)
        assert f"Bearer {KEY}\r\n" in server.headers[0]


@pytest.mark.parametrize("kind", ["html", "500", "silence"])
def test_an_endpoint_that_never_answers_stops_the_job(store: AnswerStore, kind: str) -> None:
    with fault_server(lambda n, b: kind) as server:
        with pytest.raises(EndpointError, match=server.base_url):
            complete_all(ask(*map(str, range(50))), endpoint_of(server, retries=2, timeout_seconds=1), store)
        assert len(server.asked) == 3


def test_an_unreachable_endpoint_is_one_clear_line(store: AnswerStore) -> None:
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", retries=1, retry_seconds=0.01)
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9/v1"):
        complete_all(ask("a", "b"), endpoint, store)


def test_an_endpoint_that_dies_keeps_what_it_gave(store: AnswerStore) -> None:
    with (
        fault_server(lambda n, b: "ok" if n < 40 else "500") as server,
        pytest.raises(EndpointError, match="40 new answers are kept"),
    ):
        complete_all(ask(*map(str, range(500))), endpoint_of(server, retries=1, concurrency=4), store)
    assert len(store) == 40


def test_rate_limits_narrow_the_gate_and_are_waited_for(store: AnswerStore) -> None:
    with fault_server(lambda n, b: "429" if 10 <= n < 14 else "ok") as server:
        outcomes = complete_all(ask(*map(str, range(60))), endpoint_of(server, concurrency=16), store)
    assert all(isinstance(o, Answer) for o in outcomes)
    assert server.kinds == {"429": 4, "ok": 60}


def test_an_endpoint_that_refuses_everything_stops_the_job_soon(store: AnswerStore) -> None:
    with fault_server(lambda number, body: "400") as server:
        with pytest.raises(EndpointError, match="HTTP 400"):
            complete_all(ask(*(f"q{i}" for i in range(100))), endpoint_of(server), store)
        assert len(server.asked) == 8


@pytest.mark.parametrize("count", [2, 7])
def test_an_endpoint_that_refuses_all_of_a_few_requests_is_an_error_too(store: AnswerStore, count: int) -> None:
    with (
        fault_server(lambda number, body: "400") as server,
        pytest.raises(
            EndpointError, match=rf"all {count} requests were refused \(HTTP 400: .*context too long.*max_tok"
        ),
    ):
        complete_all(ask(*(f"q{i}" for i in range(count))), endpoint_of(server), store)


def test_refusals_beside_answers_of_the_job_are_failures_of_their_own(store: AnswerStore) -> None:
    good, bad = ask(*(f"q{i}" for i in range(4))), ask(*(f"bad{i}" for i in range(20)))
    with fault_server(lambda n, body: "400" if "bad" in body["messages"][0]["content"] else "ok") as server:
        endpoint, budget = endpoint_of(server, concurrency=4), Budget()
        assert isinstance(complete_all(bad[:1], endpoint, store)[0], Failure)  # one alone says nothing of the endpoint
        for _ in range(2):  # the second time the answers come from the store
            outcomes = complete_all([*good, *bad], endpoint, store, budget=budget)
            assert [type(outcome) for outcome in outcomes] == [Answer] * 4 + [Failure] * 20
        # A job asks once more for what was refused, and has had answers before.
        outcomes = complete_all(bad, endpoint, store, budget=budget)
        assert {outcome.reason for outcome in outcomes} == {"rejected"}


@pytest.mark.parametrize("limit", [Budget(), Budget(max_tokens=400)], ids=["no limit", "a limit"])
def test_a_replay_elsewhere_ends_as_the_job_did_where_requests_were_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: Budget, capsys: pytest.CaptureFixture[str]
) -> None:
    requests, path = ask(*(f"{'bad' if i % 4 == 1 else 'q'}{i}" for i in range(50))), tmp_path / "answers.parquet"
    keys = [request_key(canonical_request(request, Endpoint(model="m", max_tokens=5))) for request in requests]

    def run(machine: str, endpoint: Endpoint) -> list[Outcome]:
        (tmp_path / machine).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / machine)
        with tracked_answers(path) as store:
            outcomes = complete_all(requests, endpoint, store, budget=dataclasses.replace(limit))
        with AnswerStore() as others:
            known = {type(outcome) for outcome in others.get(keys).values()}
        assert known == {Answer}, "no other job is bound by a refusal"
        return [dataclasses.replace(o, is_replayed=False) if isinstance(o, Answer) else o for o in outcomes]

    with fault_server(lambda n, body: "400" if "bad" in body["messages"][0]["content"] else "ok") as server:
        endpoint = endpoint_of(server, max_tokens=5)
        outcomes = run("here", endpoint)
        reasons = {"rejected", "budget"} if limit.max_tokens else {"rejected"}
        assert {o.reason for o in outcomes if isinstance(o, Failure)} == reasons
        written, asked = path.read_bytes(), len(server.asked)
        run("here", endpoint)
        assert len(server.asked) == asked, "what was refused is not asked again"
    refused = sum(isinstance(o, Failure) and o.is_refusal for o in outcomes)
    assert f"refused {refused} of the requests in" in capsys.readouterr().err
    assert run("elsewhere", endpoint) == outcomes
    assert path.read_bytes() == written
    path.unlink()
    with fault_server() as mended:
        again = run("here", endpoint_of(mended, max_tokens=5))
    assert isinstance(again[1], Answer), "without the file they are asked again"


def test_a_wrong_key_costs_one_call_beside_stored_answers_too(store: AnswerStore) -> None:
    with fault_server(lambda n, body: "ok" if n < 3 else "401") as server:
        complete_all(ask("a", "b", "c"), endpoint_of(server), store)
        with pytest.raises(EndpointError, match="HTTP 401"):
            complete_all(ask(*"abcdefghij"), endpoint_of(server), store)
        assert len(server.asked) == 4


def test_a_store_that_fails_is_one_error_with_many_workers_too(
    store: AnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = store.put

    def full(canonical: str, answer: Answer) -> Answer:
        if "q0" not in canonical:
            raise DataError("the disk is full")
        return put(canonical, answer)

    monkeypatch.setattr(store, "put", full)
    with fault_server() as server, pytest.raises(DataError, match="the disk is full"):
        complete_all(ask(*(f"q{i}" for i in range(8))), endpoint_of(server), store)


def test_budget_stops_hard_and_keeps_what_there_is(store: AnswerStore) -> None:
    requests = ask(*(f"q{i}" for i in range(50)))
    with fault_server() as server:
        endpoint = endpoint_of(server, concurrency=4, max_tokens=5)
        budget = Budget(max_tokens=200)
        outcomes = complete_all(requests, endpoint, store, budget=budget)
        answered = sum(isinstance(o, Answer) for o in outcomes)
        assert answered == 13  # of 15 tokens each, and one more could need 9 for its prompt estimate and 5 for its text
        assert budget.is_exhausted
        assert budget.tokens_in + budget.tokens_out == 15 * answered <= 200
        assert {o.reason for o in outcomes if isinstance(o, Failure)} == {"budget"}
        again = complete_all(requests, endpoint, store, budget=Budget(max_tokens=200))
        assert [type(outcome) for outcome in again] == [type(outcome) for outcome in outcomes]
        assert sum(server.answered.values()) == answered  # with its answers at hand the job ends at the same place
        complete_all(requests, endpoint, store, budget=Budget(max_cost=1.0, price_in=1.0))
        assert max(server.answered.values()) == 1


STORED = {
    "none": (),
    "all": range(50),
    "the last": range(40, 50),
    "every third": range(0, 50, 3),
    "the first": range(6),
}


@pytest.mark.parametrize(
    ("limit", "answered"),
    [(Budget(max_tokens=207), 13), (Budget(max_tokens=100), 6), (Budget(max_cost=2e-4, price_in=1.0), 20)],
)
@pytest.mark.parametrize("there", STORED.values(), ids=STORED)
def test_a_budget_ends_at_the_same_request_whichever_answers_are_there(
    store: AnswerStore, there: range, limit: Budget, answered: int
) -> None:
    requests = ask(*(f"q{i}" for i in range(50)))
    with fault_server() as server:
        # The server counts one token more per prompt than is set aside, so what is in flight hides how much is spent.
        endpoint = endpoint_of(server, concurrency=4, max_tokens=5)
        complete_all([requests[i] for i in there], endpoint, store)
        budget = dataclasses.replace(limit)
        with AnswerStore(store.path) as opened:
            outcomes = complete_all(requests, endpoint, opened, budget=budget)
            used = len(opened.used)
    assert [type(outcome) for outcome in outcomes] == [Answer] * answered + [Failure] * (50 - answered)
    assert {outcome.reason for outcome in outcomes[answered:]} == {"budget"}
    assert (budget.tokens_in, budget.tokens_out, budget.answers) == (10 * answered, 5 * answered, answered)
    assert budget.is_exhausted
    assert used == answered


def test_a_budget_at_its_end_needs_no_server(store: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "serve", None)
    budget = Budget(max_tokens=1)
    assert {o.reason for o in complete_all(ask("a", "b"), Endpoint(), store, budget=budget)} == {"budget"}
    assert budget.is_exhausted


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[" * 200_000, "not_json"),
        (b'{"a":' + b"9" * 5000 + b"}", "not_json"),
        (json.dumps(completion("x", usage={"prompt_tokens": 2**63, "completion_tokens": 5})).encode(), "bad_usage"),
        (json.dumps(completion("x", usage={"prompt_tokens": 5, "completion_tokens": 10**20})).encode(), "bad_usage"),
    ],
)
def test_a_monstrous_answer_is_an_ordinary_fault(body: bytes, reason: str) -> None:
    with pytest.raises(FaultError) as caught:
        read_answer(body, Request(()), "")
    assert (caught.value.reason, caught.value.remedy) == (reason, "retry")
    assert len(caught.value.detail) < 300


@pytest.mark.parametrize("depth", [100, 300, 600, 900, 950, 990])
def test_no_depth_of_an_answer_is_an_error_of_its_own(depth: int) -> None:
    for body in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        with pytest.raises(FaultError, match=r"not_json|no_choices"):
            read_answer(body, Request(()), "")


def test_a_reason_to_finish_that_is_no_text_is_none() -> None:
    for value in (["stop"], None, 3):
        changed = completion("x")
        changed["choices"][0]["finish_reason"] = value
        assert read_answer(json.dumps(changed).encode(), Request(()), "").finish_reason == ""


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("<think>\nIs it? No.\n</think>\n\nno", "no"),
        ("Is it? No.\n</think>\n\nno", "no"),  # templates that open the thinking in the prompt
        ("<think>\nIs it? N", ""),
        ("if x < 3 it is small", "if x < 3 it is small"),
        ("its end is marked by </think> there", "its end is marked by </think> there"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "n"}, {"type": "text", "text": "o"}], "no"),
        ([{"type": "text"}, "x", 3], ""),
    ],
)
def test_an_answer_is_what_stands_after_the_thinking(content: Any, text: str) -> None:
    changed = completion("x")
    changed["choices"][0]["message"]["content"] = content
    assert read_answer(json.dumps(changed).encode(), Request(()), "").text == text


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 115}, (10, 105)),  # thinking in the total alone
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 0}, (10, 5)),
        ({"total_tokens": 115, "completion_tokens": 5}, (0, 5)),
        ({"prompt_tokens": None, "total_tokens": 115, "completion_tokens": 5}, (0, 5)),
    ],
)
def test_tokens_are_all_that_is_billed(usage: dict[str, int], tokens: tuple[int, int]) -> None:
    answer = read_answer(json.dumps(completion("x", usage=usage)).encode(), Request(()), "")
    assert (answer.tokens_in, answer.tokens_out) == tokens


def test_the_body_is_what_params_say(store: AnswerStore) -> None:
    changes = {"temperature": None, "token_limit_field": "max_completion_tokens", "extra": {"reasoning_effort": "low"}}
    with fault_server() as server:
        complete_all([Request([{"role": "user", "content": "a"}], max_tokens=7)], endpoint_of(server, **changes), store)
        assert server.asked[0] == {
            "model": "m", "messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 7,
            "top_p": 0.95, "seed": 1, "reasoning_effort": "low",
        }  # fmt: skip


def test_the_headers_are_few_and_each_stands_once(store: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with fault_server() as server:
        complete_all(ask("a", "b"), endpoint_of(server, api_key_env="MY_KEY"), store)
        address = server.base_url.split("/")[2]
    for head in server.headers:
        line, *rest = head.strip().splitlines()
        names = [header.split(": ", 1)[0].lower() for header in rest]
        headers = dict(zip(names, (header.split(": ", 1)[1] for header in rest), strict=True))
        assert line == "POST /v1/chat/completions HTTP/1.1"
        assert len(set(names)) == len(names)
        assert (headers["host"], headers["authorization"]) == (address, f"Bearer {KEY}")
        assert (headers["content-type"], headers["accept-encoding"]) == ("application/json", "gzip, deflate")
        assert not [name for name in names if "stainless-os" in name or "stainless-arch" in name]


def test_compressed_answers_are_read(store: AnswerStore) -> None:
    with fault_server(lambda n, b: "gzip") as server:
        assert complete_all(ask("a"), endpoint_of(server), store)[0].text == "echo a 1"


def test_the_key_ignores_the_address_and_nothing_else() -> None:
    request = ask("a")[0]
    base = Endpoint(base_url="http://a/v1")
    same = canonical_request(request, base.model_copy(update={"base_url": "http://b/v1", "concurrency": 1}))
    assert same == canonical_request(request, base)
    for change in (
        {"model": "z"},
        {"temperature": 0.1},
        {"top_p": None},
        {"max_tokens": 1},
        {"seed": 5},
        {"seed": None},
    ):
        assert canonical_request(request, base.model_copy(update=change)) != same
    unseeded = base.model_copy(update={"seed": None})
    one, two = Request(request.messages, 0), Request(request.messages, 1)
    assert canonical_request(one, unseeded) != canonical_request(two, unseeded)


def test_retry_after_in_all_its_forms() -> None:
    assert parse_retry_after({"retry-after": "1.5"}) == 1.5
    assert parse_retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert parse_retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}) == 0.0
    assert parse_retry_after({"retry-after": "Fri, 31 Dec 2100 00:00:00 GMT"}) > 1e6
    assert parse_retry_after({"retry-after": "soon"}) == parse_retry_after({}) == 0.0
