"""Removes training rows that an evaluation task gives away, and counts them.

Candidate rows and an index of the evaluation texts go in; the clean rows and the counts come out. A row goes if its
anchor or its positive is found; a negative goes alone.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from stm.prepare.contamination import EvaluationIndex


@dataclass
class Counts:
    """What decontamination looked at and removed."""

    tested: int = 0
    removed: int = 0
    removed_by_task: Counter[str] = field(default_factory=Counter)
    negatives: int = 0
    negatives_removed: int = 0

    def add(self, other: "Counts") -> None:
        """Add the counts of other rows."""
        self.tested += other.tested
        self.removed += other.removed
        self.removed_by_task += other.removed_by_task
        self.negatives += other.negatives
        self.negatives_removed += other.negatives_removed

    def describe(self) -> dict[str, Any]:
        """The counts for the report; a row that several tasks hold counts for each of them."""
        by_task = dict(sorted(self.removed_by_task.items()))
        return {
            "tested": self.tested,
            "removed": self.removed,
            "removed_by_task": by_task,
            "negatives": self.negatives,
            "negatives_removed": self.negatives_removed,
        }


def _find_texts(frame: pl.DataFrame, index: EvaluationIndex) -> pl.DataFrame:
    """Columns `text` and `task` of all found anchors, positives and negatives, synthetic ones too."""
    negatives = frame["negatives"].explode(empty_as_null=True).drop_nulls()
    columns = [frame["anchor"], frame["positive"], negatives, frame["synthetic"]]
    texts = pl.concat([column.rename("text") for column in columns]).unique(maintain_order=True)
    hits = index.find(texts)
    return pl.DataFrame({"text": texts.gather(hits["index"]), "task": hits["task"]})


def decontaminate(frame: pl.DataFrame, index: EvaluationIndex) -> tuple[pl.DataFrame, Counts]:
    """The rows (with columns row, anchor, positive, negatives, synthetic) without what an evaluation task holds."""
    found = _find_texts(frame, index)
    flagged = found["text"].unique().implode()
    bad = pl.col("anchor").is_in(flagged) | pl.col("positive").is_in(flagged)
    rows = frame.filter(bad).select("row", pl.concat_list("anchor", "positive").alias("text")).explode("text")
    by_task = rows.join(found, on="text").unique(["row", "task"])["task"].to_list()
    clean = frame.filter(~bad)
    before = _count_negatives(clean)
    if found.height:
        kept = clean.select("row", "negatives").explode("negatives", empty_as_null=True).drop_nulls()
        kept = kept.filter(~pl.col("negatives").is_in(flagged)).group_by("row", maintain_order=True).agg("negatives")
        clean = clean.drop("negatives").join(kept, on="row", how="left", maintain_order="left")
        synthetic = pl.when(pl.col("synthetic").is_in(flagged)).then(pl.lit("")).otherwise("synthetic")
        clean = clean.with_columns(pl.col("negatives").fill_null([]), synthetic=synthetic).select(frame.columns)
    removed = before - _count_negatives(clean)
    return clean, Counts(frame.height, frame.height - clean.height, Counter(by_task), before, removed)


def _count_negatives(frame: pl.DataFrame) -> int:
    return int(frame["negatives"].list.len().sum()) + frame.filter(pl.col("synthetic") != "").height
