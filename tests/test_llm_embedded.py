"""The real embedded server with the real model: it answers, replays, writes negatives and closes."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl

from stm.llm.answers import Request
from stm.llm.client import complete_all
from stm.llm.server import serve
from stm.llm.store import AnswerStore
from stm.params.llm import Endpoint
from stm.params.synthesize import SynthesizeParams
from stm.schema import ROWS
from stm.synthesize.negatives import synthesize

ROW = {
    "id": "a", "anchor": "swollen liver", "positive": "An abnormal enlargement of the liver.", "origins": ["given"],
    "negatives": ["Cirrhosis: Scarring of the liver."], "instruction": "", "source": "test", "concept": "",
}  # fmt: skip


def test_the_embedded_model_answers_and_the_server_closes(tmp_path: Path) -> None:
    endpoint = Endpoint(max_tokens=8, concurrency=2, context_tokens=512)
    requests = [Request([{"role": "user", "content": "Name an organ."}], attempt=i) for i in range(2)]
    with AnswerStore(tmp_path / "a.sqlite") as store:
        with serve(endpoint) as live:
            address = urlsplit(live.base_url)
            answers = complete_all(requests, live, store)
            rows = pl.DataFrame([ROW], schema=ROWS)
            params = SynthesizeParams(endpoint=live.model_copy(update={"max_tokens": 24}), max_regenerations=0)
            report = synthesize(rows, params, store).report
        assert address.hostname == "127.0.0.1"
        assert all(answer.text and 0 < answer.tokens_out <= 8 and answer.tokens_in > 5 for answer in answers)
        assert report["accepted"] + sum(report["rejected"].values()) == 1
        with socket.socket() as probe:
            assert probe.connect_ex((address.hostname, address.port)) != 0
        # The store answers now, whatever the address: no server is started again.
        replayed = complete_all(requests, endpoint, store)
        assert [a.text for a in replayed] == [a.text for a in answers]
        assert all(a.is_replayed for a in replayed)
