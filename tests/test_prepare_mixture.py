"""A mixture cut into splits by its instructions: rows of no split are named, and so are the texts that there are."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from stm.errors import DataError, ParamsError
from stm.params.all import Params
from stm.params.base import parse_section
from stm.params.complete import check_complete
from stm.params.prepare import FileSource, PrepareParams
from stm.prepare.build import prepare
from stm.prepare.embedded import Corpora
from stm.prepare.mixture import MOST_CHARS, MOST_TEXTS, describe_texts, find_left_out, shorten_texts
from stm.prepare.sources import load_source
from tests.closure import ROOT

PROMPTS = ["claims", "terms", "questions"]
ROWS = [(PROMPTS[i % 3] if i < 9 else "", f"query {i}", f"passage number{i}") for i in range(10)]
COLUMNS = {"anchor": "query", "positive": "positive", "instruction": "prompt"}


@pytest.fixture
def mixture(tmp_path: Path) -> str:
    """Three rows of each prompt, and one without."""
    pl.DataFrame(ROWS, schema=["prompt", "query", "positive"], orient="row").write_parquet(tmp_path / "mix.parquet")
    return str(tmp_path / "mix.parquet")


def source(path: str, *texts: str) -> dict[str, Any]:
    return {"kind": "parquet", "path": path, **COLUMNS, "only_instructions": list(texts)}


def params_of(folder: Path, *sources: dict[str, Any], dev: int = 2, shared: int = 0, **changes: Any) -> PrepareParams:
    """A split per source, `dev` queries that dev asks alone, and `shared` ones that test asks as well."""
    both = [f"both {i}" for i in range(shared)]
    tasks = {}
    for part, queries in (("dev", [f"dev {i}" for i in range(dev)]), ("test", ["test"])):
        path = folder / f"{part}.parquet"
        pl.DataFrame({"anchor": [*queries, *both], "positive": "What a task holds."}).write_parquet(path)
        tasks[part] = {"own": {"kind": "parquet", "path": str(path)}}
    data = {
        "seed": 1, "splits": {f"split{i}": [each] for i, each in enumerate(sources)}, "max_pairs": 0,
        "default_instruction": "Find it", "max_negatives": 2, "warm_up_splits": ["split0"], "warm_up_pairs": 2,
        "max_overlap": 0.5, "tasks": tasks, "max_queries": 0, "max_passages": 0, **changes,
    }  # fmt: skip
    return parse_section(data, PrepareParams, "prepare")


def test_rows_that_no_split_takes_are_said_once_and_reported(
    tmp_path: Path, mixture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(params_of(tmp_path, source(mixture, "claims"), source(mixture, "terms")))
    line = f"prepare: 4 rows of {mixture} are in no split: 'questions' (3), '' (1)"
    assert capsys.readouterr().err.splitlines().count(line) == 1
    assert prepared.report["left_out"] == [
        {"path": mixture, "instruction": "prompt", "rows": 4, "texts": {"questions": 3, "": 1}}
    ]


@pytest.mark.parametrize("last", [[], ["terms", "questions"]])
def test_nothing_is_said_of_rows_that_some_split_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], last: list[str]
) -> None:
    path = tmp_path / "mix.parquet"
    pl.DataFrame(ROWS[:9], schema=["prompt", "query", "positive"], orient="row").write_parquet(path)
    prepared = prepare(params_of(tmp_path, source(str(path), "claims"), source(str(path), *last)))
    assert "no split" not in capsys.readouterr().err
    assert prepared.report["left_out"] == []


def test_two_mixtures_are_told_apart() -> None:
    one, two = (parse_section(source(path, "claims"), FileSource, "x") for path in ("a.parquet", "b.parquet"))
    found = find_left_out([(one, {"x": 1, "y": 2}), (two, {"x": 5}), (one, {"y": 2, "z": 1})])
    assert found == [
        ({"path": "a.parquet", "instruction": "prompt"}, {"y": 2}),
        ({"path": "b.parquet", "instruction": "prompt"}, {"x": 5}),
    ]


def test_a_text_that_no_row_has_is_refused_with_those_that_there_are(mixture: str) -> None:
    with pytest.raises(DataError) as caught:
        load_source(parse_section(source(mixture, "claims", "claim"), FileSource, "x"), Corpora())
    assert str(caught.value) == (
        f"{mixture}: no row has the text 'claim' of only_instructions in 'prompt'; the texts there, with their rows, "
        "are 'claims' (3), 'terms' (3), 'questions' (3), '' (1)"
    )


def test_many_and_long_texts_are_shown_in_part() -> None:
    counts = {f"text {i}": 1 for i in range(MOST_TEXTS + 9)} | {"long" * MOST_CHARS: 2, "often": 7}
    shown = describe_texts(counts)
    assert shown.startswith(f"'often' (7), '{'long' * (MOST_CHARS // 4)}...' (2), 'text 0' (1), ")
    assert shown.endswith(f"'text {MOST_TEXTS - 3}' (1), and others (11)")
    assert len(shorten_texts(counts)) == MOST_TEXTS


def test_a_dev_task_of_one_query_is_refused_before_anything_is_trained(tmp_path: Path, mixture: str) -> None:
    def refuse(**changes: Any) -> str:
        with pytest.raises(DataError) as caught:
            prepare(params_of(tmp_path, source(mixture, "claims"), **changes))
        return str(caught.value)

    start = "prepare.tasks: the dev task 'own' has one judged query"
    other = "dev needs at least two, so give it more, for instance those of another split"
    assert refuse(dev=1) == f"{start}; {other}"
    assert refuse(dev=1, shared=3) == f"{start}, beside 3 that a test task asks as well; {other}"
    assert refuse(max_queries=1) == f"{start}; dev needs at least two, so raise prepare.max_queries"


def check(first: dict[str, Any], second: dict[str, Any]) -> None:
    """`check_complete` on the shipped params with two splits of one source each."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    nlu, search = ({"name": name, **each} for name, each in (("one", first), ("two", second)))
    values["prepare"]["splits"] |= {"nlu": [nlu], "search": [search]}
    values["files"] = {"mix": {"path": first["path"], "read_by": "prepare"}}
    check_complete(parse_section(values, Params, ""))


def test_a_file_whose_rows_two_splits_take_is_refused(mixture: str) -> None:
    message = f"the splits 'search' and 'nlu' take the same rows of {mixture}; name the texts of the instruction column"
    for first, second in (([], []), (["claims"], []), (["claims", "terms"], ["terms"])):
        with pytest.raises(ParamsError, match=message):
            check(source(mixture, *first), source(mixture, *second))


def test_splits_of_other_rows_or_other_columns_of_a_file_pass(mixture: str) -> None:
    check(source(mixture, "claims"), source(mixture, "terms"))
    check(source(mixture), {**source(mixture), "anchor": "title"})
