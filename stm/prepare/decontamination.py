"""Removes training rows that an evaluation task gives away, and counts them.

Candidate rows and an index of the evaluation texts go in; the clean rows and the counts come out. A row goes if its
anchor or its positive is found; a negative goes alone. On demand nothing goes, and what stays is counted.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from stm.prepare.contamination import EvaluationIndex


@dataclass
class Counts:
    """What decontamination looked at, found and removed."""

    tested: int = 0
    found: int = 0  # rows whose anchor or positive an evaluation task holds
    found_by_task: Counter[str] = field(default_factory=Counter)
    removed: int = 0
    negatives: int = 0  # of the other rows
    negatives_found: int = 0
    negatives_removed: int = 0
    texts: set[int] = field(default_factory=set)  # hashes of the evaluation texts that were found

    def add(self, other: "Counts") -> None:
        """Add the counts of other rows."""
        for name in ("tested", "found", "removed", "negatives", "negatives_found", "negatives_removed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.found_by_task += other.found_by_task
        self.texts |= other.texts

    @property
    def left(self) -> int:
        """Rows and negatives that were found and not removed."""
        return self.found - self.removed + self.negatives_found - self.negatives_removed

    def describe(self) -> dict[str, Any]:
        """The counts for the report; a row that several tasks hold counts for each of them."""
        own = {name: value for name, value in vars(self).items() if name not in ("texts", "found_by_task")}
        return {**own, "found_by_task": dict(sorted(self.found_by_task.items()))}


def add_up(counts: Iterable[Counts]) -> Counts:
    """The counts of all rows together."""
    total = Counts()
    for part in counts:
        total.add(part)
    return total


def _match(frame: pl.DataFrame, index: EvaluationIndex) -> tuple[pl.DataFrame, set[int]]:
    """Columns `text` and `task` of all found anchors, positives and negatives, synthetic ones too, and what evaluation
    texts they are.
    """
    negatives = frame["negatives"].explode(empty_as_null=True).drop_nulls()
    columns = [frame["anchor"], frame["positive"], negatives, frame["synthetic"]]
    texts = pl.concat([column.rename("text") for column in columns]).unique(maintain_order=True)
    matches = index.match(texts)
    hits = index.name_tasks(matches)
    return pl.DataFrame({"text": texts.gather(hits["index"]), "task": hits["task"]}), set(matches["text"].to_list())


def decontaminate(frame: pl.DataFrame, index: EvaluationIndex, remove: bool = True) -> tuple[pl.DataFrame, Counts]:
    """The rows (with columns row, anchor, positive, negatives, synthetic) without what an evaluation task holds.

    Without `remove` the rows come back as they are, and the counts say what should have gone.
    """
    hits, matched = _match(frame, index)
    flagged = hits["text"].unique().implode()
    bad = pl.col("anchor").is_in(flagged) | pl.col("positive").is_in(flagged)
    rows = frame.filter(bad).select("row", pl.concat_list("anchor", "positive").alias("text")).explode("text")
    by_task = Counter(rows.join(hits, on="text").unique(["row", "task"])["task"].to_list())
    clean = frame.filter(~bad)
    before = _count_negatives(clean)
    if hits.height:
        kept = clean.select("row", "negatives").explode("negatives", empty_as_null=True).drop_nulls()
        kept = kept.filter(~pl.col("negatives").is_in(flagged)).group_by("row", maintain_order=True).agg("negatives")
        clean = clean.drop("negatives").join(kept, on="row", how="left", maintain_order="left")
        synthetic = pl.when(pl.col("synthetic").is_in(flagged)).then(pl.lit("")).otherwise("synthetic")
        clean = clean.with_columns(pl.col("negatives").fill_null([]), synthetic=synthetic).select(frame.columns)
    found, negatives = frame.height - clean.height, before - _count_negatives(clean)
    counts = Counts(frame.height, found, by_task, remove * found, before, negatives, remove * negatives, matched)
    return clean if remove else frame, counts


def _count_negatives(frame: pl.DataFrame) -> int:
    return int(frame["negatives"].list.len().sum()) + frame.filter(pl.col("synthetic") != "").height
