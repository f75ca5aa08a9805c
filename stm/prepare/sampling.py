"""Draws a split's pairs, spread evenly over its sources, and tests only what it draws.

Tidy candidates go in, accepted rows in the schema's form and counts come out. A source's rows come in a seeded order
of their own, so that the split's pairs are its first accepted rows and the warm-up's are its last: neither depends on
how many the other takes.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from stm.files import sha256_text
from stm.prepare.candidates import Candidates, hash_forms
from stm.prepare.contamination import EvaluationIndex
from stm.prepare.decontamination import Counts, decontaminate
from stm.progress import Meter, track
from stm.schema import ROWS
from stm.words import fingerprint

STEP = 256  # rows tested at a time, at least
MAX_STEP = 50_000


def seeded_permutation(count: int, *key: str) -> np.ndarray:
    """The numbers 0 .. count - 1 in an order that the key alone decides."""
    return np.random.default_rng(int(sha256_text(*key)[:16], 16)).permutation(count)


def share_out(total: int, available: Sequence[int]) -> list[int]:
    """How many of `total` each source gives: as even as its rows allow, the earlier ones first."""
    shares = [0] * len(available)
    left = min(total, sum(available))
    # The smallest sources settle first: what they lack is left to the larger ones.
    for place, i in enumerate(sorted(range(len(available)), key=lambda i: (available[i], i))):
        shares[i] = min(available[i], -(-left // (len(available) - place)))
        left -= shares[i]
    return shares


class Drawer:
    """Hands out a source's clean rows in their seeded order, testing as few as it must."""

    def __init__(
        self, source: Candidates, index: EvaluationIndex, seed: int, split: str, *, from_end: bool, remove: bool
    ) -> None:
        order = seeded_permutation(source.frame.height, str(seed), split, source.label)
        self._rows = source.frame[order[::-1] if from_end else order]
        self._index, self._remove = index, remove
        self._accepted: list[pl.DataFrame] = []
        self.count = 0  # accepted so far
        self.counts = Counts()
        self.label = source.label

    @property
    def most(self) -> int:
        """Rows that it can hand out at most, as far as is known."""
        return self.count + self._rows.height - self.counts.tested

    def fill(self, wanted: int, meter: Meter) -> None:
        """Test rows until `wanted` are accepted or none is left; the meter counts accepted ones."""
        while self.count < wanted and self.counts.tested < self._rows.height:
            lacking = wanted - self.count
            # Where nothing is removed, what is tested is what is taken, so that the counts are those of the rows.
            step = min(MAX_STEP, max(STEP, lacking * 9 // 8) if self._remove else lacking)
            clean, counts = decontaminate(self._rows.slice(self.counts.tested, step), self._index, self._remove)
            self.counts.add(counts)
            self._accepted.append(clean)
            self.count += clean.height
            meter.advance(min(clean.height, lacking))

    def take(self, wanted: int) -> pl.DataFrame:
        """The first `wanted` accepted rows, or all."""
        return pl.concat([self._rows.clear(), *self._accepted]).head(wanted)


def draw(
    sources: Sequence[Candidates],
    index: EvaluationIndex,
    *,
    split: str,
    total: int,
    seed: int,
    from_end: bool = False,
    remove: bool = True,
) -> tuple[dict[str, pl.DataFrame], dict[str, Counts]]:
    """Clean rows by source label, `total` of them (0: all) where there are so many, and the counts by source label.

    Without `remove`, contaminated rows are drawn as well and counted.
    """
    drawers = [Drawer(source, index, seed, split, from_end=from_end, remove=remove) for source in sources]
    there = sum(drawer.most for drawer in drawers)
    wanted = min(total, there) if total else there
    with Meter(f"{split}: look for rows in evaluation tasks", wanted) as meter:
        while True:
            shares = share_out(wanted, [drawer.most for drawer in drawers])
            for drawer, share in zip(drawers, shares, strict=True):
                drawer.fill(share, meter)
            if all(drawer.count >= share for drawer, share in zip(drawers, shares, strict=True)):
                break
    taken = {drawer.label: drawer.take(share) for drawer, share in zip(drawers, shares, strict=True)}
    return taken, {drawer.label: drawer.counts for drawer in drawers}


def as_rows(
    taken: dict[str, pl.DataFrame], candidates: Sequence[Candidates], split: str, seed: int, max_negatives: int
) -> pl.DataFrame:
    """The drawn rows in the schema's form, in a seeded order so that every part of the file is a mix.

    A row's synthetic negative comes last, after at most `max_negatives` given ones. `candidates` are all rows of the
    split's sources, which know more answers than those that were drawn.
    """
    frame = pl.concat([frame.with_columns(source=pl.lit(label)) for label, frame in taken.items()])
    frame = frame.with_columns(negatives=_useful_negatives(frame, max_negatives))
    frame = frame.with_columns(synthetic=_useful_synthetic())
    frame = frame.with_columns(
        id=pl.format("{}/{}/{}", pl.lit(split), pl.col("source"), pl.col("row")),
        negatives=pl.concat_list("negatives", "synthetic"),
        origins=pl.concat_list(
            pl.lit("given").repeat_by(pl.col("negatives").list.len()),
            pl.lit("synthetic").repeat_by(pl.col("synthetic").list.len()),
        ),
    )
    frame = frame.with_columns(answers=_known_answers(frame, candidates, split))
    return frame.select(list(ROWS)).cast(ROWS)[seeded_permutation(frame.height, str(seed), split, "order")]


def _known_answers(frame: pl.DataFrame, candidates: Sequence[Candidates], split: str) -> pl.Series:
    """Per row the fingerprints of the drawn passages and negatives that answer its query by any candidate, drawn or
    not; none where its own positive is the only one. Rows of one query have the same ones.
    """
    negatives = frame["negatives"].explode(empty_as_null=True).drop_nulls().unique()
    with Meter(f"{split}: look for negatives that are answers", len(negatives)) as meter:
        others = pl.DataFrame({"p": hash_forms(negatives, meter), "text": negatives})
    here = pl.concat([frame.select("p", text="positive"), others]).unique()
    pairs = pl.concat([source.frame.select("a", "p") for source in candidates])
    pairs = pairs.join(frame.select("a").unique(), on="a", how="semi").join(here, on="p").unique()
    pairs = pairs.filter(pl.len().over("a") > 1)  # one passage alone needs no fingerprint, which takes long
    texts = pairs["text"].unique()
    prints = {text: fingerprint(text) for text in track(texts, f"{split}: name answers", len(texts))}
    named = pairs.with_columns(answers=pl.col("text").replace_strict(prints, default=None, return_dtype=pl.UInt64))
    lists = named.group_by("a").agg(pl.col("answers").unique().sort()).filter(pl.col("answers").list.len() > 1)
    return frame.select("a").join(lists, on="a", how="left", maintain_order="left")["answers"].fill_null([])


def _useful_synthetic() -> pl.Expr:
    """The row's synthetic negative as a list; empty where it is the row's query or one of its passages, or none."""
    text = pl.col("synthetic")
    repeats = (text == pl.col("positive")) | (text == pl.col("anchor")) | pl.col("negatives").list.contains(text)
    return pl.when((text != "") & ~repeats).then(pl.concat_list(text)).otherwise(pl.lit([], pl.List(pl.String)))


def _useful_negatives(frame: pl.DataFrame, most: int) -> pl.Series:
    """Each row's negatives, without repetitions and without the row's own texts, the first `most`."""
    numbered = frame.select("anchor", "positive", "negatives").with_row_index("place")
    long = numbered.explode("negatives", empty_as_null=True).drop_nulls("negatives")
    long = long.filter((pl.col("negatives") != pl.col("positive")) & (pl.col("negatives") != pl.col("anchor")))
    long = long.unique(["place", "negatives"], keep="first", maintain_order=True)
    lists = long.group_by("place", maintain_order=True).agg(pl.col("negatives").head(most))
    joined = numbered.select("place").join(lists, on="place", how="left", maintain_order="left")
    return joined["negatives"].fill_null([])
