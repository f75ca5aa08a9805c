"""The one form of training rows: pairs as `prepare` writes them, triplets as `mine` and `synthesize` do.

Every reader and writer of pair files goes through here; a file of another form is an error at the door that names the
file, the column and the row. Does not know where rows come from or what they are used for.
"""

from pathlib import Path

import polars as pl

from stm.errors import DataError
from stm.files import atomic_file

ROWS = pl.Schema({
    "id": pl.String(),  # unique within the file
    "anchor": pl.String(),  # the query, without instruction
    "positive": pl.String(),  # a passage that answers it
    "negatives": pl.List(pl.String),  # hard negatives in rank order, the hardest first; may be empty
    "origins": pl.List(pl.String),  # where each negative comes from: given, bm25, dense, synthetic
    "instruction": pl.String(),  # the row's own retrieval instruction; may be empty
    "source": pl.String(),  # the source row that made it
    "concept": pl.String(),  # rows of one concept are never each other's negatives; empty if unknown
    "answers": pl.List(pl.UInt64),  # fingerprints of the file's texts that answer the query, if more are known
})  # fmt: skip


def _fail_row(frame: pl.DataFrame, bad: pl.Expr, where: str, message: str) -> None:
    rows = frame.with_row_index("row").filter(bad)
    if rows.height:
        raise DataError(f"{where}: {message} in {rows.height} row(s), first at row {rows['row'][0]} (counted from 0)")


def check_rows(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return `frame` with the columns in order, or raise `DataError` naming file, column and row."""
    missing, extra = sorted(set(ROWS) - set(frame.columns)), sorted(set(frame.columns) - set(ROWS))
    if missing or extra:
        raise DataError(f"{where}: missing columns {missing}, unknown columns {extra}; expected {list(ROWS)}")
    frame = frame.select(list(ROWS))
    for name, kind in ROWS.items():
        if frame.schema[name] != kind:
            raise DataError(f"{where}: column {name!r} has type {frame.schema[name]}; expected {kind}")
        _fail_row(frame, pl.col(name).is_null(), where, f"column {name!r} is null")
    for name in ("id", "anchor", "positive"):
        _fail_row(frame, pl.col(name).str.strip_chars() == "", where, f"column {name!r} is empty")
    _fail_row(frame, pl.col("id").is_duplicated(), where, "column 'id' has duplicates")
    _fail_row(frame, pl.col("negatives").list.eval(pl.element().is_null()).list.any(), where, "a negative is null")
    lengths_differ = pl.col("negatives").list.len() != pl.col("origins").list.len()
    _fail_row(frame, lengths_differ, where, "columns 'negatives' and 'origins' differ in length")
    return frame


def read_rows(path: Path | str) -> pl.DataFrame:
    """Read a Parquet file of rows; `DataError` if it is missing, broken or of another form."""
    try:
        frame = pl.read_parquet(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; run `dvc repro` to make it") from error
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    return check_rows(frame, str(path))


def write_rows(frame: pl.DataFrame, path: Path | str) -> None:
    """Check and write rows as Parquet, whole or not at all; an empty frame is a `DataError`."""
    if frame.is_empty():
        raise DataError(f"{path} would hold no rows; check the sources and filters of this split in params.yaml")
    with atomic_file(path) as scratch:
        check_rows(frame, str(path)).write_parquet(scratch, compression="zstd")


def explode_negatives(rows: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """A line per negative: the row's `id` and `columns`, the text in `negatives`, where it is from in `origins`."""
    long = rows.select("id", *columns, "negatives", "origins")
    return long.explode("negatives", "origins", empty_as_null=True).drop_nulls("negatives")


def replace_negatives(rows: pl.DataFrame, long: pl.DataFrame) -> pl.DataFrame:
    """The rows with the negatives and origins of `long`, lines as of `explode_negatives`, and no others."""
    lists = long.group_by("id", maintain_order=True).agg("negatives", "origins")
    joined = rows.drop("negatives", "origins").join(lists, on="id", how="left", maintain_order="left")
    return joined.with_columns(pl.col("negatives", "origins").fill_null([])).select(rows.columns)
