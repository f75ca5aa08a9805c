"""The table `files`: every path of one's own that a section names is a row there, so that DVC sees it change."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.files import main
from stm.errors import DataError, ParamsError
from stm.files import read_json, sha256_file, sha256_text, sha256_tree
from stm.params.all import Params
from stm.params.base import load_row, parse_section
from stm.params.complete import check_complete
from stm.params.files import FileRow
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
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RELEASED = {"kind": "hub", "path": "o/d", "revision": COMMIT, "released": {"path": "my/negatives.parquet"}}
LOCAL_COPY = {"kind": "hub", "path": "my/mteb"}


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pairs.jsonl.gz", "negatives.parquet", "beir", "model", "mteb"):
        (tmp_path / "my" / name).mkdir(parents=True)


def check(**changes: Any) -> None:
    check_complete(parse_section(params(**changes), Params, ""))


@pytest.mark.parametrize(
    ("changes", "where", "row"),
    [
        ({"backbone__source": {"kind": "folder", "path": "my/model"}}, "backbone.source.path", "read_by: backbone}"),
        (
            {"prepare__splits__nlu": [JSONL]},
            "prepare.splits.nlu.0.path",
            "`pairs: {path: my/pairs.jsonl.gz, read_by: prepare}`",
        ),
        ({"prepare__splits__nlu": [RELEASED]}, "nlu.0.released.path", "{path: my/negatives.parquet, read_by: prepare}"),
        ({"prepare__splits__nlu": [LOCAL_COPY]}, "nlu.0.path", "`mteb: {path: my/mteb, read_by: prepare}`"),
        (
            {"prepare__tasks__dev__mine": {"kind": "beir", "path": "my/beir"}},
            "prepare.tasks.dev.mine.path",
            "`beir: {path: my/beir, read_by: prepare}`",
        ),
        ({"mine__dense_model": "my/model"}, "mine.dense_model", "{path: my/model, read_by: mine}"),
        ({"mine__judge__cross_encoder": "my/model"}, "mine.judge.cross_encoder", "read_by: mine}"),
        ({"synthesize__validation__dense_model": "my/model"}, "synthesize.validation.dense_model", "synthesize}"),
        ({"evaluate__hub_folder": "my/mteb"}, "evaluate.hub_folder", "{path: my/mteb, read_by: evaluate}"),
    ],
)
def test_a_path_without_a_row_is_refused_with_the_row_to_add(changes: dict[str, Any], where: str, row: str) -> None:
    with pytest.raises(ParamsError) as refused:
        check(**changes)
    assert len(str(refused.value).splitlines()) == 2
    assert f"{where} is " in str(refused.value)
    assert row in str(refused.value)


def test_a_row_or_a_folder_above_is_enough_for_the_stage_that_it_names() -> None:
    changes = {"prepare__splits__nlu": [JSONL], "mine__dense_model": "my/model"}
    rows = {"mine": {"path": "my", "read_by": "prepare"}, "model": {"path": "my/model", "read_by": "mine"}}
    check(**changes, files=rows)
    with pytest.raises(ParamsError, match=r"mine\.dense_model"):
        check(**changes, files={"mine": rows["mine"]})


def test_a_row_of_another_stage_is_named_and_no_second_one_asked_for() -> None:
    rows = {"given": {"path": "my/pairs.jsonl.gz", "read_by": "mine"}}
    with pytest.raises(ParamsError, match=r"which prepare reads, but files\.given\.read_by is mine; set it to prepare"):
        check(prepare__splits__nlu=[JSONL], files=rows)


def test_a_path_that_two_stages_read_needs_a_row_for_each() -> None:
    changes = {"mine__dense_model": "my/model", "synthesize__validation__dense_model": "my/model"}
    rows = {"model": {"path": "my/model", "read_by": "mine"}}
    with pytest.raises(ParamsError) as refused:
        check(**changes, files=rows)
    assert "synthesize.validation.dense_model is 'my/model', which the table `files` does not have" in str(
        refused.value
    )
    row = re.search(r"for example `(.*)`$", str(refused.value))
    assert row
    check(**changes, files={**rows, **yaml.safe_load(f"{{{row[1]}}}")})


def test_the_suggested_rows_have_names_of_their_own_which_yaml_takes_for_text() -> None:
    names = ("2024.jsonl", "on.jsonl", "a/pairs.jsonl", "b/pairs.jsonl")
    sources = [{"kind": "jsonl", "path": f"my/{name}", "name": f"s{i}"} for i, name in enumerate(names)]
    tasks = {"again": {"kind": "jsonl", "path": "my/2024.jsonl"}}
    with pytest.raises(ParamsError) as refused:
        check(prepare__splits__nlu=sources, prepare__tasks__dev=tasks)
    rows = re.findall(r"for example `(.*)`$", str(refused.value), re.MULTILINE)
    assert len(rows) == 5
    named = yaml.safe_load("\n".join(dict.fromkeys(rows)))
    assert {name: row["path"] for name, row in named.items()} == dict(
        zip(("my_2024", "my_on", "pairs", "pairs_2"), (source["path"] for source in sources), strict=True)
    )


def test_hub_ids_need_no_row() -> None:
    changes = {"mine__dense_model": "owner/model", "mine__dense_revision": COMMIT}
    check(**changes, prepare__splits__nlu=[{"kind": "hub", "path": "owner/set", "revision": COMMIT}])


@pytest.mark.parametrize(
    ("model", "revision"),
    [
        ("mine__dense_model", "mine__dense_revision"),
        ("mine__judge__cross_encoder", "mine__judge__revision"),
        ("synthesize__validation__dense_model", "synthesize__validation__dense_revision"),
    ],
)
def test_a_branch_of_the_hub_is_no_commit(model: str, revision: str) -> None:
    where = revision.replace("__", r"\.")
    with pytest.raises(ParamsError, match=rf"{where} must be the commit of owner/model.*given: 'main'"):
        check(**{model: "owner/model", revision: "main"})
    with pytest.raises(ParamsError, match="which the table `files` does not have"):
        check(**{model: "my/model", revision: COMMIT})  # a folder is read where there is one, whatever the revision


def test_a_row_without_its_file_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"files\.mine\.path: there is no my/nothing; correct the path or bring"):
        check(files={"mine": {"path": "my/nothing", "read_by": "prepare"}})


def test_the_example_of_the_readme_is_complete_but_for_the_commit() -> None:
    example = re.search(r"## Your own data.*?```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example
    changes = yaml.safe_load(example[1].replace("<commit>", COMMIT))
    data = params()
    prepare = {**data["prepare"], **changes.pop("prepare")}
    Path("my/beir-folder").mkdir()
    Path("my/passages.jsonl").touch()
    check_complete(parse_section({**data, **changes, "prepare": prepare}, Params, ""))


def test_a_neighbour_of_the_same_beginning_is_not_below() -> None:
    assert not FileRow(path="my/beir", read_by="prepare").holds("my/beir-other")


def test_the_record_follows_the_content() -> None:
    Path("params.yaml").write_text("files: {notes: {path: own, read_by: prepare}}\n")
    Path("own").mkdir()
    Path("own/a.txt").write_text("one")
    main("notes")
    first = read_json("data/files/prepare/notes.json")
    Path("own/a.txt").write_text("two")
    main("notes")
    assert first["path"] == "own"
    assert read_json("data/files/prepare/notes.json")["sha256"] != first["sha256"]


def test_the_record_follows_what_lies_behind_links_and_ends_where_they_lead_back() -> None:
    Path("far/deep").mkdir(parents=True)
    Path("own").mkdir()
    Path("own/linked").symlink_to(Path("far").resolve())
    Path("far/back").symlink_to(Path("own").resolve())
    hashes = set()
    for text in ("one", "two"):
        Path("far/deep/a.txt").write_text(text)
        hashes.add(sha256_tree("own"))
    assert len(hashes) == 2


def test_the_hash_of_a_folder_without_links_stays_what_records_hold() -> None:
    Path("own/a").mkdir(parents=True)
    for name in ("own/a/x", "own/a.b", "own/.hidden", "own/a/y"):
        Path(name).write_text(name)
    files = sorted(path for path in Path("own").rglob("*") if path.is_file())
    lines = [f"{path.relative_to('own').as_posix()}:{sha256_file(path)}" for path in files]
    assert sha256_tree("own") == sha256_text(*lines)


def test_what_is_not_there_is_named() -> None:
    Path("params.yaml").write_text("files: {notes: {path: own.csv, read_by: prepare}}\n")
    with pytest.raises(DataError, match=r"files\.notes\.path: there is no own\.csv"):
        main("notes")
    with pytest.raises(ParamsError, match="no row 'other' in its table `files`; it has notes"):
        load_row("files", "other", FileRow)
