"""Released negatives join by position, and a file that does not fit is refused."""

import polars as pl
import pytest

from stm.errors import DataError
from stm.synthesize.released import join_released

MIXTURE = pl.DataFrame({"query": ["a", "b", "c"], "positive": ["A", "B", "C"]})


def released(indices: list[object], texts: list[object]) -> pl.DataFrame:
    return pl.DataFrame({"bmretriever_index": indices, "hard_negative": texts})


def test_texts_go_to_the_row_of_their_position() -> None:
    joined = join_released(MIXTURE, released([2, 0], [" for c ", "for a"]))
    assert joined.columns == ["query", "positive", "hard_negative"]
    assert joined.rows() == [("a", "A", "for a"), ("b", "B", ""), ("c", "C", "for c")]
    assert join_released(joined, released([1], [None]))["hard_negative"].to_list() == ["", "", ""]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (released([0, 3], ["x", "y"]), "the mixture has 3 rows"),
        (released([-1], ["x"]), "has -1"),
        (released([1, 1], ["x", "y"]), "duplicates"),
        (released([None, 1], ["x", "y"]), "nulls"),
        (released(["0"], ["x"]), "whole numbers"),
        (pl.DataFrame({"hard_negative": ["x"]}), "bmretriever_index"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        join_released(MIXTURE, frame)
