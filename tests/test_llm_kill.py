"""kill -9 at random moments: no answer is lost, and none that was stored is asked for again."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stm.llm.answers import Request, canonical_request, request_key
from stm.llm.store import AnswerStore
from stm.params.llm import Endpoint
from tests.closure import ROOT
from tests.fault_server import FaultServer, fault_server

KILLS, CONCURRENCY, REQUESTS, SEED = 20, 32, 1500, 7
FAULTS = ["429", "500", "cut", "closed", "junk", "html", "empty", "list"]  # of 30 % of all calls
# Imports once, then forks a fresh client per line on stdin: a life costs milliseconds instead of seconds.
CLIENTS = """
    import os
    import sys
    from stm.llm.answers import Request
    from stm.llm.client import complete_all
    from stm.llm.store import AnswerStore
    from stm.params.llm import Endpoint

    url, path, count, concurrency = sys.argv[1:]
    endpoint = Endpoint(base_url=url, concurrency=int(concurrency), retry_seconds=0.01, retries=20, model="m")

    def live():
        requests = [Request([{"role": "user", "content": f"q{i}"}]) for i in range(int(count))]
        with AnswerStore(path) as store:
            complete_all(requests, endpoint, store)

    for _ in sys.stdin:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                live()
                code = 0
            finally:
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Clients:
    """One process that forks clients; `start` returns the pid of the next one, `wait` its exit code."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def start(self) -> int:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> int:
        return int(self.process.stdout.readline())


@contextmanager
def clients(folder: Path, server: FaultServer) -> Iterator[Clients]:
    script = folder / "clients.py"
    script.write_text(textwrap.dedent(CLIENTS))
    arguments = [server.base_url, str(folder / "llm.sqlite"), str(REQUESTS), str(CONCURRENCY)]
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Clients(process)
    finally:
        process.stdin.close()
        process.wait(30)


def wait_for(server: FaultServer, asked: int) -> None:
    deadline = time.monotonic() + 30
    while len(server.asked) < asked:
        assert time.monotonic() < deadline, "the client asks no more"
        time.sleep(0.0005)


def settle(server: FaultServer) -> None:
    """Let the server read what a killed client had still sent."""
    time.sleep(0.03)
    while server.in_flight:
        time.sleep(0.001)


def stored(path: Path, texts: dict[str, str]) -> dict[str, str]:
    """What the store holds, by the text of the question."""
    with AnswerStore(path) as store:
        found = store.get(list(texts))
    return {texts[key]: answer.text for key, answer in found.items()}


def test_twenty_kills_lose_no_answer_and_ask_for_none_again(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    endpoint = Endpoint(base_url="http://unused/v1", model="m")
    texts = {
        request_key(canonical_request(Request([{"role": "user", "content": f"q{i}"}]), endpoint)): f"q{i}"
        for i in range(REQUESTS)
    }
    faults = random.Random(SEED + 1)
    behave = lambda number, body: faults.choice(FAULTS) if faults.random() < 0.3 else "ok"  # noqa: E731
    known: dict[str, str] = {}
    with fault_server(behave, delay=lambda: faults.uniform(0, 0.02)) as server, clients(tmp_path, server) as lives:
        for life in range(KILLS + 1):
            before = len(server.asked)
            pid = lives.start()
            if life < KILLS:
                wait_for(server, before + rng.randrange(1, CONCURRENCY))
                time.sleep(rng.uniform(0, 0.02))
                os.kill(pid, signal.SIGKILL)
            assert lives.wait() == (-signal.SIGKILL if life < KILLS else 0)
            settle(server)
            asked = {body["messages"][0]["content"] for body in server.asked[before:]}
            now = stored(tmp_path / "llm.sqlite", texts)
            assert not asked & known.keys(), "an answer that was stored was asked for again"
            assert known.items() <= now.items(), "an answer was lost or changed"
            # A worker takes its next request only when the last one is stored: so much may be on the wire, no more.
            assert len(asked - now.keys()) <= CONCURRENCY, "an answer that had come was not stored"
            known = now
    assert known == {text: f"echo {text} 1" for text in texts.values()}
    again = Counter(body["messages"][0]["content"] for body in server.asked)
    failed = sum(server.kinds[kind] for kind in FAULTS)
    assert sum(count - 1 for count in again.values()) <= KILLS * CONCURRENCY + failed
    assert all(server.kinds[kind] for kind in FAULTS)
