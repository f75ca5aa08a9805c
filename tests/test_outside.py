"""Models of the hub by id: from a cache that the test lays out as the hub's client does, and where there is no hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils._paths import filter_repo_objects

import stages.evaluate
import stages.outside
from stm.stage import guard
from stm import hub_models
from stm.errors import ModelError, ParamsError
from stm.files import read_json, sha256_tree
from stm.hub_models import FETCHED, LEFT, UnreachableError, find_model
from stm.models import RETRIEVER, load_model
from stm.params.all import load_params
from stm.params.base import load_row, read_params
from stm.params.evaluate import OutsideEntry
from stm.promote.evidence import read_evaluations
from stm.prompts import own_prompts
from stm.report.build import build_report
from stm.report.collect import collect
from stm.tasks import write_task
from stm.text_encoder import Floats
from tests.closure import ROOT
from tests.pico import pico_backbone
from tests.report_samples import params as report_params
from tests.test_evaluate import make_task

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and an address at which no hub answers; the hub's client does not wait before it tries again."""
    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_backbone(tmp_path_factory.mktemp("pico") / "backbone")


def fill(cache: Path, folder: Path) -> Path:
    """The folder in the cache as `own/pico`: blobs, and a snapshot of links to them."""
    snapshot = cache / "models--own--pico" / "snapshots" / COMMIT
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        target = snapshot / file.relative_to(folder)
        blob = cache / "models--own--pico" / "blobs" / file.relative_to(folder).as_posix().replace("/", "-")
        for path in (target, blob):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        target.symlink_to(blob)
    return snapshot


@pytest.fixture
def project(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_task(make_task(), Path("data/tasks/test/organs"), "test")
    params = {
        "evaluate": {"batch_tokens": 0, "store_megabytes": 5, "slice_queries": 2},
        "models": {"near": {"path": str(folder), "role": "outside", "label": "Near"}},
        "outside": {"far": {"id": "own/pico", "revision": COMMIT, "label": "Far", "group": "pico"}},
    }
    Path("params.yaml").write_text(json.dumps(params))
    return tmp_path


def test_a_cached_model_scores_as_its_folder_does_in_the_same_table(
    cache: Path, folder: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(cache, folder)
    stages.evaluate.main("near")
    stages.outside.main("far")
    near, far = (read_json(Path(f"reports/evaluation/{name}.json")) for name in ("near", "far"))
    assert far["tasks"]["organs"]["per_query"] == near["tasks"]["organs"]["per_query"]
    assert (far["role"], far["label"], far["group"]) == ("outside", "Far", "pico")
    assert far["path"] == f"own/pico@{COMMIT[:12]}"
    assert far["hashes"]["model"] == near["hashes"]["model"] == sha256_tree(folder)
    assert far["prompts"] == near["prompts"] == {"query": "Find it\nQuery: ", "document": ""}
    assert Path("reports/evaluation/mteb/far/organs.json").exists()
    built = build_report(collect("reports"), {}, report_params(subject="near", resamples=100))
    assert set(built.metrics["models"]) == {"near", "far"}
    assert "outside far: own/pico at 0123456789ab" in capsys.readouterr().err


def test_a_model_out_of_reach_is_said_not_to_have_run(
    cache: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.evaluate.main("near")
    assert guard(lambda: stages.outside.main("far")) == 0
    report = read_json(Path("reports/evaluation/far.json"))
    assert report["tasks"] == {}
    assert "does not answer" in report["not_run"]
    assert "dvc repro -f -s outside@far" in report["not_run"]
    assert "not run" in Path("reports/evaluation/mteb/far/not_run.txt").read_text()
    assert "outside far: not run" in capsys.readouterr().err
    built = build_report(collect("reports"), {}, report_params(subject="near", resamples=100))
    assert "far is not in the table: not run" in built.page
    found = read_evaluations(Path("reports/evaluation"))
    assert {name: bool(evaluation.tasks) for name, evaluation in found.items()} == {"far": False, "near": True}


def test_prompts_of_the_row_win_over_the_models_own(
    cache: Path, folder: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(cache, folder)
    params = read_params()
    params["outside"]["far"] |= {"query_prompt": "query: ", "passage_prompt": "passage: "}
    params["evaluate"] |= {"store_megabytes": 0, "slice_queries": 0}
    Path("params.yaml").write_text(json.dumps(params))
    asked: list[str] = []

    def encode(self: Any, texts: list[str], prompt: str = "", description: str = "") -> Floats:
        asked.append(prompt)
        return encoded(self, texts, prompt, description)

    from stm.encode import Encoder

    encoded = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", encode)
    stages.outside.main("far")
    assert sorted(asked) == ["passage: ", "query: "]


def test_own_prompts_are_those_that_sentence_transformers_takes() -> None:
    assert own_prompts({"query": "q: ", "passage": "p: "}) == {"query": "q: ", "document": "p: "}
    assert own_prompts({"query": None, "document": "", "passage": "p: "}) == {"query": "", "document": ""}
    assert own_prompts({"corpus": "c: "}) == {"query": "", "document": "c: "}


def test_the_cache_comes_first_and_the_hub_is_asked_only_for_what_it_lacks(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnreachableError, match="cache lacks own/pico at 0123456789ab"):
        find_model("own/pico", COMMIT, *RETRIEVER)
    snapshot = fill(cache, folder)
    assert find_model("own/pico", COMMIT, *RETRIEVER).resolve() == snapshot.resolve()
    monkeypatch.setattr(hub_models, "is_hub_reachable", lambda: True)
    with pytest.raises(UnreachableError, match="own/other at 0123456789ab cannot be fetched"):
        find_model("own/other", COMMIT, *RETRIEVER)  # the address does not answer after all


@pytest.mark.parametrize(
    ("lost", "shards", "missing"),
    [
        ("modules.json", 0, "modules.json or adapter_config.json"), ("model.safetensors", 0, r"\*.safetensors"),
        ("model.safetensors", 1, r"\*.safetensors"), ("model.safetensors", 2, ""),
    ],
)  # fmt: skip
def test_a_part_of_a_model_in_the_cache_is_not_taken_for_the_whole(
    cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, lost: str, shards: int, missing: str
) -> None:
    snapshot = fill(cache, folder)
    weights = next(snapshot.rglob("model.safetensors"))
    for shard in range(1, shards + 1):
        shutil.copyfile(weights, weights.with_name(f"model-0000{shard}-of-00002.safetensors"))
    next(snapshot.rglob(lost)).unlink()
    (snapshot / "2_Dense").mkdir()
    (snapshot / "2_Dense" / "model.safetensors").touch()  # the weights of a later module are not the model's
    if not missing:
        assert find_model("own/pico", COMMIT, *RETRIEVER).resolve() == snapshot.resolve()
        return
    with pytest.raises(UnreachableError, match=f"its cache lacks {missing} of own/pico at 0123456789ab"):
        find_model("own/pico", COMMIT, *RETRIEVER)
    asked: list[bool] = []

    def download(*_: Any, local_files_only: bool, **__: Any) -> str:
        asked.append(local_files_only)
        return str(snapshot if local_files_only or not answers else folder)

    monkeypatch.setattr(hub_models, "is_hub_reachable", lambda: True)
    monkeypatch.setattr(hub_models, "snapshot_download", download)
    answers = True
    assert find_model("own/pico", COMMIT, *RETRIEVER) == folder
    assert asked == [True, False]
    answers = False  # the hub falls silent between the two, and the client gives what its cache has
    with pytest.raises(UnreachableError, match=f"own/pico at 0123456789ab has no {missing}, or the hub stopped"):
        find_model("own/pico", COMMIT, *RETRIEVER)


def test_what_the_hub_refuses_is_the_users_to_mend(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Response:
        status_code, headers, request = 404, {}, None

    def download(*_: Any, local_files_only: bool, **__: Any) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        raise RepositoryNotFoundError("404: no such repository", response=Response())  # type: ignore[arg-type]

    monkeypatch.setattr(hub_models, "is_hub_reachable", lambda: True)
    monkeypatch.setattr(hub_models, "snapshot_download", download)
    with pytest.raises(ModelError, match=r"the hub has no model 'own/none'.*check id and revision"):
        find_model("own/none", COMMIT, *RETRIEVER)


def test_neither_pickles_nor_code_are_fetched() -> None:
    files = ["model.safetensors", "pytorch_model.bin", "modeling.py", "1_Pooling/config.json", "onnx/model.onnx",
             "onnx/config.json", "tokenizer.json", "vocab.txt", "spiece.model", "rust_model.ot"]  # fmt: skip
    kept = list(filter_repo_objects(files, allow_patterns=FETCHED, ignore_patterns=LEFT))
    assert kept == ["model.safetensors", "1_Pooling/config.json", "tokenizer.json", "vocab.txt", "spiece.model"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "own/pico", "revision": "main"}, r"outside\.far\.revision"),
        ({"id": "pico", "revision": COMMIT}, r"outside\.far\.id"),
        ({"id": "own/pico"}, r"outside\.far\.revision"),
        ({"id": "own/pico", "revision": COMMIT, "path": "x"}, r"outside\.far: no such setting: path;"),
    ],
)
def test_rows_that_name_no_pinned_model_are_refused(tmp_path: Path, row: dict[str, str], message: str) -> None:
    (tmp_path / "params.yaml").write_text(json.dumps({"outside": {"far": row}}))
    with pytest.raises(ParamsError, match=message):
        load_row("outside", "far", OutsideEntry, tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="no row 'near' in its table `outside`; it has far"):
        load_row("outside", "near", OutsideEntry, tmp_path / "params.yaml")


def shipped(tmp_path: Path, before: str, after: str) -> Path:
    """The shipped params with one change."""
    text = (ROOT / "params.yaml").read_text()
    assert text.count(before) == 1
    (tmp_path / "params.yaml").write_text(text.replace(before, after))
    return tmp_path / "params.yaml"


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    row = f"{{id: own/pico, revision: {COMMIT}}}"
    with pytest.raises(ParamsError, match="two evaluated models are called 'merged'"):
        load_params(shipped(tmp_path, "outside: {}", f"outside: {{merged: {row}}}"))
    with pytest.raises(ParamsError, match="two evaluated models are called 'bm25'"):
        load_params(shipped(tmp_path, "outside: {}", f"outside: {{bm25: {row}}}"))
    with pytest.raises(ParamsError, match="two evaluated models are called 'bm25'"):
        load_params(shipped(tmp_path, "\n  base:", "\n  bm25: {path: x}\n  base:"))
    with pytest.raises(ParamsError, match=r"the name 'merged' stands twice.*line"):
        load_params(shipped(tmp_path, "\n  base:", "\n  merged: {path: x}\n  base:"))


def test_a_folder_that_is_no_model_is_refused_and_nothing_is_written(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    params = read_params()
    params["models"]["near"]["path"] = "empty"
    Path("params.yaml").write_text(json.dumps(params))
    assert guard(lambda: stages.evaluate.main("near")) == 1
    error = capsys.readouterr().err
    assert "empty is no sentence-transformers folder: it has no modules.json; name another model" in error
    assert not Path("reports").exists()
    with pytest.raises(ModelError, match=r"models/merged is no .*; run `dvc repro` to make it"):
        load_model("models/merged")


@pytest.mark.parametrize(
    ("file", "text"),
    [("model.safetensors", "cut off"), ("modules.json", "3"), ("modules.json", "{"), ("config.json", "")],
)
def test_a_broken_model_folder_is_one_sentence(
    project: Path, folder: Path, capsys: pytest.CaptureFixture[str], file: str, text: str
) -> None:
    broken = Path(shutil.copytree(folder, "broken"))
    next(broken.rglob(file)).write_text(text)
    params = read_params()
    params["models"]["near"]["path"] = "broken"
    Path("params.yaml").write_text(json.dumps(params))
    assert guard(lambda: stages.evaluate.main("near")) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "broken" in line]
    assert len(said) == 1
    assert "cannot load the model broken: " in said[0]
    assert said[0].endswith("fetch or make it again")
    assert not Path("reports").exists()
