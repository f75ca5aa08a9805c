"""Which rows of a mixture the sources take by their instructions, and which no split takes.

Frames of CANDIDATES and sources go in, counts of rows by instruction come out. Does not know how a mixture is read.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from stm.errors import DataError
from stm.params.prepare import FileSource, HubSource, Source

MOST_TEXTS, MOST_CHARS = 50, 120  # of what is shown of a column that may hold another text in every row


def select_rows(frame: pl.DataFrame, source: FileSource | HubSource) -> tuple[pl.DataFrame, dict[str, int]]:
    """The rows whose instruction the source names, and how many rows have each of the other instructions.

    A named text that no row has is a `DataError`.
    """
    counts = dict(frame.group_by("instruction", maintain_order=True).len().iter_rows())
    named = set(source.only_instructions)
    if absent := [text for text in source.only_instructions if text not in counts]:
        raise DataError(
            f"{source.path}: no row has the text {absent[0]!r} of only_instructions in {source.instruction!r}; the "
            f"texts there, with their rows, are {describe_texts(counts)}"
        )
    others = {text: rows for text, rows in counts.items() if text not in named}
    return frame.filter(pl.col("instruction").is_in(source.only_instructions)), others


def find_left_out(others: Iterable[tuple[Source, Mapping[str, int]]]) -> list[tuple[dict[str, Any], dict[str, int]]]:
    """The mixtures of which no source takes some rows: what names each, and the rows by instruction.

    In go all sources with what `select_rows` found beside theirs: nothing for a source that takes all.
    """
    left: dict[tuple[tuple[str, Any], ...], dict[str, int]] = {}
    for source, texts in others:
        origin = tuple(source.model_dump(include={"path", "config", "split", "revision", "instruction"}).items())
        before = left.get(origin, texts)
        left[origin] = {text: rows for text, rows in before.items() if text in texts}
    return [(dict(origin), texts) for origin, texts in left.items() if texts]


def shorten_texts(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent texts with their rows, each text cut where it is long."""
    shown: Counter[str] = Counter()
    for text, rows in counts.items():
        shown[text if len(text) <= MOST_CHARS else f"{text[:MOST_CHARS]}..."] += rows
    return dict(shown.most_common(MOST_TEXTS))


def describe_texts(counts: Mapping[str, int]) -> str:
    """The most frequent texts with their rows, as messages show them."""
    shown = shorten_texts(counts)
    more = sum(counts.values()) - sum(shown.values())
    listed = ", ".join(f"{text!r} ({rows})" for text, rows in shown.items())
    return f"{listed}, and others ({more})" if more else listed
