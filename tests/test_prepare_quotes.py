"""Quotation marks in csv files: read as Python's csv reads them, whatever polars makes of them."""

import csv
import io
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stm.prepare.files import read_pairs
from stm.prepare.hub import read_hub_columns

NAMES = {"anchor": "query", "positive": "passage"}


def read(path: Path, body: str, separator: str = ",") -> list[tuple[str, str]]:
    path.write_bytes(body.encode())
    return read_pairs(path, "csv", NAMES, separator).select("anchor", "positive").rows()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "rows",
    [
        ['a 5" pipe\tbig pipe', "second\tanswer two", "third\tanswer three"],
        ['a\tbig pipe 5"', 'second\tanswer two 6"'],
        ['what is "x" now\tbig pipe', 'second "\tanswer two'],
        ['what is ""\tbig "" pipe', '"a\ttab ""here"""\tanswer 6"'],
    ],
)
def test_a_mark_within_an_unquoted_text_is_a_mark(tmp_path: Path, rows: list[str], end: str) -> None:
    body = "".join(row + end for row in ["query\tpassage", *rows])
    wanted = list(csv.reader(io.StringIO(body, newline=""), delimiter="\t"))[1:]
    assert read(tmp_path / "x.tsv", body, "\t") == [tuple(row) for row in wanted]


@pytest.mark.parametrize("seed", range(3))
def test_marks_of_inches_in_a_long_file(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    marks = ['5"', "", ""]
    rows = [(f"q {i} {rng.choice(marks)} pipe", f"answer {i} {rng.choice(marks)} {'w ' * 20}x") for i in range(5000)]
    assert read(tmp_path / "x.csv", "query,passage\n" + "".join(f"{q},{p}\n" for q, p in rows)) == rows


cells = st.lists(st.sampled_from(["a", '"', ",", "\n", "\r\n", "\u00e9", "b"]), min_size=1, max_size=5).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=6),
    quote_all=st.booleans(),
    end=st.sampled_from(["\n", "\r\n"]),
    inch=st.booleans(),
)
def test_what_csv_writes_and_marks_that_it_would_not_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], quote_all: bool, end: str, inch: bool
) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL)
    writer.writerows([("query", "passage"), *rows])
    more = [('x 5"', "y"), ("z", 'z"')] if inch else []
    body = stream.getvalue() + "".join(f"{q},{p}{end}" for q, p in more)
    found = read(tmp_path_factory.mktemp("csv") / "x.csv", body)
    assert found == [(q.strip(), p.strip()) for q, p in [*rows, *more]]


def test_a_carriage_return_alone_is_text(tmp_path: Path) -> None:
    body = 'query,passage\na\rb 5",p\r1\n"c\rd",e\n'
    assert read(tmp_path / "x.csv", body) == [('a\rb 5"', "p\r1"), ("c\rd", "e")]


def test_numbers_beside_marks_stay_numbers(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('index,text\n3,a 5" pipe\n"4","b, c"\n')
    found = read_hub_columns(str(path), ["index", "text"], config="", split="train", revision="")
    assert found.select("index", "text").rows() == [(3, 'a 5" pipe'), (4, "b, c")]
