"""The whole pipeline on a user's own files: every stage in order, in one process, with a pico backbone and an endpoint.

The data come from JSONL, CSV and Parquet files and a BEIR folder, by params alone.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from stm.files import read_json, sha256_tree
from stm.schema import read_rows
from tests.fault_server import FaultServer
from tests.own_project import SPLITS, answer, own_params, pairs, write_sources
from tests.registry_project import copy_store


def run(stage: str, *arguments: str) -> None:
    import_module(f"stages.{stage}").main(*arguments)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("project")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("MLFLOW_TRACKING_URI", "unset")  # MLflow writes it; so it is restored afterwards
    patch.delenv("MLFLOW_TRACKING_URI")
    write_sources(folder / "own")
    copy_store(folder)
    with FaultServer(lambda number, body: "ok", answer) as server:
        (folder / "params.yaml").write_text(yaml.safe_dump(own_params(server.base_url), sort_keys=False))
        run("check")
        run("files", "decoder")
        for stage in ("backbone", "prepare"):
            run(stage)
        for split in SPLITS:
            run("mine", split)
        run("synthesize", "web")
        run("warm_up")
        for split in SPLITS:
            run("train", f"{split}-ft")
        run("search_prompts", "web")
        run("train", "web-shn")
        run("train", "web-po")
        for stage in ("train_all", "select", "merge"):
            run(stage)
        for model in ("base", *SPLITS, "all", "merged"):
            run("evaluate", model)
        for stage in ("bm25", "report", "promote"):
            run(stage)
    yield folder
    patch.undo()


def test_a_record_says_what_ones_own_files_hold(project: Path) -> None:
    record = read_json("data/files/backbone/decoder.json")
    assert record == {"path": "own/decoder", "sha256": sha256_tree("own/decoder")}


def test_the_pairs_are_those_of_the_files(project: Path) -> None:
    for split, seed in (("notes", 1), ("web", 2), ("forum", 3)):
        assert sorted(read_rows(f"data/pairs/{split}.parquet")["positive"]) == sorted(
            row["answer"] for row in pairs(seed)
        )


def test_accepted_negatives_come_first_and_are_marked(project: Path) -> None:
    rows = read_rows("data/synthetic/web.parquet")
    assert "synthetic" in rows["origins"].list.first().to_list()
    assert rows["id"].to_list() == read_rows("data/mined/web.parquet")["id"].to_list()


def test_the_merged_model_stands_alone(project: Path) -> None:
    merged = SentenceTransformer("models/merged", device="cpu")
    assert not [p.name for p in Path("models/merged").rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert merged.prompts["query"].strip().endswith(":")
    prompted = merged.encode([merged.prompts["query"] + "x"])
    assert np.array_equal(merged.encode_query(["x"]), prompted)
    base = SentenceTransformer("models/warm_up", device="cpu")
    assert np.abs(merged.encode(["x"]) - base.encode(["x"])).max() > 0


def test_every_model_is_in_the_metrics_with_both_measures_and_averages(project: Path) -> None:
    metrics = json.dumps(read_json("reports/metrics.json"))
    for word in ("base", *SPLITS, "all", "merged", "bm25", "ndcg_at_10", "recall_at_10", "medical"):
        assert f'"{word}"' in metrics
    page = Path("reports/index.html").read_text()
    assert "<html" in page
    assert not [scheme for scheme in ('src="http', 'href="http', "@import") if scheme in page.split("<body")[0]]


def test_the_run_is_registered_and_the_decision_written(project: Path) -> None:
    promotion = read_json("reports/promotion.json")
    version = mlflow.MlflowClient("sqlite:///mlruns/mlflow.db").get_registered_model("stm-retriever")
    assert set(version.aliases) & {"champion", "challenger"}
    assert set(promotion["gates"]) >= {"base", "reload_difference"}


def test_nothing_of_this_machine_is_in_what_is_written(project: Path) -> None:
    written = [p for folder in ("data", "models", "reports") for p in Path(folder).rglob("*.json")]
    assert len(written) > 20
    assert [p for p in written if str(project) in p.read_text()] == []
