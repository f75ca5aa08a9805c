"""The whole pipeline on a user's own files: every stage in order, in one process, with a pico backbone and an endpoint.

The data come from JSONL, CSV and Parquet files and a BEIR folder, by params alone.
"""

import csv
import gzip
import json
import random
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import polars as pl
import pytest
import yaml
from sentence_transformers import SentenceTransformer

from stm.files import read_json, sha256_tree
from stm.schema import read_rows
from tests.closure import ROOT
from tests.fault_server import FaultServer
from tests.pico import pico_decoder, pico_tokenizer
from tests.registry_project import copy_store

SPLITS = ("notes", "web", "forum")
WORDS = [a + b for a in ("gala", "mori", "tun", "peri", "cor") for b in ("dine", "ter", "sol", "vax", "lum", "ric")]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def pairs(seed: int, count: int = 40) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = [{"question": sentence(rng, 3), "answer": sentence(rng, 7), "wrong": sentence(rng, 7)} for _ in range(count)]
    return [{**row, "question": row["answer"].split()[0] + " " + row["question"]} for row in rows]


def write_sources(folder: Path) -> None:
    """A gzipped JSONL, a CSV and a Parquet file of pairs, and a BEIR folder with dev and test qrels."""
    folder.mkdir()
    with gzip.open(folder / "notes.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in pairs(1))
    with (folder / "web.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["question", "answer", "wrong"])
        writer.writeheader()
        writer.writerows(pairs(2))
    pl.DataFrame(pairs(3)).write_parquet(folder / "forum.parquet")
    beir, rows = folder / "beir", pairs(4, 60)
    (beir / "qrels").mkdir(parents=True)
    with (beir / "corpus.jsonl").open("w") as stream:
        stream.writelines(
            json.dumps({"_id": f"p{i}", "title": "", "text": r["answer"]}) + "\n" for i, r in enumerate(rows)
        )
    with (beir / "queries.jsonl").open("w") as stream:
        stream.writelines(json.dumps({"_id": f"q{i}", "text": r["question"]}) + "\n" for i, r in enumerate(rows))
    for split, ids in (("dev", range(30)), ("test", range(30, 60))):
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\tp{i}\t1" for i in ids)]
        (beir / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def own_params(base_url: str) -> dict[str, Any]:
    """The shipped params with a user's tables and sources, and sizes for a pico model."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["splits"], params["synthesize_splits"], params["search_prompts_splits"] = list(SPLITS), ["web"], ["web"]
    params["experts"] = {f"{s}-ft": {"split": s, "negatives": "mined", "instruction": "seed"} for s in SPLITS}
    params["experts"]["web-shn"] = {"split": "web", "negatives": "synthetic", "instruction": "seed"}
    params["experts"]["web-po"] = {"split": "web", "negatives": "mined", "instruction": "searched"}
    params["models"] = {
        "base": {"path": "models/backbone", "role": "base"},
        **{s: {"path": f"models/selected/{s}", "role": "expert"} for s in SPLITS},
        "all": {"path": "models/baselines/all", "role": "all_data"},
        "merged": {"path": "models/merged", "role": "merged"},
    }
    params["files"] = {
        "decoder": {"path": "own/decoder", "read_by": "backbone"},
        "own": {"path": "own", "read_by": "prepare"},
    }
    params["backbone"] |= {"source": {"kind": "folder", "path": "own/decoder"}, "layers": 0, "max_tokens": 64}
    columns = {"anchor": "question", "positive": "answer", "negatives": "wrong"}
    own = {"kind": "beir", "path": "own/beir", "domain": "medical"}
    params["prepare"] |= {
        "splits": {
            "notes": [{"kind": "jsonl", "path": "own/notes.jsonl.gz", **columns}],
            "web": [{"kind": "csv", "path": "own/web.csv", **columns}],
            "forum": [{"kind": "parquet", "path": "own/forum.parquet", **columns}],
        },
        "instructions": {},
        "warm_up_splits": list(SPLITS),
        "warm_up_pairs": 24,
        "max_pairs": 0,
        "tasks": {"dev": {"own": own}, "test": {"own": own}},
    }
    small = {"batch_size": 8, "max_steps": 2, "rank": 2, "learning_rate": 1e-3}
    params["warm_up"] |= small
    params["train"] |= small
    params["synthesize"]["rows"] = 6
    params["search_prompts"]["pool_size"] = 2
    for section in ("synthesize", "search_prompts"):
        params[section]["endpoint"] |= {"base_url": base_url, "model": "fake", "retries": 1, "api_key_env": ""}
    params["merge"]["search"]["trials"] = 3
    params["promote"]["resamples"] = 200
    params["report"]["resamples"] = 200
    return params


def answer(body: dict[str, Any]) -> str:
    """What the endpoint says: a retrieval instruction where one is asked for, else a sentence of the domain."""
    text = " ".join(str(message["content"]) for message in body["messages"])
    rng = random.Random(f"{text}:{body.get('seed')}")
    if "instruction" in text.lower():
        return f"Find the passage that tells about the {rng.choice(WORDS)} best"
    return sentence(rng, 9)


def run(stage: str, *arguments: str) -> None:
    import_module(f"stages.{stage}").__dict__["body" if stage == "search_prompts" else "main"](*arguments)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("project")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setenv("MLFLOW_TRACKING_URI", "unset")  # MLflow writes it; so it is restored afterwards
    patch.delenv("MLFLOW_TRACKING_URI")
    write_sources(folder / "own")
    pico_decoder().save_pretrained(folder / "own/decoder")
    pico_tokenizer().save_pretrained(folder / "own/decoder")
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
