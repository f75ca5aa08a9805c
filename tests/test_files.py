"""The table `files`: every path of one's own that a section names is a row there, so that DVC sees it change."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.files import main
from stm.errors import ParamsError
from stm.files import read_json
from stm.params.all import Params
from stm.params.base import parse_section
from stm.params.files import FileRow, load_file_row
from tests.closure import ROOT


def params(**changes: Any) -> dict[str, Any]:
    """The shipped params with dotted keys changed."""
    data: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    for dotted, value in changes.items():
        *above, last = dotted.split("__")
        inner = data
        for key in above:
            inner = inner[key]
        inner[last] = value
    return data


JSONL = {"kind": "jsonl", "path": "my/pairs.jsonl.gz"}
RELEASED = {"kind": "hub", "path": "o/d", "revision": "main", "released": {"path": "my/negatives.parquet"}}


@pytest.mark.parametrize(
    ("changes", "where", "row"),
    [
        (
            {"backbone__source": {"kind": "folder", "path": "../llm"}},
            "backbone.source",
            "{path: ../llm, read_by: backbone}",
        ),
        (
            {"prepare__splits__nlu": [JSONL]},
            "prepare.splits.nlu",
            "pairs: {path: my/pairs.jsonl.gz, read_by: prepare}",
        ),
        ({"prepare__splits__nlu": [RELEASED]}, "prepare.splits.nlu", "{path: my/negatives.parquet, read_by: prepare}"),
        (
            {"prepare__tasks__dev__mine": {"kind": "beir", "path": "my/beir"}},
            "prepare.tasks.dev.mine",
            "beir: {path: my/beir",
        ),
        ({"mine__dense_model": "my/model"}, "mine.dense_model", "{path: my/model, read_by: mine}"),
        ({"mine__judge__cross_encoder": "my/model"}, "mine.judge.cross_encoder", "read_by: mine}"),
        ({"synthesize__validation__dense_model": "my/model"}, "synthesize.validation.dense_model", "synthesize}"),
        ({"evaluate__hub_folder": "my/mteb"}, "evaluate.hub_folder", "{path: my/mteb, read_by: evaluate}"),
    ],
)
def test_a_path_without_a_row_is_refused_with_the_row_to_add(changes: dict[str, Any], where: str, row: str) -> None:
    with pytest.raises(ParamsError) as refused:
        parse_section(params(**changes), Params, "")
    assert where in str(refused.value)
    assert row in str(refused.value)


def test_a_row_or_a_folder_above_is_enough_for_the_stage_that_it_names() -> None:
    changes = {"prepare__splits__nlu": [JSONL], "mine__dense_model": "my/model"}
    rows = {"mine": {"path": "my", "read_by": "prepare"}, "model": {"path": "my/model", "read_by": "mine"}}
    assert parse_section(params(**changes, files=rows), Params, "").files["mine"].path == "my"
    with pytest.raises(ParamsError, match=r"mine\.dense_model"):
        parse_section(params(**changes, files={"mine": rows["mine"]}), Params, "")


def test_hub_ids_need_no_row() -> None:
    changes = {"mine__dense_model": "owner/model", "mine__dense_revision": "main"}
    hub = {"kind": "hub", "path": "owner/set", "revision": "main"}
    parse_section(params(**changes, prepare__splits__nlu=[hub]), Params, "")


def test_a_neighbour_of_the_same_beginning_is_not_below() -> None:
    assert not FileRow(path="my/beir", read_by="prepare").holds("my/beir-other")


def test_the_record_follows_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("files: {notes: {path: own, read_by: prepare}}\n")
    Path("own").mkdir()
    Path("own/a.txt").write_text("one")
    main("notes")
    first = read_json("data/files/prepare/notes.json")
    Path("own/a.txt").write_text("two")
    main("notes")
    assert first["path"] == "own"
    assert read_json("data/files/prepare/notes.json")["sha256"] != first["sha256"]


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("files: {notes: {path: own.csv, read_by: prepare}}\n")
    with pytest.raises(ParamsError, match=r"files\.notes\.path: there is no own\.csv"):
        main("notes")
    with pytest.raises(ParamsError, match="no file 'other'; the table `files` has notes"):
        load_file_row("other")
