"""The real embedded server with the real model: it answers, replays, writes negatives and closes."""

import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pytest

from stm.errors import EndpointError
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


WITHOUT_OPENMP = """
import sys

class Loader:  # as on a system without libgomp.so.1: xllamacpp is there, and loads after torch alone
    def find_spec(self, name, path=None, target=None):
        if name == "xllamacpp" and "torch" not in sys.modules:
            raise ImportError("libgomp.so.1: cannot open shared object file")

sys.meta_path.insert(0, Loader())
from stm.llm.server import serve
from stm.params.llm import Endpoint

with serve(Endpoint(concurrency=1, context_tokens=512)) as live:
    print(live.base_url, "torch" in sys.modules)
"""


def test_a_system_without_openmp_takes_that_of_torch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_OPENMP], capture_output=True, text=True, check=True)
    address, has_torch = done.stdout.split()
    assert urlsplit(address).hostname == "127.0.0.1"
    assert has_torch == "True"


def test_a_package_that_cannot_be_loaded_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"{name} needs libwhatever")

    monkeypatch.setattr("stm.llm.server.importlib.import_module", refuse)
    with pytest.raises(EndpointError, match=r"xllamacpp cannot be loaded \(torch needs libwhatever\)"), serve(SMALL):
        pass
