"""Hard negatives that somebody released for a public mixture, joined to its rows by position.

The form is that of `ikim-uk-essen/stm_gpt5_hard_negatives`: `bmretriever_index` counts the rows of
`BMRetriever/biomed_retrieval_dataset` from 0, `hard_negative` is the text. Knows nothing of where the files come from.
"""

import polars as pl

from stm.errors import DataError

INDEX, TEXT = "bmretriever_index", "hard_negative"


def join_released(mixture: pl.DataFrame, released: pl.DataFrame, where: str = "released negatives") -> pl.DataFrame:
    """Return the mixture, in order, with a column `hard_negative`; empty where nothing was released for a row.

    `DataError` for missing columns, positions that are given twice or that the mixture does not have: a file that fits
    another version of the mixture would silently pair every query with a stranger's negative.
    """
    missing = [name for name in (INDEX, TEXT) if name not in released.columns]
    if missing:
        raise DataError(f"{where}: missing columns {missing}; expected {INDEX} and {TEXT}")
    if not released.schema[INDEX].is_integer() or released.schema[TEXT] not in (pl.String, pl.Null):
        raise DataError(f"{where}: {INDEX} must hold whole numbers and {TEXT} text; found {dict(released.schema)}")
    positions = released[INDEX]
    if positions.null_count() or positions.is_duplicated().any():
        raise DataError(f"{where}: {INDEX} has nulls or duplicates; each row of the mixture may have one negative")
    outside = released.filter(~pl.col(INDEX).is_between(0, mixture.height - 1))
    if outside.height:
        raise DataError(
            f"{where}: {INDEX} has {outside[INDEX][0]}, but the mixture has {mixture.height} rows; use the revision "
            "of the mixture that the negatives were made for"
        )
    numbered = mixture.drop(TEXT, strict=False).with_row_index(INDEX).with_columns(pl.col(INDEX).cast(pl.Int64))
    texts = released.select(pl.col(INDEX).cast(pl.Int64), pl.col(TEXT).cast(pl.String).fill_null("").str.strip_chars())
    joined = numbered.join(texts, on=INDEX, how="left", maintain_order="left")
    return joined.with_columns(pl.col(TEXT).fill_null("")).drop(INDEX)
