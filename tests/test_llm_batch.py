"""Batch files against a small batch API on loopback: submit, collect, resume, error lines, refusals."""

import dataclasses
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
import openai
import pytest

from stm.errors import EndpointError
from stm.llm import batch as batch_module
from stm.llm.answers import Answer, Budget, Failure, Request, canonical_request, request_key
from stm.llm.client import complete_all
from stm.llm.connect import open_client
from stm.llm.store import AnswerStore
from stm.params.llm import Endpoint
from tests.fault_server import HTML, completion

Judge = Callable[[str, int], dict[str, Any] | None]


def good(text: str) -> dict[str, Any]:
    return {"response": {"status_code": 200, "body": completion(f"batched {text}")}, "error": None}


class BatchApi:
    """Files and batches in memory; `judge(text, batch number)` gives the output line of a request, None for no line."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.files, self.batches = judge, {}, {}
        self.looks = 0
        self.status = "completed"
        self.knows_pages = True
        self.forgotten: set[str] = set()  # batches and files that the server does not know any more

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        number = len(self.batches)
        out, errors = [], []
        for raw in self.files[body["input_file_id"]].splitlines():
            entry = json.loads(raw)
            assert entry["url"] == "/v1/chat/completions"
            line = self.judge(entry["body"]["messages"][-1]["content"], number)
            if line:
                target = out if (line.get("response") or {}).get("status_code") == 200 else errors
                target.append(json.dumps({"custom_id": entry["custom_id"], **line}))
        name = f"batch_{number}"
        self.files[f"out_{number}"] = "\n".join(out) + "\n{torn"
        self.files[f"err_{number}"] = "\n".join(errors)
        self.batches[name] = {
            "id": name, "object": "batch", "completion_window": "24h", "created_at": 1, "endpoint": "x",
            "status": "in_progress", "input_file_id": body["input_file_id"], "metadata": body.get("metadata"),
            "output_file_id": f"out_{number}", "error_file_id": f"err_{number}" if errors else None,
        }  # fmt: skip
        return self.batches[name]

    def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The newest first, page by page, unless it knows no pages."""
        newest = list(reversed(self.batches.values()))
        if self.knows_pages:
            ids = [batch["id"] for batch in newest]
            newest = newest[ids.index(query["after"]) + 1 if "after" in query else 0 :][: int(query["limit"])]
        return {"object": "list", "data": newest}

    def look(self, name: str) -> dict[str, Any]:
        self.looks += 1
        batch = self.batches[name]
        if self.looks % 2 == 0:
            batch["status"] = self.status
        if batch["status"] == "failed":
            batch |= {"output_file_id": None, "errors": {"data": [{"message": "token limit exceeded"}]}}
        return batch


class Replier(BaseHTTPRequestHandler):
    """Replies whole bodies, and writes no log."""

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def reply(self, status: int, mime: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", mime)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(handler: type[Replier]) -> Iterator[str]:
    """A server on loopback; its base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def batch_api(judge: Judge = lambda text, number: good(text)) -> Iterator[tuple[BatchApi, Endpoint]]:
    api = BatchApi(judge)

    class Handler(Replier):
        def answer(self, payload: Any) -> None:
            data = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
            self.reply(200, "application/json", data)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path.endswith("/files"):
                name = f"file_{len(api.files)}"
                api.files[name] = re.search(rb'\{"custom_id".*\}(?=\n\r\n--)', body, re.DOTALL)[0].decode()
                self.answer(
                    {"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch"}
                )
            else:
                self.answer(api.create(json.loads(body)))

        def do_GET(self) -> None:
            last = self.path.split("?")[0].split("/")
            if last[-1] in api.forgotten or last[-2] in api.forgotten:
                self.send_error(404)
            elif last[-1] == "content":
                self.answer(api.files[last[-2]])
            elif last[-1] == "batches":
                self.answer(api.page(dict(parse_qsl(urlsplit(self.path).query))))
            else:
                self.answer(api.look(last[-1]))

    with serving(Handler) as url:
        yield api, Endpoint(base_url=url, model="m", batch=True, poll_seconds=0.01, retries=2, max_tokens=96)


def ask(count: int) -> list[Request]:
    return [Request([{"role": "user", "content": f"q{i}"}]) for i in range(count)]


def killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def ask_and_die(
    count: int, endpoint: Endpoint, store: AnswerStore, owner: object, name: str, dies: Any = killed, **options: Any
) -> None:
    """Ask so many requests in a job that `owner`'s function of that name kills."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, dies)
        with pytest.raises(KeyboardInterrupt):
            complete_all(ask(count), endpoint, store, **options)


def test_answers_come_in_order_and_are_stored(store: AnswerStore) -> None:
    with batch_api() as (api, endpoint):
        outcomes = complete_all(ask(5), endpoint.model_copy(update={"batch_requests": 2}), store)
        assert [o.text for o in outcomes] == [f"batched q{i}" for i in range(5)]
        assert not any(o.is_replayed for o in outcomes)
        assert len(api.batches) == 3
        assert all(o.is_replayed for o in complete_all(ask(5), endpoint, store))
        assert len(api.batches) == 3
    assert store.batches(endpoint.base_url) == []


def test_a_batch_of_which_all_is_refused_is_an_error(store: AnswerStore) -> None:
    refused = {"response": {"status_code": 400, "body": {"error": "no such field: max_tokens"}}, "error": None}
    with batch_api(lambda text, number: refused) as (_, endpoint), pytest.raises(EndpointError, match="no such field"):
        complete_all(ask(3), endpoint, store)


def test_a_job_of_which_nothing_is_answered_is_an_error(store: AnswerStore) -> None:
    broken = {"response": {"status_code": 500, "body": {"error": "out of memory"}}, "error": None}
    with batch_api(lambda text, number: broken) as (api, endpoint):
        with pytest.raises(EndpointError, match=r"3 requests got no answer \(HTTP 500: .*out of memory"):
            complete_all(ask(3), endpoint, store)
        assert len(api.batches) == endpoint.retries + 1


def test_a_batch_whose_creation_was_cut_is_not_created_twice(
    store: AnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, is_first = BatchApi.create, iter([True])

    def cut(self: BatchApi, body: dict[str, Any]) -> dict[str, Any]:
        made = create(self, body)
        if next(is_first, False):
            raise ConnectionResetError  # the connection ends without an answer
        return made

    monkeypatch.setattr(BatchApi, "create", cut)
    with batch_api() as (api, endpoint):
        with pytest.raises(EndpointError, match="run the same command to go on"):
            complete_all(ask(4), endpoint, store)
        assert [o.text for o in complete_all(ask(4), endpoint, store)] == [f"batched q{i}" for i in range(4)]
        assert len(api.batches) == 1


def test_an_outage_of_most_requests_is_an_error_also_beside_answers(store: AnswerStore) -> None:
    broken = {"response": {"status_code": 503, "body": {"error": "overloaded"}}, "error": None}
    budget = Budget()
    with batch_api(lambda text, number: good(text) if text in ("q0", "q1") else broken) as (_, endpoint):
        assert len(complete_all(ask(2), endpoint, store, budget=budget)) == 2
        assert [type(o) for o in complete_all(ask(4), endpoint, store, budget=budget)] == [Answer] * 2 + [Failure] * 2
        with pytest.raises(EndpointError, match=r"6 requests got no answer \(HTTP 503: .*run the same command to ask"):
            complete_all(ask(8), endpoint, store, budget=budget)


def test_creating_a_batch_is_repeated_where_nothing_was_created(
    store: AnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, refusals = openai.resources.Batches.create, iter([1, 1])

    def limited(self: Any, **fields: Any) -> Any:
        if next(refusals, None):
            response = httpx2.Response(429, request=httpx2.Request("POST", "http://127.0.0.1"))
            raise openai.RateLimitError("too fast", response=response, body=None)
        return create(self, **fields)

    monkeypatch.setattr("openai.resources.Batches.create", limited)
    with batch_api() as (api, endpoint):
        endpoint = endpoint.model_copy(update={"retry_seconds": 0.01})
        assert all(isinstance(o, Answer) for o in complete_all(ask(3), endpoint, store))
        assert len(api.batches) == 1


def test_results_that_begin_with_a_byte_order_mark_are_read(store: AnswerStore) -> None:
    with batch_api() as (api, endpoint):
        create = api.create

        def marked(body: dict[str, Any]) -> dict[str, Any]:
            made = create(body)
            api.files["out_0"] = "\ufeff" + api.files["out_0"]
            return made

        api.create = marked  # type: ignore[method-assign]
        assert all(isinstance(o, Answer) for o in complete_all(ask(3), endpoint, store))


def test_a_state_of_the_endpoints_own_is_waited_for(store: AnswerStore) -> None:
    with batch_api() as (api, endpoint):
        states = iter(["queued", "held", "completed"])
        look = api.look
        api.look = lambda name: look(name) | {"status": next(states)}  # type: ignore[method-assign]
        assert [o.text for o in complete_all(ask(2), endpoint, store)] == ["batched q0", "batched q1"]
        assert len(api.batches) == 1


def test_a_cancelled_batch_is_not_submitted_again_in_the_same_run(store: AnswerStore) -> None:
    with batch_api(lambda text, number: None if number == 0 and text == "q0" else good(text)) as (api, endpoint):
        api.status = "cancelled"
        with pytest.raises(EndpointError, match="was cancelled at the endpoint; its answers are kept"):
            complete_all(ask(2), endpoint, store)
        assert (len(api.batches), len(store)) == (1, 1)
        api.status = "completed"
        assert [o.text for o in complete_all(ask(2), endpoint, store)] == ["batched q0", "batched q1"]


@pytest.mark.parametrize("first", ["a page", "half"])
def test_results_that_come_as_a_page_or_in_part_are_fetched_again(store: AnswerStore, first: str) -> None:
    class Files(dict[str, str]):
        def __getitem__(self, name: str) -> str:
            whole = super().__getitem__(name)
            if name != "out_0" or not next(reads, None):
                return whole
            return "<html>We are being mended</html>" if first == "a page" else whole[: len(whole) // 2]

    reads = iter([1])
    with batch_api() as (api, endpoint):
        api.files, look = Files(), api.look
        counts = {"request_counts": {"total": 40, "completed": 40, "failed": 0}}
        api.look = lambda name: look(name) | counts  # type: ignore[method-assign]
        if first == "a page":
            with pytest.raises(EndpointError, match=r"cannot be read .*being mended.*; run the same command"):
                complete_all(ask(40), endpoint, store)
        assert all(isinstance(o, Answer) for o in complete_all(ask(40), endpoint, store))
        assert len(api.batches) == 1


@pytest.mark.parametrize("path", ["create", "look", "page"])
def test_a_page_where_a_batch_is_expected_is_one_sentence(store: AnswerStore, path: str) -> None:
    with batch_api() as (api, endpoint):
        if path == "page":
            store.open_batch("lost", endpoint.base_url, {"k": "{}"} | dict.fromkeys(_keys(2, endpoint), "{}"))
        setattr(api, path, lambda *_: "<html>down</html>")
        with pytest.raises(EndpointError, match="it answers something else than JSON"):
            complete_all(ask(2), endpoint, store)


def _keys(count: int, endpoint: Endpoint) -> list[str]:
    return [request_key(canonical_request(request, endpoint)) for request in ask(count)]


def test_another_job_leaves_an_open_batch_to_the_one_that_paid_for_it(store: AnswerStore) -> None:
    other = [Request([{"role": "user", "content": "another job"}])]
    with batch_api() as (api, endpoint):
        ask_and_die(4, endpoint, store, batch_module, "_collect")
        assert [o.text for o in complete_all(other, endpoint, store)] == ["batched another job"]
        assert [o.text for o in complete_all(ask(4), endpoint, store)] == [f"batched q{i}" for i in range(4)]
        assert len(api.batches) == 2
    assert store.batches(endpoint.base_url) == []


@pytest.mark.parametrize("knows_pages", [True, False])
def test_a_batch_that_was_created_just_before_a_kill_is_found_on_any_page_of_the_list(
    store: AnswerStore, monkeypatch: pytest.MonkeyPatch, knows_pages: bool
) -> None:
    monkeypatch.setattr(batch_module, "LISTED", 2)
    with batch_api() as (api, endpoint):
        api.knows_pages = knows_pages
        ask_and_die(3, endpoint, store, AnswerStore, "name_batch")
        for number in range(1, 6):  # other people's, created since
            api.batches[f"batch_{number}"] = {**api.batches["batch_0"], "id": f"batch_{number}", "metadata": None}
        assert [o.text for o in complete_all(ask(3), endpoint, store)] == [f"batched q{i}" for i in range(3)]
        assert len(api.batches) == 6
        ask_and_die(4, endpoint, store, AnswerStore, "name_batch")
        del api.batches["batch_6"]  # never created: nobody has it, so it is submitted again
        assert complete_all(ask(4), endpoint, store)[3].text == "batched q3"


def test_error_lines_are_retried_and_rejections_are_not(store: AnswerStore) -> None:
    def judge(text: str, number: int) -> dict[str, Any] | None:
        if text == "q1" and number == 0:
            return {"response": {"status_code": 500, "body": {"error": "boom"}}, "error": None}
        if text == "q2":
            return {"response": {"status_code": 400, "body": {"error": "too long"}}, "error": None}
        if text == "q3":
            return None  # expired: no line at all
        return good(text)

    with batch_api(judge) as (api, endpoint):
        outcomes = complete_all(ask(5), endpoint, store)
        assert len(api.batches) == 3
        assert "q2" not in api.files[api.batches["batch_1"]["input_file_id"]]
    assert [isinstance(o, Answer) for o in outcomes] == [True, True, False, False, True]
    assert [outcomes[2].reason, outcomes[3].reason] == ["rejected", "expired"]
    assert "too long" in outcomes[2].detail


@pytest.mark.parametrize("limit", [Budget(), Budget(max_tokens=2000)], ids=["no limit", "a limit"])
def test_a_refusal_of_a_batch_is_replayed_without_the_endpoint(store: AnswerStore, limit: Budget) -> None:
    def judge(text: str, number: int) -> dict[str, Any]:
        refusal = {"response": {"status_code": 400, "body": {"error": "too long"}}, "error": None}
        return refusal if text == "q2" else good(text)

    with batch_api(judge) as (_, endpoint):
        outcomes = complete_all(ask(5), endpoint, store, budget=dataclasses.replace(limit))
    again = complete_all(ask(5), endpoint, store, budget=dataclasses.replace(limit))
    assert again[2] == outcomes[2]
    assert [isinstance(o, Answer) and o.is_replayed for o in again] == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("owner", "name"),
    [(AnswerStore, "name_batch"), (batch_module, "_collect"), (openai.resources.Batches, "create")],
)
def test_a_restart_collects_what_was_submitted(store: AnswerStore, owner: object, name: str) -> None:
    with batch_api() as (api, endpoint):
        ask_and_die(4, endpoint, store, owner, name)
        assert len(store) == 0
        outcomes = complete_all(ask(4), endpoint, store)
        assert [o.text for o in outcomes] == [f"batched q{i}" for i in range(4)]
        assert len(api.batches) == 1


def test_a_refused_batch_is_a_clear_error(store: AnswerStore) -> None:
    with batch_api() as (api, endpoint):
        api.status = "failed"
        with pytest.raises(EndpointError, match="token limit exceeded"):
            complete_all(ask(2), endpoint, store)
        api.status = "completed"
        assert len(complete_all(ask(2), endpoint, store)) == len(store) == 2


def test_the_budget_holds_for_batches(store: AnswerStore) -> None:
    with batch_api() as (api, endpoint):
        budget = Budget(max_tokens=300)
        outcomes = complete_all(ask(30), endpoint, store, budget=budget)
        answered = sum(isinstance(o, Answer) for o in outcomes)
        sent = len(api.batches)
        again = Budget(max_tokens=300)
        assert [type(o) for o in complete_all(ask(30), endpoint, store, budget=again)] == [type(o) for o in outcomes]
        assert len(api.batches) == sent
    assert {o.reason for o in outcomes if isinstance(o, Failure)} == {"budget"}
    assert (budget.tokens_in, budget.tokens_out) == (10 * answered, 5 * answered)
    assert budget.is_exhausted
    assert again.is_exhausted
    assert answered == 14  # 210 tokens; one more could need 9 for its prompt and 96 for its answer
    assert sent > 1


@pytest.mark.parametrize("there", [(), range(30), range(20, 30), range(0, 30, 4)])
@pytest.mark.parametrize(
    ("limit", "longest", "answered"),
    [(300, 96, 14), (299, 20, 18)],  # of the second 29 tokens are left, enough for one more but not worth a batch
)
def test_the_budget_of_batches_ends_at_the_same_request_whichever_answers_are_there(
    store: AnswerStore, there: range, limit: int, longest: int, answered: int
) -> None:
    with batch_api() as (_, endpoint):
        endpoint = endpoint.model_copy(update={"max_tokens": longest})
        complete_all([ask(30)[i] for i in there], endpoint, store)
        budget = Budget(max_tokens=limit)
        outcomes = complete_all(ask(30), endpoint, store, budget=budget)
    assert [type(o) for o in outcomes] == [Answer] * answered + [Failure] * (30 - answered)
    assert (budget.tokens_in, budget.tokens_out, budget.answers) == (10 * answered, 5 * answered, answered)
    assert budget.is_exhausted


def test_batches_that_were_paid_for_are_collected_at_the_end_of_a_limit(store: AnswerStore) -> None:
    collect, calls = batch_module._collect_one, iter(range(100))

    def dying(*arguments: Any) -> dict[str, Failure]:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return collect(*arguments)

    with batch_api() as (api, endpoint):
        endpoint = endpoint.model_copy(update={"batch_requests": 2, "max_tokens": 5})
        ask_and_die(20, endpoint, store, batch_module, "_collect_one", dying, budget=Budget(max_tokens=290))
        assert len(store) == 18
        outcomes = complete_all(ask(20), endpoint, store, budget=Budget(max_tokens=290))
        assert all(isinstance(o, Answer) for o in outcomes)
        assert len(api.batches) == 10
    assert store.batches(endpoint.base_url) == []


def test_a_batch_beyond_a_limit_that_was_lowered_is_named_and_waits_for_a_higher_one(
    store: AnswerStore, capsys: pytest.CaptureFixture[str]
) -> None:
    with batch_api() as (api, endpoint):
        ask_and_die(4, endpoint, store, batch_module, "_collect", budget=Budget(max_tokens=1000))
        capsys.readouterr()
        lowered = complete_all(ask(4), endpoint, store, budget=Budget(max_tokens=50))
        assert {o.reason for o in lowered} == {"budget"}
        assert "batch batch_0 of 4 requests is beyond the limit and is left open" in capsys.readouterr().err
        complete_all(ask(4), endpoint, store, budget=Budget(max_tokens=1000))
        assert "beyond the limit" not in capsys.readouterr().err
        assert len(store) == 4
        assert len(api.batches) == 1
    assert store.batches(endpoint.base_url) == []


@pytest.mark.parametrize("gone", ["batch_0", "out_0"])
def test_a_batch_that_the_server_forgot_is_submitted_again(
    store: AnswerStore, capsys: pytest.CaptureFixture[str], gone: str
) -> None:
    with batch_api() as (api, endpoint):
        endpoint = endpoint.model_copy(update={"retries": 0})
        ask_and_die(4, endpoint, store, batch_module, "_collect")
        api.forgotten.add(gone)
        assert [o.text for o in complete_all(ask(4), endpoint, store)] == [f"batched q{i}" for i in range(4)]
        assert len(api.batches) == 2
    assert capsys.readouterr().err.count("batch batch_0 is unknown to") == 1
    assert store.batches(endpoint.base_url) == []


def test_a_server_that_forgets_every_batch_comes_to_an_end(store: AnswerStore) -> None:
    with batch_api() as (api, endpoint):
        api.forgotten.update(f"batch_{number}" for number in range(10))
        with pytest.raises(EndpointError, match=r"4 requests got no answer \(no answer came in time\)"):
            complete_all(ask(4), endpoint, store)
        assert len(api.batches) == endpoint.retries + 1


@pytest.mark.parametrize("upload", [0, 1])
def test_without_retries_what_was_never_uploaded_is_sent_once(
    store: AnswerStore, monkeypatch: pytest.MonkeyPatch, upload: int
) -> None:
    submit, calls = batch_module._submit, iter(range(100))

    def dying(*arguments: Any) -> None:
        with monkeypatch.context() as patched:
            if next(calls) == upload:
                patched.setattr("openai.resources.Files.create", killed)
            submit(*arguments)

    with batch_api() as (api, endpoint):
        endpoint = endpoint.model_copy(update={"retries": 0, "batch_requests": 2})
        ask_and_die(4, endpoint, store, batch_module, "_submit", dying)
        assert len(api.batches) == upload
        assert [o.text for o in complete_all(ask(4), endpoint, store)] == [f"batched q{i}" for i in range(4)]
        assert len(api.batches) == 2


def test_refused_requests_of_a_batch_beside_stored_answers_are_failures(store: AnswerStore) -> None:
    refused = {"response": {"status_code": 400, "body": {"error": "a filter"}}, "error": None}
    with batch_api(lambda text, number: refused if text in ("q1", "q2") else good(text)) as (_, endpoint):
        for _ in range(2):  # the second time only the two are asked for
            outcomes = complete_all(ask(4), endpoint, store)
            assert [type(o) for o in outcomes] == [Answer, Failure, Failure, Answer]


def test_a_batch_that_is_wanted_in_part_is_kept_whole(store: AnswerStore) -> None:
    with batch_api() as (api, endpoint):
        ask_and_die(4, endpoint, store, batch_module, "_collect")
        assert [o.text for o in complete_all(ask(2), endpoint, store)] == ["batched q0", "batched q1"]
        assert all(o.is_replayed for o in complete_all(ask(4), endpoint, store))
        assert len(api.batches) == 1


def test_an_endpoint_without_batches_is_a_clear_error(store: AnswerStore) -> None:
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", batch=True, retries=0)
    with pytest.raises(EndpointError, match=r"batch API of http://127\.0\.0\.1:9/v1"):
        complete_all(ask(1), endpoint, store)


@contextmanager
def replying(status: int, mime: str, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that gives one answer to every request: its address, and the keys that it was sent."""
    keys: list[str] = []

    class Same(Replier):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            keys.append(self.headers["authorization"])
            self.reply(status, mime, body)

    with serving(Same) as url:
        yield url, keys


def test_a_web_page_instead_of_a_batch_api_is_a_clear_error(store: AnswerStore) -> None:
    with replying(200, "text/html", HTML) as (url, _):
        for _ in range(2):  # the first leaves nothing behind that the second would look for
            with pytest.raises(EndpointError, match="something else than JSON"):
                complete_all(ask(1), Endpoint(base_url=url, batch=True, retries=0), store)


def test_a_proxy_that_the_client_cannot_use_is_a_clear_error(
    store: AnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    endpoint = Endpoint(base_url="http://192.0.2.1/v1", batch=True, retries=0)
    with pytest.raises(EndpointError, match="proxy"):
        complete_all(ask(1), endpoint, store)


def test_an_endpoint_on_this_machine_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")  # which the client could not use
    open_client(Endpoint(base_url="http://127.0.0.1:9/v1")).close()


def test_a_wrong_key_is_one_call_and_one_line_without_it(store: AnswerStore, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-very-secret-0123456789"
    monkeypatch.setenv("MY_KEY", key)
    refusal = json.dumps({"error": {"message": f"Incorrect API key provided: {key}"}}).encode()
    with replying(401, "application/json", refusal) as (url, keys), pytest.raises(EndpointError) as caught:
        complete_all(ask(3), Endpoint(base_url=url, batch=True, api_key_env="MY_KEY", retries=3), store)
    assert keys == [f"Bearer {key}"]
    assert "MY_KEY" in str(caught.value)
    assert key not in str(caught.value)
    assert "\n" not in str(caught.value)
