"""Contamination: finds training texts that an evaluation task also holds, word for word or nearly.

Texts go in, (text, task) hits come out. Two texts are the same if their normalised words are equal, or if they share
more than a given part of the distinct 8-grams of the shorter of the two. Knows nothing of sources, splits or files.

Memory: evaluation texts are never held; an 8-gram costs 12 bytes (its 64-bit hash and the number of its text), about
32 while the index is sorted. Texts to be checked pass through in slices.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from stm.tasks import Task

GRAM = 8  # words
COMMON = 64  # evaluation texts; an 8-gram in more of them is a stock phrase and says nothing about one text
SLICE = 20_000  # texts in work at a time
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that every word of an 8-gram keeps its weight modulo 2**64

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.uint32]


def normalise(texts: pl.Series) -> pl.Series:
    """Lower-case words of letters and digits in any script, one space between."""
    return texts.str.to_lowercase().str.replace_all(r"[^\p{L}\p{N}]+", " ").str.strip_chars()


def hash_texts(normalised: pl.Series) -> Hashes:
    """One 64-bit hash per text."""
    return normalised.hash(seed=1).to_numpy()


def hash_grams(normalised: pl.Series) -> tuple[Hashes, Numbers]:
    """Hashes of the distinct 8-grams of each text and the position of their text; texts under 8 words have none."""
    words = normalised.str.split(" ")
    lengths = words.list.len().to_numpy()
    hashes = words.explode(empty_as_null=True).hash(seed=2).to_numpy()
    owners = np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths)
    count = len(hashes) - GRAM + 1
    if count <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.uint32)
    grams = np.zeros(count, np.uint64)
    for offset in range(GRAM):
        grams = grams * _MULTIPLIER + hashes[offset : offset + count]
    inside = owners[:count] == owners[GRAM - 1 :]
    frame = pl.DataFrame({"owner": owners[:count][inside], "gram": grams[inside]}).unique(maintain_order=True)
    return frame["gram"].to_numpy(), frame["owner"].to_numpy()


def _is_in(values: Hashes, sorted_values: Hashes) -> npt.NDArray[np.bool_]:
    if not len(sorted_values):
        return np.zeros(len(values), np.bool_)
    places = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    return np.asarray(sorted_values[places] == values)


def _expand(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions start, start + 1, .. of each range, one range after the other."""
    total = int(counts.sum())
    before = np.cumsum(counts) - counts
    return np.arange(total, dtype=np.int64) - np.repeat(before - starts, counts)


def task_texts(task: Task) -> Iterator[tuple[str, bool]]:
    """Every text of a task, and whether it is a variant of the one before: a titled passage without its title.

    The passages of a task whose notes say `open_corpus` may be trained on and are left out.
    """
    for query in task.queries.values():
        yield query, False
    if task.notes.get("open_corpus"):
        return
    for passage in task.corpus.values():
        yield passage.full_text(), False
        if passage.title and passage.text:
            yield passage.text, True


class EvaluationIndex:
    """Hashes of all texts of all evaluation tasks, to look training texts up in."""

    def __init__(self, tasks: Iterable[Task], max_overlap: float) -> None:
        """Index the full (uncapped) tasks; `max_overlap` in [0, 1) is the tolerated part of shared 8-grams."""
        self.max_overlap = max_overlap
        self.task_names: list[str] = []
        self._texts = np.empty(0, np.uint64)  # sorted; the number of a text is its place here
        blocks: list[tuple[Hashes, Hashes]] = []  # 8-grams, and the hash of the text of each
        members: list[pl.DataFrame] = []
        for task in tasks:
            self.task_names.append(task.name)
            texts = task_texts(task)
            while batch := list(islice(texts, SLICE)):
                members.append(self._add(batch, len(self.task_names) - 1, blocks))
        schema = {"text": pl.UInt64, "task": pl.UInt32}
        self._members = pl.concat(members).unique() if members else pl.DataFrame(schema=schema)
        self._build(blocks)

    def _add(self, batch: list[tuple[str, bool]], task: int, blocks: list[tuple[Hashes, Hashes]]) -> pl.DataFrame:
        words = normalise(pl.Series([text for text, _ in batch], dtype=pl.String))
        hashes = hash_texts(words)
        frame = pl.DataFrame({"words": words, "text": hashes, "variant": [variant for _, variant in batch]})
        frame = frame.filter(pl.col("words") != "")
        new = frame.filter(~pl.col("variant")).unique("text", maintain_order=True)
        new = new.filter(~pl.Series(_is_in(new["text"].to_numpy(), self._texts)))
        grams, owners = hash_grams(new["words"])
        blocks.append((grams, new["text"].to_numpy()[owners]))
        self._texts = np.union1d(self._texts, frame["text"].to_numpy())
        return frame.select("text", task=pl.lit(task, pl.UInt32)).unique()

    def _build(self, blocks: list[tuple[Hashes, Hashes]]) -> None:
        grams = np.concatenate([block[0] for block in blocks]) if blocks else np.empty(0, np.uint64)
        texts = [np.searchsorted(self._texts, block[1]).astype(np.uint32) for block in blocks]
        blocks.clear()
        numbers = np.concatenate(texts) if texts else np.empty(0, np.uint32)
        order = np.argsort(grams, kind="stable")
        grams, numbers = grams[order], numbers[order]
        starts = np.flatnonzero(np.r_[True, grams[1:] != grams[:-1]]) if len(grams) else np.empty(0, np.int64)
        counts = np.diff(np.r_[starts, len(grams)])
        self._common = grams[starts[counts > COMMON]]
        rare = np.repeat(counts <= COMMON, counts)
        self._grams, self._numbers = grams[rare], numbers[rare]
        self._gram_counts = np.bincount(self._numbers, minlength=len(self._texts)).astype(np.uint32)

    def describe(self) -> dict[str, Any]:
        """Sizes of the index, for the report."""
        return {"evaluation_texts": len(self._texts), "grams": len(self._grams), "stock_phrases": len(self._common)}

    def find(self, texts: pl.Series) -> pl.DataFrame:
        """Hits as columns `index` (position in `texts`) and `task` (name), each pair once, sorted."""
        slices = [self._find_slice(texts.slice(start, SLICE), start) for start in range(0, len(texts), SLICE)]
        names = pl.Series("task", self.task_names, dtype=pl.String)
        if not slices:
            return pl.DataFrame(schema={"index": pl.UInt32, "task": pl.String})
        hits = pl.concat(slices).unique().sort("index", "task")
        return hits.select("index", task=names.gather(hits["task"]))

    def _find_slice(self, texts: pl.Series, start: int) -> pl.DataFrame:
        words = normalise(texts)
        hashes = hash_texts(words)
        exact = np.flatnonzero(_is_in(hashes, self._texts) & (words != "").to_numpy()).astype(np.uint32)
        near, numbers = self._near(words)
        index = np.concatenate([exact, near]) + np.uint32(start)
        matched = np.concatenate([hashes[exact], self._texts[numbers]])
        hits = pl.DataFrame({"index": index.astype(np.uint32), "text": matched.astype(np.uint64)})
        return hits.join(self._members, on="text").select("index", "task")

    def _near(self, words: pl.Series) -> tuple[Numbers, Numbers]:
        """Positions of texts and numbers of the evaluation texts with which they share too many 8-grams."""
        grams, owners = hash_grams(words)
        telling = ~_is_in(grams, self._common)
        grams, owners = grams[telling], owners[telling]
        own_counts = np.bincount(owners, minlength=len(words))
        lows = np.searchsorted(self._grams, grams)
        counts = np.searchsorted(self._grams, grams, side="right") - lows
        numbers = self._numbers[_expand(lows[counts > 0], counts[counts > 0])]
        pairs = pl.DataFrame({"owner": np.repeat(owners, counts), "number": numbers})
        shared = pairs.group_by("owner", "number").len()
        owner, number = shared["owner"].to_numpy(), shared["number"].to_numpy()
        shorter = np.minimum(own_counts[owner], self._gram_counts[number])
        over = shared["len"].to_numpy() > self.max_overlap * shorter
        return owner[over], number[over]
