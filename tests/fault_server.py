"""An OpenAI-compatible chat endpoint on loopback that fails on demand: limits, errors, silence, junk."""

import asyncio
import contextlib
import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

Behaviour = Callable[[int, dict[str, Any]], str]
FAILED = {"message": {"content": ""}, "finish_reason": "error", "error": {"code": 502, "message": "upstream"}}
HTML = b"<!doctype html><html><body>It works!</body></html>"


def completion(text: str, finish: str = "stop", **changes: Any) -> dict[str, Any]:
    """The JSON of a good answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage, **changes}


def echo(body: dict[str, Any]) -> str:
    """Default answer: the last message and the seed."""
    return f"echo {body['messages'][-1]['content']} {body.get('seed')}"


class FaultServer:
    """Runs in a thread; `behave(number, body)` names what happens to each request."""

    def __init__(
        self,
        behave: Behaviour,
        answer: Callable[[dict[str, Any]], str] = echo,
        delay: Callable[[], float] = lambda: 0.0,  # seconds that a reply takes
        finish: str = "stop",  # why its answers end
    ) -> None:
        self.behave, self.answer, self.delay, self.finish = behave, answer, delay, finish
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()  # good answers sent, by the last message's text
        self.in_flight = self.most_in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(int(h.split(":")[1]) for h in head.splitlines() if h.lower().startswith("content-length"))
        body = json.loads(await reader.readexactly(length))
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            return await self._reply(head, body, writer)
        finally:
            self.in_flight -= 1

    async def _reply(self, head: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        kind = self.behave(len(self.asked), body)
        self.asked.append(body)
        self.headers.append(head)
        self.kinds[kind] += 1
        text = body["messages"][-1]["content"]
        good = json.dumps(completion(self.answer(body), self.finish)).encode()
        await asyncio.sleep(self.delay())
        if kind == "silence":
            await asyncio.sleep(30)
            return False
        if kind == "closed":
            return False
        if kind == "cut":
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n" + good[:20]
            )
            await writer.drain()
            return False
        replies: dict[str, tuple[str, bytes, str]] = {
            "ok": ("200 OK", good, ""),
            "gzip": ("200 OK", gzip.compress(good), "content-encoding: gzip\r\n"),
            "429": ("429 Too Many Requests", b'{"error": {"message": "slow down"}}', "retry-after-ms: 20\r\n"),
            "429-minute": ("429 Too Many Requests", b"{}", "Retry-After: 55\r\n"),
            "429-long": ("429 Too Many Requests", b"{}", "Retry-After: 7200\r\n"),
            "402": ("402 Payment Required", b'{"error": "insufficient balance"}', ""),
            "quota": ("429 Too Many Requests", b'{"error": {"code": "insufficient_quota"}}', ""),
            "500": ("500 Internal Server Error", b"oops", ""),
            "400": ("400 Bad Request", b'{"error": {"message": "context too long"}}', ""),
            "401": ("401 Unauthorized", head.encode(), ""),
            "403-text": ("403 Forbidden", b'{"error": {"message": "your input was flagged"}}', ""),
            "403-account": ("403 Forbidden", b'{"error": {"message": "Your account was flagged"}}', ""),
            "failed": ("200 OK", json.dumps(completion("", choices=[FAILED])).encode(), ""),
            "404": ("404 Not Found", b'{"error": "no such model"}', ""),
            "junk": ("200 OK", b'{"choices": [', ""),
            "nul": ("200 OK", b"\x00\xff\xfe" * 10, ""),
            "html": ("200 OK", HTML, ""),
            "empty": ("200 OK", json.dumps(completion("", choices=[])).encode(), ""),
            "list": ("200 OK", b"[1, 2]", ""),
        }
        status, payload, extra = replies[kind]
        mime = "text/html" if kind == "html" else "application/json"
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-type: {mime}\r\n{extra}content-length: {len(payload)}\r\n\r\n".encode()
            + payload
        )
        await writer.drain()
        if kind == "ok":
            self.answered[text] += 1
        return True

    def __enter__(self) -> "FaultServer":
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


@contextlib.contextmanager
def fault_server(behave: Behaviour = lambda number, body: "ok", **options: Any) -> Iterator[FaultServer]:
    """Open a server for the length of a block."""
    with FaultServer(behave, **options) as server:
        yield server
