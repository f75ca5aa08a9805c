"""The real embedded server with the real model: it answers, replays, writes negatives and closes."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pytest

from stm.llm.answers import Budget, Failure, Request
from stm.llm.client import complete_all
from stm.llm.server import keep_serving, serve
from stm.llm.store import AnswerStore
from stm.params.llm import Endpoint
from stm.params.synthesize import SynthesizeParams
from stm.schema import ROWS
from stm.synthesize.negatives import synthesize

ROW = {
    "id": "a", "anchor": "swollen liver", "positive": "An abnormal enlargement of the liver.", "origins": ["given"],
    "negatives": ["Cirrhosis: Scarring of the liver."], "instruction": "", "source": "test", "concept": "",
    "answers": [],
}  # fmt: skip


SMALL = Endpoint(max_tokens=8, concurrency=2, context_tokens=512)


def is_open(url: str) -> bool:
    address = urlsplit(url)
    assert address.hostname == "127.0.0.1"
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0


def test_one_embedded_server_answers_all_questions_of_a_block_and_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [Request([{"role": "user", "content": "Name an organ."}], attempt=i) for i in range(2)]
    with AnswerStore(tmp_path / "a.sqlite") as store:
        with keep_serving():
            answers = complete_all(requests, SMALL, store)
            rows = pl.DataFrame([ROW], schema=ROWS)
            params = SynthesizeParams(endpoint=SMALL.model_copy(update={"max_tokens": 24}), max_regenerations=0)
            report = synthesize(rows, params, store).report
            with serve(SMALL) as live, serve(SMALL) as same:
                assert live.base_url == same.base_url
            assert is_open(live.base_url)
        assert not is_open(live.base_url)
        assert all(answer.text and 0 < answer.tokens_out <= 8 and answer.tokens_in > 5 for answer in answers)
        assert report["accepted"] + sum(report["rejected"].values()) == 1
        # The store answers now, and no server starts.
        monkeypatch.setattr("stm.llm.server._run_server", None)
        with keep_serving():
            replayed = complete_all(requests, SMALL, store)
        assert [a.text for a in replayed] == [a.text for a in answers]
        assert all(a.is_replayed for a in replayed)


def test_a_server_that_nobody_asked_closes(tmp_path: Path) -> None:
    """Closed before its loop ran, llama.cpp's server never ended; a budget that allows no request came to that."""
    for _ in range(4):
        with serve(SMALL) as live:
            assert is_open(live.base_url)
        assert not is_open(live.base_url)
    with AnswerStore(tmp_path / "a.sqlite") as store:
        asked = [Request([{"role": "user", "content": "Name an organ."}])]
        outcome = complete_all(asked, SMALL, store, budget=Budget(max_tokens=1))[0]
        assert isinstance(outcome, Failure)
        assert outcome.reason == "budget"
