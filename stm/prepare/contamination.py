"""Contamination: finds training texts that an evaluation task also holds, word for word or nearly.

Texts go in, (text, task) hits come out. Two texts are the same if their normalised words are equal, or if they share
more than a given part of the distinct 8-grams of the shorter of the two. Knows nothing of sources, splits or files.

Memory: evaluation texts are never held. An 8-gram of theirs costs 12 bytes (its 64-bit hash and the number of its
text), 24 while they are sorted, and some more in the sieve that lets most unknown ones pass without a search. Texts to
be checked pass through in slices.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from stm.progress import Meter
from stm.tasks import Task
from stm.words import BETWEEN_WORDS, INVISIBLE, UNSPACED, case_folds

GRAM = 8  # words
COMMON = 64  # evaluation texts; an 8-gram in more of them is a stock phrase and says nothing about one text
SLICE = 20_000  # texts in work at a time
BUCKETS = 256  # ranges of hashes that are sorted one after the other
SIEVE_BITS = 16  # per 8-gram, so that of the unknown ones at most one in 16 is searched for
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that every word of an 8-gram keeps its weight modulo 2**64

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.uint32]


def normalise(texts: pl.Series) -> pl.Series:
    """What `stm.words.normalise` makes of each text, but that a character of a script without spaces is a word."""
    plain = texts.str.replace_all(INVISIBLE, "")
    # ASCII is NFKC as it stands, but to find that out takes as long as all the rest.
    others = (plain.str.len_bytes() > plain.str.len_chars()).arg_true()
    plain = plain.scatter(others, plain.gather(others).str.normalize("NFKC")).str.to_lowercase()
    plain = plain.str.replace_many(case_folds()).str.replace_all(BETWEEN_WORDS, " ")
    if plain.str.contains(f"[{UNSPACED}]").any():
        plain = plain.str.replace_all(rf"([{UNSPACED}]\p{{M}}*)", " $1 ").str.replace_all("  +", " ")
    return plain.str.strip_chars()


def hash_texts(normalised: pl.Series) -> Hashes:
    """One 64-bit hash per text."""
    return normalised.hash(seed=1).to_numpy()


def hash_grams(normalised: pl.Series) -> tuple[Hashes, Numbers]:
    """Hashes of the 8-grams of each text, repeated ones too, and the position of their text; texts under 8 words have
    none.
    """
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
    return grams[inside], owners[:count][inside]


def _distinct(grams: Hashes, owners: Numbers) -> tuple[Hashes, Numbers]:
    frame = pl.DataFrame({"owner": owners, "gram": grams}).unique(maintain_order=True)
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


def _sieve_places(grams: Hashes, bits: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Byte and mask of each hash in a table of 2**bits bits, by its leading bits."""
    places = (grams >> np.uint64(64 - bits)).astype(np.int64)
    return places >> 3, np.left_shift(1, places & 7).astype(np.uint8)


def _sorted_buckets(blocks: list[tuple[Hashes, Numbers]]) -> Iterator[tuple[Hashes, Numbers]]:
    """The sorted blocks merged in ascending order, a range of hashes at a time."""
    inner = np.arange(1, BUCKETS, dtype=np.uint64) * np.uint64(2**64 // BUCKETS)
    edges = [np.r_[0, np.searchsorted(grams, inner), len(grams)] for grams, _ in blocks]
    for bucket in range(BUCKETS if blocks else 0):
        parts = [slice(edge[bucket], edge[bucket + 1]) for edge in edges]
        grams = np.concatenate([block[0][part] for block, part in zip(blocks, parts, strict=True)])
        numbers = np.concatenate([block[1][part] for block, part in zip(blocks, parts, strict=True)])
        order = np.argsort(grams, kind="stable")
        if len(order):
            yield grams[order], numbers[order]


class _Grams:
    """The 8-grams of numbered texts, to look others up in; those in more than `COMMON` texts are left out."""

    def __init__(self, blocks: list[tuple[Hashes, Numbers]], texts: int) -> None:
        """`blocks` hold 8-grams in ascending order, each with the number of its text, below `texts`."""
        total = sum(len(grams) for grams, _ in blocks)
        self._bits = max(12, (SIEVE_BITS * total).bit_length())
        self._sieve = np.zeros(2 ** (self._bits - 3), np.uint8)
        self.grams, self._numbers = np.empty(total, np.uint64), np.empty(total, np.uint32)
        self.counts = np.zeros(texts, np.uint32)  # distinct 8-grams of each text, stock phrases left out
        common, end = [np.empty(0, np.uint64)], 0
        for grams, numbers in _sorted_buckets(blocks):
            starts = np.flatnonzero(np.r_[True, grams[1:] != grams[:-1]])
            sizes = np.diff(np.r_[starts, len(grams)])
            common.append(grams[starts[sizes > COMMON]])
            is_rare = np.repeat(sizes <= COMMON, sizes)
            rare, owners = grams[is_rare], numbers[is_rare]
            self.grams[end : end + len(rare)], self._numbers[end : end + len(rare)] = rare, owners
            np.add.at(self.counts, owners, np.uint32(1))
            np.bitwise_or.at(self._sieve, *_sieve_places(rare, self._bits))
            end += len(rare)
        self.grams, self._numbers, self.common = self.grams[:end], self._numbers[:end], np.concatenate(common)

    def find(self, grams: Hashes) -> tuple[npt.NDArray[np.int64], Numbers]:
        """Positions in `grams` and numbers of the texts that have that 8-gram, one place per pair."""
        bytes_, masks = _sieve_places(grams, self._bits)
        likely = np.flatnonzero(self._sieve[bytes_] & masks)
        lows = np.searchsorted(self.grams, grams[likely])
        counts = np.searchsorted(self.grams, grams[likely], side="right") - lows
        return np.repeat(likely, counts), self._numbers[_expand(lows[counts > 0], counts[counts > 0])]


class EvaluationIndex:
    """Hashes of all texts of all evaluation tasks, to look training texts up in."""

    def __init__(self, tasks: Iterable[Task], max_overlap: float) -> None:
        """Index the full (uncapped) tasks; `max_overlap` in [0, 1) is the tolerated part of shared 8-grams."""
        self.max_overlap = max_overlap
        self.task_names: list[str] = []
        self._texts = np.empty(0, np.uint64)  # sorted
        self._numbered = np.empty(0, np.uint64)  # texts whose 8-grams are indexed, by number
        blocks: list[tuple[Hashes, Numbers]] = []
        members: list[pl.DataFrame] = []
        for task in tasks:
            self.task_names.append(task.name)
            texts, passages = task_texts(task), 0 if task.notes.get("open_corpus") else len(task.corpus)
            with Meter(f"index the texts of {task.name}", len(task.queries) + passages) as meter:
                while batch := list(islice(texts, SLICE)):
                    members.append(self._add(batch, len(self.task_names) - 1, blocks))
                    meter.advance(sum(not is_variant for _, is_variant in batch))
        schema = {"text": pl.UInt64, "task": pl.UInt32}
        self._members = pl.concat(members).unique() if members else pl.DataFrame(schema=schema)
        self._texts = np.union1d(self._texts, self._members["text"].to_numpy())
        self._grams = _Grams(blocks, len(self._numbered))

    def _add(self, batch: list[tuple[str, bool]], task: int, blocks: list[tuple[Hashes, Numbers]]) -> pl.DataFrame:
        words = normalise(pl.Series([text for text, _ in batch], dtype=pl.String))
        frame = pl.DataFrame({"words": words, "text": hash_texts(words), "variant": [variant for _, variant in batch]})
        frame = frame.filter(pl.col("words") != "")
        new = frame.filter(~pl.col("variant")).unique("text", maintain_order=True)
        new = new.filter(~pl.Series(_is_in(new["text"].to_numpy(), self._texts)))
        grams, owners = _distinct(*hash_grams(new["words"]))
        order = np.argsort(grams, kind="stable")
        blocks.append((grams[order], owners[order] + np.uint32(len(self._numbered))))
        self._numbered = np.concatenate([self._numbered, new["text"].to_numpy()])
        self._texts = np.union1d(self._texts, new["text"].to_numpy())
        return frame.select("text", task=pl.lit(task, pl.UInt32)).unique()

    def describe(self) -> dict[str, Any]:
        """Sizes of the index, for the report."""
        sizes = {"grams": len(self._grams.grams), "stock_phrases": len(self._grams.common)}
        return {"evaluation_texts": len(self._texts), **sizes}

    def match(self, texts: pl.Series) -> pl.DataFrame:
        """Columns `index` (position in `texts`) and `text` (hash of the evaluation text that is the same), sorted."""
        slices = [self._match_slice(texts.slice(start, SLICE), start) for start in range(0, len(texts), SLICE)]
        empty = pl.DataFrame(schema={"index": pl.UInt32, "text": pl.UInt64})
        return pl.concat([empty, *slices]).unique().sort("index", "text")

    def name_tasks(self, matches: pl.DataFrame) -> pl.DataFrame:
        """The matches with the names of the tasks that hold the text in place of its hash."""
        names = pl.Series("task", self.task_names, dtype=pl.String)
        hits = matches.join(self._members, on="text").select("index", "task").unique().sort("index", "task")
        return hits.select("index", task=names.gather(hits["task"]))

    def _match_slice(self, texts: pl.Series, start: int) -> pl.DataFrame:
        words = normalise(texts)
        hashes = hash_texts(words)
        exact = np.flatnonzero(_is_in(hashes, self._texts) & (words != "").to_numpy()).astype(np.uint32)
        near, numbers = self._near(words)
        index = np.concatenate([exact, near]).astype(np.uint32) + np.uint32(start)
        matched = np.concatenate([hashes[exact], self._numbered[numbers]])
        return pl.DataFrame({"index": index, "text": matched.astype(np.uint64)})

    def _near(self, words: pl.Series) -> tuple[Numbers, Numbers]:
        """Positions of texts and numbers of the evaluation texts with which they share too many 8-grams."""
        grams, owners = hash_grams(words)
        is_open = np.zeros(len(words), np.bool_)  # most texts share no 8-gram with any, and are settled here
        is_open[owners[self._grams.find(grams)[0]]] = True
        grams, owners = _distinct(grams[is_open[owners]], owners[is_open[owners]])
        telling = ~_is_in(grams, self._grams.common)
        grams, owners = grams[telling], owners[telling]
        own_counts = np.bincount(owners, minlength=len(words))
        places, numbers = self._grams.find(grams)
        shared = pl.DataFrame({"owner": owners[places], "number": numbers}).group_by("owner", "number").len()
        owner, number = shared["owner"].to_numpy(), shared["number"].to_numpy()
        shorter = np.minimum(own_counts[owner], self._grams.counts[number])
        over = shared["len"].to_numpy() > self.max_overlap * shorter
        return owner[over], number[over]


def touched_queries(task: Task, texts: Hashes) -> list[str]:
    """Ids of the judged queries that are, or whose relevant passages are, among the evaluation texts of those hashes.

    `texts` come from `EvaluationIndex.match`. Passages of an open corpus may be trained on and touch no query.
    """
    owners, listed = [], []
    for query_id, judged in task.qrels.items():
        relevant = [] if task.notes.get("open_corpus") else [key for key, score in judged.items() if score > 0]
        for text in (task.queries[query_id], *(task.corpus[key].full_text() for key in relevant),
                     *(task.corpus[key].text for key in relevant if task.corpus[key].text)):  # fmt: skip
            owners.append(query_id)
            listed.append(text)
    words = normalise(pl.Series(listed, dtype=pl.String))
    hit = _is_in(hash_texts(words), np.sort(texts)) & (words != "").to_numpy()
    return sorted({owners[place] for place in np.flatnonzero(hit)})
