"""Progress that a person can follow: a bar on a terminal, a line every few seconds in a log.

Writes to stderr only, and of several processes that work together only the first does. Holds no state beyond the loop
that it watches.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")
LOG_EVERY_SECONDS = 10.0
DRAW_EVERY_SECONDS = 0.1  # a loop over a million rows would spend seconds on telling the bar of each
BRIEF_SECONDS = 2.0  # a bar that was there no longer leaves no line on a terminal


def _is_first() -> bool:
    """Whether this is the process that speaks; a launcher numbers its processes in RANK."""
    return os.environ.get("RANK", "0") == "0"


def say(message: str) -> None:
    """Write one line for the user on stderr."""
    if not _is_first():
        return
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


class Meter:
    """Counts towards `total` and shows it; `advance` may carry a note such as the current loss."""

    def __init__(self, description: str, total: int) -> None:
        self.description, self.total, self.done, self.note = description, total, 0, ""
        self._started = self._shown_at = time.monotonic()
        self._shown = 0
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if console.is_terminal and _is_first():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(description, total=total)

    def __enter__(self) -> "Meter":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._show()
            self._bar.live.transient = time.monotonic() - self._started < BRIEF_SECONDS
            self._bar.stop()
        elif time.monotonic() - self._started > LOG_EVERY_SECONDS and self.done > self._shown:
            self._show()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished units."""
        self.done, self.note = self.done + count, note or self.note
        if time.monotonic() - self._shown_at > (DRAW_EVERY_SECONDS if self._bar else LOG_EVERY_SECONDS):
            self._show()

    def _show(self) -> None:
        self._shown_at, self._shown = time.monotonic(), self.done
        if self._bar:
            self._bar.update(self._task, completed=self.done, description=f"{self.description} {self.note}".rstrip())
            return
        seconds = self._shown_at - self._started
        say(f"  {self.description}: {self.done}/{self.total} in {seconds:.0f} s {self.note}".rstrip())


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """Yield the items while showing how many of `total` are done."""
    with Meter(description, total) as meter:
        for item in items:
            yield item
            meter.advance()
