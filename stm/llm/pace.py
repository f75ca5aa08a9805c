"""How many requests may be in flight: additive increase, multiplicative decrease on 429, pauses from Retry-After.

A gate for coroutines of one event loop. Knows nothing of HTTP.
"""

import asyncio
import contextlib
import time

HALVE_EVERY_SECONDS = 1.0  # a burst of 429s from one overload counts once


class Pace:
    """A gate for at most `most` concurrent holders."""

    def __init__(self, most: int) -> None:
        self.most, self.allowed, self.running = most, float(most), 0
        self._resume_at = self._halved_at = 0.0
        self._changed, self._ended = asyncio.Condition(), asyncio.Event()

    def end(self) -> None:
        """Nobody waits any more: pauses are over, and whoever comes passes."""
        self._ended.set()

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)

    async def __aenter__(self) -> None:
        async with self._changed:
            while True:
                pause = self._resume_at - time.monotonic()
                if self._ended.is_set() or (pause <= 0 and self.running < int(self.allowed)):
                    self.running += 1
                    return
                if pause > 0:
                    # Everybody waits, but whoever wakes first rechecks under the lock.
                    self._changed.release()
                    try:
                        await self.pause(pause)
                    finally:
                        await self._changed.acquire()
                else:
                    await self._changed.wait()

    async def __aexit__(self, *_: object) -> None:
        async with self._changed:
            self.running -= 1
            self._changed.notify_all()

    def succeed(self) -> None:
        """An answer came: grow by about one per round."""
        self.allowed = min(float(self.most), self.allowed + 1.0 / self.allowed)

    def throttle(self, retry_after: float) -> None:
        """A 429 came: nobody sends for `retry_after` seconds, and half as many afterwards."""
        now = time.monotonic()
        self._resume_at = max(self._resume_at, now + retry_after)
        if now - self._halved_at > HALVE_EVERY_SECONDS:
            self._halved_at, self.allowed = now, max(1.0, self.allowed / 2)
