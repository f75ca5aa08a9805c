"""What the LLM client costs beside the endpoint: CPU and memory of the client over many requests to a local server.

usage: python -m benchmarks.llm_overhead [--requests 100000] [--rate 500] [--concurrency 64] [--output FILE]

The server is a process of its own that answers at the given rate, so that the client waits for it as for a real one.
The client asks in the portions of the stage `synthesize`, with its answer store on disk; each portion is one
measurement. Time and memory of imports are left out of the CPU figures and part of the memory figures.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figures import make_parser, print_result, run_worker, write_figures

NAME = "benchmarks.llm_overhead"
PACKAGES = ("openai", "httpx2", "aiohttp")
PASSAGE = "An abnormal enlargement of the organ that is felt below the ribs and follows an inflammation of its ducts. "
ANSWER = (
    "A slow shrinking of the organ that follows a long inflammation and is hardly felt before the blood is tested. "
)


class PacedServer(asyncio.Protocol):
    """HTTP/1.1 with keep-alive: every POST gets the same completion, all together at a fixed rate per second."""

    rate = 500.0
    latency = 0.02  # seconds until the earliest answer
    last = 0.0

    def __init__(self) -> None:
        self.buffer = b""

    def connection_made(self, transport: Any) -> None:
        """Keep the connection to write to."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request at its place in the common schedule."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            start = head.index(b"content-length:") + 15
            size = end + 4 + int(head[start:].split(b"\r\n", 1)[0])
            if len(self.buffer) < size:
                return
            self.buffer = self.buffer[size:]
            loop = asyncio.get_running_loop()
            PacedServer.last = max(loop.time() + self.latency, PacedServer.last + 1 / self.rate)
            loop.call_at(PacedServer.last, self.transport.write, REPLY)


def make_reply() -> bytes:
    """The bytes of one answer of about a hundred tokens."""
    choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER * 4}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 220, "completion_tokens": 90, "total_tokens": 310}
    body = json.dumps({"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage})
    return f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode()


REPLY = make_reply()


async def serve(rate: float) -> None:
    """Serve until killed; the port stands on stdout."""
    PacedServer.rate = rate
    server = await asyncio.get_running_loop().create_server(PacedServer, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def ask(url: str, requests: int, concurrency: int, store_path: Path) -> list[dict[str, float]]:
    """Ask for everything in portions; the figures of each."""
    import stm.stage  # noqa: F401 - with the garbage collector as a stage has it
    from stm.llm.answers import Answer, Budget, Request
    from stm.llm.client import complete_all
    from stm.llm.store import AnswerStore
    from stm.params.llm import Endpoint
    from stm.synthesize.prompt import Triplet, build_messages

    endpoint = Endpoint(base_url=url, model="m", concurrency=concurrency, api_key_env="")
    size = endpoint.requests_at_once
    windows, budget = [], Budget(max_cost=1e9, price_in=1.0, price_out=1.0)
    with AnswerStore(store_path) as store:
        for start in range(0, requests, size):
            cpu, wall = time.process_time(), time.perf_counter()
            rows = (Triplet("Find it", f"query {i}", PASSAGE * 4, PASSAGE) for i in range(start, start + size))
            todo = [Request(build_messages(row, "full", 600)) for row in rows][: requests - start]
            outcomes = complete_all(todo, endpoint, store, "ask", budget)
            if not all(isinstance(outcome, Answer) for outcome in outcomes):
                raise SystemExit("a request failed; the figures would mean nothing")
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            resident = psutil.Process().memory_info().rss / 1e6
            windows.append({"requests": len(todo), "wall": wall, "cpu": cpu, "resident_mb": resident})
    return windows


def describe(windows: list[dict[str, float]]) -> dict[str, Any]:
    """Rate, CPU and memory over the portions."""

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    memory = [window["resident_mb"] for window in windows]
    return {
        "requests": sum(window["requests"] for window in windows),
        "portions": len(windows),
        "requests_per_second": spread([window["requests"] / window["wall"] for window in windows]),
        "cores": spread([window["cpu"] / window["wall"] for window in windows]),
        "cpu_ms_per_request": spread([1000 * window["cpu"] / window["requests"] for window in windows]),
        "resident_mb": {"after_first_portion": memory[0], "after_last_portion": memory[-1], "max": max(memory)},
        "growth_mb_after_first_portion": memory[-1] - memory[0],
    }


def measure(requests: int, rate: float, concurrency: int) -> list[dict[str, float]]:
    """Start the server and a client process, return the client's figures."""
    command = [sys.executable, "-m", NAME, "--serve", str(rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            options = ["--requests", str(requests), "--concurrency", str(concurrency)]
            return list(run_worker(NAME, "--client", url, *options)["windows"])
        finally:
            server.kill()


def main() -> None:
    """Run the benchmark, its server or its client."""
    parser = make_parser(__doc__, "llm_overhead")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--client", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
    elif options.client:
        with tempfile.TemporaryDirectory() as folder:
            windows = ask(options.client, options.requests, options.concurrency, Path(folder) / "llm.sqlite")
        print_result({"windows": windows})
    else:
        from stm.progress import say

        results = describe(measure(options.requests, options.rate, options.concurrency))
        settings = {"rate": options.rate, "concurrency": options.concurrency}
        write_figures(options.output, PACKAGES, settings, results=results)
        say(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
