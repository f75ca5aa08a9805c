"""The Parquet form in which stored answers travel: its columns, and its rows read piece by piece.

A row is an answer, or a request that the endpoint refused. Does not know the store.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from stm.errors import DataError
from stm.llm.answers import request_key

COLUMNS: pl.Schema = pl.Schema(
    {
        "key": pl.String,
        "request": pl.String,  # canonical JSON
        "text": pl.String,
        "finish_reason": pl.String,
        "tokens_in": pl.Int64,
        "tokens_out": pl.Int64,
    }
)
ARROW = pa.schema([(name, pa.int64() if kind == pl.Int64 else pa.string()) for name, kind in COLUMNS.items()])
REFUSED = "request_refused"  # the finish_reason of a request that the endpoint refused; its text says why
ROW_GROUP = 10_000  # rows of a file that are in memory at once


def read_answers(path: Path | str) -> Iterator[pl.DataFrame]:
    """The rows of an exported file, `ROW_GROUP` at a time; `DataError` for another form or a key of another request."""
    wrong = f"{path} holds no exported answers; expected the columns {list(COLUMNS)} without nulls"
    try:
        if dict(pl.read_parquet_schema(path)) != dict(COLUMNS):
            raise DataError(wrong)
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROW_GROUP):
                frame = pl.DataFrame(pa.Table.from_batches([batch]))
                if any(frame.null_count().row(0)):
                    raise DataError(wrong)
                for key, canonical in frame.select("key", "request").iter_rows():
                    if key != request_key(canonical):
                        raise DataError(
                            f"{path}: the key {key[:12]}... is not that of its request; export the answers again"
                        )
                yield frame.select(list(COLUMNS))
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise DataError(f"cannot read the answers in {path}: {error}; export them again") from error
