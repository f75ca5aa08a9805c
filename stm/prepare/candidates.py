"""Candidates: the rows of one source before sampling, in one form whatever the source's kind.

Columns of text go in, a tidy frame comes out: blank rows, rows that answer themselves and duplicates are gone and
counted. Knows nothing of evaluation tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from stm.errors import DataError
from stm.prepare.contamination import SLICE, hash_texts, normalise
from stm.progress import Meter
from stm.schema import ROWS

_SHARED = ("anchor", "positive", "negatives", "instruction", "concept")
# `synthetic` is a hard negative that somebody's language model wrote for the row; empty for none.
CANDIDATES = pl.Schema({**{name: ROWS[name] for name in _SHARED}, "synthetic": pl.String()})
_WRITTEN_LIST = r"""(?s)^\s*\[\s*['"].*['"]\s*\]\s*$"""  # as pandas and json write one


@dataclass
class Candidates:
    """A source's label, its rows (CANDIDATES and a row number) and what is known of them for the report."""

    label: str
    frame: pl.DataFrame
    facts: dict[str, Any] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)  # rows of its mixture that it does not take, by instruction


def make_frame(columns: Mapping[str, Any], where: str) -> pl.DataFrame:
    """A frame of CANDIDATES from equally long columns; left-out ones are empty, nulls become empty texts.

    `columns` may hold polars series or lists; negatives are texts or lists of texts, concepts may be whole numbers. A
    column of another type, or of negatives that are lists written as texts, is a `DataError`.
    """
    frame = pl.DataFrame({name: columns[name] for name in CANDIDATES if name in columns})
    for name, kind in frame.schema.items():
        fits = kind in (pl.String, pl.Null)
        fits |= name == "negatives" and kind in (pl.List(pl.String), pl.List(pl.Null))
        fits |= name == "concept" and kind.is_integer()
        if not fits:
            wanted = {"negatives": "texts or lists of texts", "concept": "texts or whole numbers"}.get(name, "texts")
            raise DataError(f"{where}: the column for {name!r} has type {kind}; expected {wanted}")
    _refuse_written_lists(frame, where)
    empty = {name: pl.lit("") for name in CANDIDATES if name not in frame.columns and name != "negatives"}
    frame = frame.with_columns(**empty, negatives=_as_lists(frame))
    texts = [name for name in CANDIDATES if name != "negatives"]
    stripped = [pl.col(name).cast(pl.String).fill_null("").str.strip_chars() for name in texts]
    return frame.with_columns(stripped).select(list(CANDIDATES))


def _refuse_written_lists(frame: pl.DataFrame, where: str) -> None:
    """A cell of a csv file can hold no list, and a table with lists that was written as one holds their spelling."""
    if frame.schema.get("negatives") == pl.String:
        given = frame["negatives"].drop_nulls()
        given = given.filter(given != "")
        if len(given) and given.str.contains(_WRITTEN_LIST).all():
            raise DataError(
                f"{where}: the column for 'negatives' holds lists written as texts, such as {given[0][:60]!r}; save "
                "lists as jsonl or parquet, or one negative per row"
            )


def _as_lists(frame: pl.DataFrame) -> pl.Expr:
    if "negatives" not in frame.columns:
        return pl.lit([], dtype=pl.List(pl.String))
    if isinstance(frame.schema["negatives"], pl.List):
        lists = pl.col("negatives").cast(pl.List(pl.String)).fill_null([])
    else:
        lists = pl.concat_list(pl.col("negatives").cast(pl.String)).fill_null([])
    texts = pl.element().str.strip_chars()
    return lists.list.eval(texts.filter(texts.is_not_null() & (texts != "")))


def hash_forms(texts: pl.Series, meter: Meter) -> pl.Series:
    """A hash of the normal form of each text, or of a text of signs alone as it is; the meter counts texts."""
    hashes = [pl.Series(dtype=pl.UInt64)]
    for start in range(0, len(texts), SLICE):
        part = texts.slice(start, SLICE)
        forms = normalise(part)
        hashes.append(pl.Series(hash_texts(forms.zip_with(forms != "", part))))
        meter.advance(len(part))
    return pl.concat(hashes)


def _join_repeated(rows: pl.DataFrame) -> pl.DataFrame:
    """The first row of each pair, with the negatives of all its rows in order and the first synthetic one.

    Files of triplets repeat a pair once per negative.
    """
    first = rows.unique(["a", "p"], keep="first", maintain_order=True)
    if first.height == rows.height:
        return first
    written = pl.col("synthetic").filter(pl.col("synthetic") != "").first().fill_null("")
    joined = rows.group_by("a", "p", maintain_order=True).agg(pl.col("negatives").explode().drop_nulls(), written)
    both = first.drop("negatives", "synthetic").join(joined, on=["a", "p"], how="left", maintain_order="left")
    return both.select(rows.columns)


def tidy(candidates: list[Candidates], split: str) -> list[Candidates]:
    """The sources of a split without unusable rows; of equal pairs the first in the order of the sources stays, with
    the negatives that the source gives them all.

    Adds `row`, the number in its source, and `a` and `p`, hashes of the normal forms of its query and passage; counts
    `candidates`, `blank`, `identical` (the passage is the query) and `duplicates`. A split of which nothing is left is
    a `DataError`.
    """
    texts = 2 * sum(source.frame.height for source in candidates)
    with Meter(f"{split}: look for equal rows", texts) as meter:
        tidied = _tidy_each(candidates, meter)
    if not any(source.frame.height for source in tidied):
        reasons = ("blank", "identical", "duplicates")
        found = [
            f"{source.label} has {source.facts['candidates']} rows"
            + "".join(f", {source.facts[key]} {key}" for key in reasons if source.facts[key])
            for source in tidied
        ]
        raise DataError(
            f"the split {split!r} is empty: its sources hold no row with a query and another text as passage "
            f"({'; '.join(found)}); correct their columns, name other sources in prepare.splits, or remove the split"
        )
    return tidied


def _tidy_each(candidates: list[Candidates], meter: Meter) -> list[Candidates]:
    seen = pl.DataFrame(schema={"a": pl.UInt64, "p": pl.UInt64})
    tidied = []
    for source in candidates:
        numbered = source.frame.with_row_index("row")
        anchors, positives = (hash_forms(numbered[name], meter) for name in ("anchor", "positive"))
        hashed = numbered.with_columns(a=anchors, p=positives)
        filled = hashed.filter((pl.col("anchor") != "") & (pl.col("positive") != ""))
        usable = filled.filter(pl.col("a") != pl.col("p"))
        fresh = _join_repeated(usable).join(seen, on=["a", "p"], how="anti", maintain_order="left")
        seen = pl.concat([seen, fresh.select("a", "p")])
        counts = {
            "candidates": numbered.height,
            "blank": numbered.height - filled.height,
            "identical": filled.height - usable.height,
            "duplicates": usable.height - fresh.height,
        }
        tidied.append(replace(source, frame=fresh, facts={**source.facts, **counts}))
    return tidied
