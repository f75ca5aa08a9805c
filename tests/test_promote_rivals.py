"""The scores that a model is compared with: they count only for the files that they were taken of."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stm.errors import DataError
from stm.files import sha256_tree, write_json
from stm.model_hash import hash_model
from stm.promote import candidate
from stm.promote.candidate import read_candidate
from stm.promote.promotion import preview
from tests.registry_project import evaluation, pico, promote_params, write_project

FOLDERS = {
    "base": ("base", "models/backbone"), "med_real-ft": ("expert", "models/selected/med_real"),
    "nlu-ft": ("expert", "models/selected/nlu"), "all": ("all_data", "models/baselines/all"),
}  # fmt: skip
REFUSAL = r"evaluation/{}\.json is of another model than .*{} \(hash .*; .*`dvc repro evaluate`"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose rivals have folders: the backbone, and adapters of the warm-up; the evaluations are of them."""
    root = write_project(tmp_path)
    for name in ("backbone", "warm_up"):
        shutil.copytree(pico(1), root / "models" / name)
    monkeypatch.chdir(root)  # adapters name their base from there
    for name, (role, path) in FOLDERS.items():
        if role != "base":
            write_json(Path(path, "adapter_config.json"), {"base_model_name_or_path": "models/warm_up"})
            Path(path, "adapter_model.safetensors").write_text(name)
        report = {**evaluation(name, role, 0.4), "path": path, "hashes": {"model": hash_model(Path(path))}}
        write_json(Path("reports", "evaluation", f"{name}.json"), report)
    return root


def read(root: Path, **changes: Any) -> candidate.Candidate:
    return read_candidate(root, promote_params(root, **changes))


def test_scores_of_the_files_that_are_here_are_taken_from_any_folder(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert {other.name for other in read(project).others} >= set(FOLDERS)


@pytest.mark.parametrize("name", FOLDERS)
def test_scores_of_a_rival_that_was_made_anew_are_refused(project: Path, name: str) -> None:
    path = FOLDERS[name][1]
    (project / path / "new").touch()
    for ask in (read, lambda root: preview(promote_params(root), root=root)):
        with pytest.raises(DataError, match=REFUSAL.format(name, path)):
            ask(project)


def test_scores_of_an_adapter_whose_base_was_made_anew_are_refused(project: Path) -> None:
    (project / "models" / "warm_up" / "new").touch()
    with pytest.raises(DataError, match=REFUSAL.format("all", "models/baselines/all")):
        read(project)


def test_a_model_that_enters_no_gate_may_have_any_scores(project: Path) -> None:
    (project / "models" / "baselines" / "all" / "new").touch()
    gates = promote_params(project).gates.model_dump()
    del gates["comparisons"]["all_data"]
    assert "all" in {other.name for other in read(project, gates=gates).others}


def test_a_prompt_of_the_params_is_no_other_model(project: Path) -> None:
    path = project / "reports" / "evaluation" / "all.json"
    write_json(path, {**json.loads(path.read_text()), "prompts": {"query": "another: ", "document": ""}})
    assert read(project).others


@pytest.mark.parametrize("gone", ["models/baselines", "models/warm_up", "models/selected/nlu"])
def test_a_folder_that_is_not_here_contradicts_no_scores(project: Path, gone: str) -> None:
    """A clone that pulled the merged model alone, or adapters without their base."""
    shutil.rmtree(project / gone)
    assert {other.name for other in read(project).others} >= set(FOLDERS)


def test_a_model_of_the_hub_has_no_folder(project: Path) -> None:
    report = {**evaluation("minilm", "expert", 0.4), "path": "owner/minilm@0123456789ab", "hashes": {"model": "x"}}
    write_json(project / "reports" / "evaluation" / "minilm.json", report)
    assert "minilm" in {other.name for other in read(project).others}


def locked(read: str, made: str | None) -> Mapping[str, Any]:
    """A dvc.lock by which all.json is of the state `read` of a folder that was last made as `made`."""
    path = "models/baselines/all"
    outs = [{"path": path, "md5": made}] if made else []
    return {"select": {"outs": outs}, "evaluate@all": {"deps": [{"path": path, "md5": read}]}}


@pytest.mark.parametrize(("stages", "is_refused"), [(locked("a", "b"), True), (locked("a", "a"), False)])
def test_of_a_folder_that_is_not_here_the_lock_file_tells(
    project: Path, stages: Mapping[str, Any], is_refused: bool
) -> None:
    shutil.rmtree(project / "models" / "baselines")
    (project / "dvc.lock").write_text(json.dumps({"stages": stages}))
    if is_refused:
        with pytest.raises(
            DataError, match=r"all\.json is of another model than the models/baselines/all of dvc\.lock"
        ):
            read(project)
    else:
        assert read(project).others


@pytest.mark.parametrize("stages", [{}, locked("a", None), {"select": locked("a", "b")["select"]}])
def test_what_the_lock_file_does_not_name_contradicts_nothing(project: Path, stages: Mapping[str, Any]) -> None:
    shutil.rmtree(project / "models" / "baselines")
    (project / "dvc.lock").write_text(json.dumps({"stages": stages}))
    assert read(project).others


def test_each_folder_is_hashed_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.relative_to(project).as_posix())
        return sha256_tree(path)

    monkeypatch.setattr(candidate, "sha256_tree", count)
    read(project)
    assert sorted(hashed) == sorted(["models/merged", "models/warm_up", *(path for _, path in FOLDERS.values())])
