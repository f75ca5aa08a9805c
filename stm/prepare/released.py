"""Hard negatives that somebody released for the rows of a public mixture, joined by row number.

The form is that of `ikim-uk-essen/stm_gpt5_hard_negatives`: `bmretriever_index` counts the rows of
`BMRetriever/biomed_retrieval_dataset` from 0, `hard_negative` is the text. Candidates go in and come out with the
column `synthetic` filled.
"""

from pathlib import Path
from typing import Any

import polars as pl

from stm.errors import DataError
from stm.files import sha256_tree
from stm.params.prepare import Released
from stm.prepare.hub import describe, read_hub_columns

INDEX, TEXT = "index", "text"


def add_released(frame: pl.DataFrame, source: Released) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the candidates, in order and still unfiltered, with their released negatives, and facts for the report."""
    options = {"config": source.config, "split": source.split, "revision": source.revision}
    released = read_hub_columns(source.path, (source.index, source.text), **options)
    named = released.select(pl.col(source.index).alias(INDEX), pl.col(source.text).alias(TEXT))
    joined = join_released(frame, named, describe(source.path, source.split))
    count = joined.filter(pl.col("synthetic") != "").height
    facts = {"path": source.path, **options, "negatives": count}
    if Path(source.path).exists():
        facts["sha256"] = sha256_tree(source.path)
    return joined, facts


def join_released(frame: pl.DataFrame, released: pl.DataFrame, where: str = "released negatives") -> pl.DataFrame:
    """Return the frame with the column `synthetic`: the text of `released` (index, text), empty where it has none.

    `DataError` for columns of another type, for positions that are given twice or that the frame does not have: a file
    that fits another version of the mixture would silently pair every query with a stranger's negative.
    """
    if not released.schema[INDEX].is_integer() or released.schema[TEXT] not in (pl.String, pl.Null):
        found = ", ".join(f"{name} {kind}" for name, kind in released.schema.items())
        raise DataError(f"{where}: the index must hold whole numbers and the negative text; found {found}")
    positions = released[INDEX]
    if positions.null_count() or positions.is_duplicated().any():
        raise DataError(f"{where}: the index has nulls or duplicates; each row of the source may have one negative")
    outside = released.filter(~pl.col(INDEX).is_between(0, frame.height - 1))
    if outside.height:
        raise DataError(
            f"{where}: the index has {outside[INDEX][0]}, but the source has {frame.height} rows; use the revision "
            "of the source that the negatives were made for"
        )
    numbered = frame.drop("synthetic", strict=False).with_row_index(INDEX).with_columns(pl.col(INDEX).cast(pl.Int64))
    texts = released.select(
        pl.col(INDEX).cast(pl.Int64), pl.col(TEXT).cast(pl.String).fill_null("").str.strip_chars().alias("synthetic")
    )
    joined = numbered.join(texts, on=INDEX, how="left", maintain_order="left")
    return joined.with_columns(pl.col("synthetic").fill_null("")).drop(INDEX)
