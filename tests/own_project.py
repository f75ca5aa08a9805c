"""A user's own project in small: sources in every file format, params for a pico model, an endpoint's answers."""

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from tests.closure import ROOT
from tests.pico import pico_decoder, pico_tokenizer

SPLITS = ("notes", "web", "forum")
WORDS = [a + b for a in ("gala", "mori", "tun", "peri", "cor") for b in ("dine", "ter", "sol", "vax", "lum", "ric")]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words)).capitalize() + "."


def pairs(seed: int, count: int = 40) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = [{"question": sentence(rng, 3), "answer": sentence(rng, 7), "wrong": sentence(rng, 7)} for _ in range(count)]
    return [{**row, "question": row["answer"].split()[0] + " " + row["question"]} for row in rows]


def query_id(number: int) -> str:
    """Every seventh looks like a path, quotes included: ids are data and never become one."""
    return f"q{number}" if number % 7 else f"../../q'{number}'/🫀"


def passage_id(number: int) -> str:
    return f"p{number}" if number % 7 else f'/tmp/../p"{number}"'


def write_sources(folder: Path) -> None:
    """A gzipped JSONL, a CSV and a Parquet file of pairs, a BEIR folder with dev and test qrels, and a pico decoder."""
    folder.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in pairs(1))
    (folder / "notes.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    with (folder / "web.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["question", "answer", "wrong"])
        writer.writeheader()
        writer.writerows(pairs(2))
    pl.DataFrame(pairs(3)).write_parquet(folder / "forum.parquet")
    beir, rows = folder / "beir", pairs(4, 60)
    (beir / "qrels").mkdir(parents=True)
    with (beir / "corpus.jsonl").open("w") as stream:
        stream.writelines(
            json.dumps({"_id": passage_id(i), "title": "", "text": r["answer"]}) + "\n" for i, r in enumerate(rows)
        )
    with (beir / "queries.jsonl").open("w") as stream:
        stream.writelines(json.dumps({"_id": query_id(i), "text": r["question"]}) + "\n" for i, r in enumerate(rows))
    for split, ids in (("dev", range(30)), ("test", range(30, 60))):
        lines = ["query-id\tcorpus-id\tscore", *(f"{query_id(i)}\t{passage_id(i)}\t1" for i in ids)]
        (beir / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    pico_decoder().save_pretrained(folder / "decoder")
    pico_tokenizer().save_pretrained(folder / "decoder")


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
    params["warm_up"] |= {**small, "must_learn": False}
    params["train"] |= small
    params["synthesize"]["rows"] = 6
    params["search_prompts"]["pool_size"] = 2
    for section in ("synthesize", "search_prompts"):
        params[section]["endpoint"] |= {"base_url": base_url, "model": "fake", "retries": 1}
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
