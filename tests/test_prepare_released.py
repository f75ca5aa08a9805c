"""Released negatives: joined by row number before any row is left out, decontaminated, marked; misfits are refused."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stm.errors import DataError, ParamsError
from stm.params.base import parse_section
from stm.params.prepare import FileSource, FileTask, HubSource, PrepareParams
from stm.prepare.build import prepare
from stm.prepare.embedded import Corpora
from stm.prepare.released import join_released
from stm.prepare.sources import load_source
from stm.synthesize.negatives import released_negatives

# The layout of the two public sets, with other text.
PROMPTS = ["Given a claim, find proof", "Given a term, find its definition"]
MIXTURE = pl.DataFrame(
    {
        "original prompt": [PROMPTS[i % 2] for i in range(8)],
        "query": [f"query {i}" if i != 3 else "" for i in range(8)],
        "positive": [f"positive passage number{i}" for i in range(8)],
        "negative": [f"mined passage number{i}" for i in range(8)],
    }
)
RELEASED = pl.DataFrame(
    {
        "bmretriever_index": [6, 0, 1, 2, 3, 5],
        "hard_negative": [" written 6 ", *(f"written {i}" for i in (0, 1, 2, 3, 5))],
    }
)
COLUMNS = {"anchor": "query", "positive": "positive", "negatives": "negative", "instruction": "original prompt"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def released(indices: list[object], texts: list[object]) -> pl.DataFrame:
    return pl.DataFrame({"index": indices, "text": texts})


def hub_copy(folder: Path, frame: pl.DataFrame) -> str:
    (folder / "data").mkdir(parents=True)
    frame.write_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """One source per kind that can carry released negatives."""
    negatives = {"path": hub_copy(tmp_path / "stm_gpt5_hard_negatives", RELEASED)}
    MIXTURE.write_parquet(tmp_path / "mixture.parquet")
    MIXTURE.write_ndjson(tmp_path / "mixture.jsonl")
    return {
        "hub": {
            "kind": "hub", "path": hub_copy(tmp_path / "biomed_retrieval_dataset", MIXTURE), "released": negatives,
            **COLUMNS,
        },
        "parquet": {"kind": "parquet", "path": str(tmp_path / "mixture.parquet"), "released": negatives, **COLUMNS},
        "jsonl": {"kind": "jsonl", "path": str(tmp_path / "mixture.jsonl"), "released": negatives, **COLUMNS},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["hub", "parquet", "jsonl"])
def test_each_row_gets_the_text_of_its_number(sources: dict[str, dict[str, Any]], kind: str) -> None:
    model = HubSource if kind == "hub" else FileSource
    loaded = load_source(parse_section(sources[kind], model, "x"), Corpora())
    texts = dict(loaded.frame.select("positive", "synthetic").iter_rows())
    expected = {6, 0, 1, 2, 3, 5}
    assert texts == {f"positive passage number{i}": f"written {i}" if i in expected else "" for i in range(8)}
    facts = loaded.facts["released"]
    assert facts["negatives"] == 6
    assert len(facts["sha256"]) == 64


def test_selecting_by_instruction_keeps_the_alignment(sources: dict[str, dict[str, Any]]) -> None:
    source = parse_section({**sources["hub"], "only_instructions": [PROMPTS[1]]}, HubSource, "x")
    frame = load_source(source, Corpora()).frame
    assert frame.select("positive", "synthetic").rows() == [
        ("positive passage number1", "written 1"),
        ("positive passage number3", "written 3"),
        ("positive passage number5", "written 5"),
        ("positive passage number7", ""),
    ]
    with pytest.raises(DataError, match=r"no row has the text 'Another' of only_instructions.*Given a claim"):
        load_source(source.model_copy(update={"only_instructions": [PROMPTS[1], "Another"]}), Corpora())
    assert load_source(source, Corpora()).facts["rows"] == MIXTURE.height


def test_params_refuse_what_cannot_be() -> None:
    with pytest.raises(ParamsError, match="only_instructions needs `instruction`"):
        parse_section({"kind": "parquet", "path": "x", "only_instructions": ["a"]}, FileSource, "x")
    with pytest.raises(ParamsError, match=r"no such setting: released; there are "):
        parse_section({"kind": "parquet", "path": "x", "released": {"path": "y"}}, FileTask, "x")


def prepare_params(tmp_path: Path, sources: list[dict[str, Any]]) -> PrepareParams:
    """Two splits of one mixture, and a task that holds the text of one released negative."""
    tasks = {}
    for part, queries in (("dev", ["asked before", "asked earlier"]), ("test", ["asked"])):
        path = tmp_path / f"{part}.parquet"
        pl.DataFrame({"anchor": queries, "positive": "Written 5."}).write_parquet(path)
        tasks[part] = {"own": {"kind": "parquet", "path": str(path)}}
    data = {
        "seed": 1, "splits": {f"split{i}": [source] for i, source in enumerate(sources)}, "max_pairs": 0,
        "default_instruction": "Find it", "max_negatives": 2, "warm_up_splits": ["split0"], "warm_up_pairs": 2,
        "max_overlap": 0.5, "tasks": tasks, "max_queries": 0, "max_passages": 0,
    }  # fmt: skip
    return parse_section(data, PrepareParams, "prepare")


def test_rows_carry_them_last_and_marked_without_what_a_task_holds(
    tmp_path: Path, sources: dict[str, dict[str, Any]]
) -> None:
    two = [{**sources["hub"], "only_instructions": [prompt]} for prompt in PROMPTS]
    prepared = prepare(prepare_params(tmp_path, two))
    rows = pl.concat(prepared.pairs.values()).sort("positive").select("positive", "negatives", "origins").rows()
    assert rows == [
        (f"positive passage number{i}", [f"mined passage number{i}", *([f"written {i}"] if i in (0, 1, 2, 6) else [])],
         ["given", *(["synthetic"] if i in (0, 1, 2, 6) else [])])
        for i in (0, 1, 2, 4, 5, 6, 7)
    ]  # fmt: skip
    counts = prepared.report["splits"]["split1"]["sources"]["biomed_retrieval_dataset"]["contamination"]
    assert (counts["negatives"], counts["negatives_removed"]) == (5, 1)
    texts = released_negatives(prepared.pairs["split0"])
    assert sorted(texts.values()) == ["written 0", "written 2", "written 6"]


def test_a_row_whose_negative_is_its_own_text_gets_none(tmp_path: Path, sources: dict[str, dict[str, Any]]) -> None:
    own = released([0, 1, 2], ["positive passage number0", "query 1", "mined passage number2"])
    named = own.rename({"index": "bmretriever_index", "text": "hard_negative"})
    source = {**sources["hub"], "released": {"path": hub_copy(tmp_path / "own", named)}}
    rows = prepare(prepare_params(tmp_path, [source])).pairs["split0"]
    assert released_negatives(rows) == {}


def test_without_a_release_nothing_changes(tmp_path: Path, sources: dict[str, dict[str, Any]]) -> None:
    source = {key: value for key, value in sources["hub"].items() if key != "released"}
    rows = prepare(prepare_params(tmp_path, [source])).pairs["split0"]
    assert set(rows["origins"].explode()) == {"given"}


def test_texts_are_joined_in_order() -> None:
    frame = pl.DataFrame({"anchor": ["a", "b", "c"], "synthetic": ["", "", ""]})
    joined = join_released(frame, released([2, 0], [" for c ", "for a"]))
    assert joined.rows() == [("a", "for a"), ("b", ""), ("c", "for c")]
    assert join_released(joined, released([1], [None]))["synthetic"].to_list() == ["", "", ""]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (released([0, 3], ["x", "y"]), "the index has 3, but the source has 3 rows"),
        (released([-1], ["x"]), "has -1"),
        (released([1, 1], ["x", "y"]), "duplicates"),
        (released([None, 1], ["x", "y"]), "nulls"),
        (released(["0"], ["x"]), "whole numbers"),
        (released([0], [5]), "the negative text"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(frame: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        join_released(pl.DataFrame({"anchor": ["a", "b", "c"]}), frame)


def test_a_release_without_its_columns_names_what_is_there(tmp_path: Path, sources: dict[str, dict[str, Any]]) -> None:
    path = hub_copy(tmp_path / "other", RELEASED.rename({"hard_negative": "text"}))
    source = parse_section({**sources["hub"], "released": {"path": path}}, HubSource, "x")
    with pytest.raises(DataError, match=r"has no column 'hard_negative'; its columns are bmretriever_index, text"):
        load_source(source, Corpora())
    unpinned = source.model_copy(update={"released": source.released.model_copy(update={"path": "some/release"})})
    with pytest.raises(DataError, match="'some/release' has no `revision`"):
        load_source(unpinned, Corpora())
