"""Names that stand for rows of other tables, which `check` refuses where there is no such row."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from stm.errors import ParamsError
from stm.params.all import Params
from stm.params.base import parse_section
from stm.params.complete import check_complete, find_leftovers, find_unread
from tests.test_files import COMMIT, params

INTERACTION = {"experts": ["nlu", "nobody"], "step": 0.1, "source": "surrogate"}
WRONG = [
    ({"merge__weights": {"nobody": 1.0}, "merge__method": "linear"}, "merge.weights names 'nobody'; there are"),
    ({"merge__weights": {"all": 1.0}}, "merge.weights names 'all'; there are"),
    ({"merge__interaction": INTERACTION}, "merge.interaction.experts names 'nobody'; there are med_real"),
    ({"merge__tasks": ["med-hpo"]}, "merge.tasks names 'med-hpo'; there are med-hpo-lay"),
    ({"select__tasks": ["x"]}, "select.tasks names 'x'"),
    ({"search_prompts__tasks": ["x"]}, "search_prompts.tasks names 'x'"),
    ({"promote__model": "mergd"}, "promote.model names 'mergd'; there are base, warm_up"),
    (
        {"promote__model": "base"},
        "promote.model is 'base', whose path is 'models/backbone', but only a row of models with the path "
        "models/merged can be promoted; name merged",
    ),
    ({"models__merged__path": "models/warm_up"}, "promoted; add a row `merged: {path: models/merged, role: merged}`"),
    ({"report__subject": "mergd"}, "report.subject names 'mergd'"),
    (
        {"models__v1.5": {"path": "models/backbone"}},
        "models has a row 'v1.5', but DVC takes a dot for a path into the row; call it 'v1_5'",
    ),
    ({"outside__bge-v1.5": {"id": "a/b", "revision": COMMIT}}, "outside has a row 'bge-v1.5'"),
    ({"files__notes.txt": {"path": ".", "read_by": "prepare"}}, "files has a row 'notes.txt'"),
    (
        {"promote__gates__comparisons__base__against": ["bsae"]},
        "promote.gates.comparisons.base.against has 'bsae', which is no role",
    ),
    ({"models__med_real__path": "models/selected/medreal"}, "models.med_real.path is 'models/selected/medreal'"),
    ({"models__other": {"path": "my/nothing"}}, "models.other.path: there is no my/nothing"),
    ({"prepare__tasks__dev__med-foo": {"kind": "embedded"}}, "prepare.tasks.dev.med-foo is no embedded task"),
    ({"mine__dense_model": "owner/model"}, "mine.dense_model: there is no folder owner/model; correct the path or"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_name_that_stands_for_nothing_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError) as refused:
        check_complete(parse_section(params(**changes), Params, ""))
    assert len(str(refused.value).splitlines()) == 2
    assert message in str(refused.value)


def test_an_expert_that_no_gate_would_see_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = params()
    del values["models"]["nlu"]
    with pytest.raises(ParamsError, match=r"add `nlu: \{path: models/selected/nlu, role: expert\}`"):
        check_complete(parse_section(values, Params, ""))
    values["promote"]["gates"]["comparisons"]["best_expert"]["against"] = ["base"]
    check_complete(parse_section(values, Params, ""))


def test_names_patterns_and_folders_that_are_there_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("my/model", "models/seed-2"):
        Path(folder).mkdir(parents=True)
    check_complete(
        parse_section(
            params(
                models__other={"path": "my/model"}, models__one={"path": "models/experts/nlu-ft"},
                models__two={"path": "models/seed-2"}, models__best={"path": "./models/merged"}, promote__model="best",
                promote__gates__comparisons__base__against=["med_*", "outside", "all_data", "@champion", "bm25"],
                report__subject="other", merge__tasks=["gen-wiki"], merge__with_baseline=True,
                merge__weights={"all": 1.0},
            ),
            Params, "",
        )
    )  # fmt: skip


def test_a_split_and_the_baseline_cannot_be_merged_under_one_name() -> None:
    values = yaml.safe_load(yaml.safe_dump(params()).replace("nlu", "all"))
    parse_section(values, Params, "")
    values["merge"]["with_baseline"] = True
    with pytest.raises(ParamsError, match="a split is called 'all', as the baseline is"):
        parse_section(values, Params, "")


def test_what_a_former_row_left_in_a_folder_that_is_hashed_as_a_whole_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known = parse_section(params(), Params, "")
    for folder in (*(f"models/experts/{name}" for name in (*known.experts, "all")), "data/mined"):
        Path(folder).mkdir(parents=True)
    for name in (*(f"{split}.parquet" for split in known.splits), ".gitignore"):
        (Path("data/mined") / name).touch()
    assert find_leftovers(known) == []
    Path("models/experts/former-ft").mkdir()
    Path("data/mined/former.parquet").touch()
    for name in ("former.json", "pairs.json", ".gitignore"):
        path = Path("data/files/prepare") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    rows = {"pairs": {"path": "my/pairs.jsonl", "read_by": "prepare"}}
    known = parse_section({**params(), "files": rows}, Params, "")
    former = ["data/mined/former.parquet", "models/experts/former-ft", "data/files/prepare/former.json"]
    assert find_leftovers(known) == former


def test_what_an_llm_is_asked_for_and_no_expert_is_trained_with_is_named() -> None:
    given = params()
    assert find_unread(parse_section(given, Params, "")) == []
    split = given["splits"][0]
    alone = {name: row for name, row in given["experts"].items() if name.endswith("-ft")}
    lists = {"synthesize_splits": [split], "search_prompts_splits": [split]}
    models = {name: row for name, row in given["models"].items() if row["role"] != "expert"}
    found = find_unread(parse_section({**given, **lists, "experts": alone, "models": models}, Params, ""))
    assert [line.split(" names ")[0] for line in found] == ["synthesize_splits", "search_prompts_splits"]
    assert f"`{split}-shn: {{split: {split}, negatives: synthetic, instruction: seed}}`" in found[0]
    assert f"`{split}-po: {{split: {split}, negatives: mined, instruction: searched}}`" in found[1]
