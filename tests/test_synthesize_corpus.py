"""A mere corpus becomes an expert: prepare, mine, synthesize and train on texts that nobody has asked for."""

import json
import random
from importlib import import_module
from typing import Any

import polars as pl
import pytest
import yaml
from peft import PeftConfig

from stm.bm25 import Index
from stm.files import read_json
from stm.schema import read_rows
from stm.synthesize.queries import SOURCE
from tests.fault_server import fault_server
from tests.own_project import WORDS, own_params, sentence, write_sources

PASSAGES, KINDS, MOST_RANK = 24, ("question", "keywords"), 3
RNG = random.Random(11)
TEXTS = [f"{sentence(RNG, 4)} {sentence(RNG, 9)}" for _ in range(PASSAGES)]
REFUSED, STRAY = TEXTS[2], TEXTS[5]  # what the LLM will not write a query for, and what its query does not find
ASKED = {"question": "one question", "keywords": "three keywords"}


def answer(body: dict[str, Any]) -> str:
    """Queries from every third word of the passage; sentences of the domain as negatives."""
    prompt = body["messages"][-1]["content"]
    passage = prompt.splitlines()[0]
    if not any(words in prompt for words in ASKED.values()):
        return sentence(random.Random(prompt), 9)
    if passage == REFUSED:
        return "I'm sorry, but I cannot help with that."
    words = passage.replace(".", "").lower().split()[::3]
    if passage == STRAY:
        words = [word for word in WORDS if word not in passage.lower()][:4]
    return f"Which {' '.join(words)}?" if ASKED["question"] in prompt else ", ".join(words[::-1])


def run(stage: str, *arguments: str) -> None:
    import_module(f"stages.{stage}").main(*arguments)


def params_of(base_url: str) -> dict[str, Any]:
    params = own_params(base_url)
    params["splits"], params["synthesize_splits"], params["search_prompts_splits"] = ["texts"], ["texts"], []
    params["experts"] = {
        f"texts-{name}": {"split": "texts", "negatives": kind, "instruction": "seed"}
        for name, kind in (("ft", "mined"), ("shn", "synthetic"))
    }
    params["models"] = {name: params["models"][name] for name in ("base", "merged")}
    params["prepare"] |= {
        "splits": {"texts": [{"kind": "corpus", "path": "own/texts.jsonl", "text": "body"}]},
        "warm_up_splits": ["texts"],
    }
    params["mine"] |= {"rank_from": 1}
    params["synthesize"] |= {"rows": 10, "max_regenerations": 0}
    params["synthesize"]["queries"] |= {
        "rows": PASSAGES, "replace_rows": True, "kinds": list(KINDS), "max_rank": MOST_RANK, "max_copy": 0.9,
    }  # fmt: skip
    return params


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("corpus")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    write_sources(folder / "own")
    (folder / "own/texts.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    with fault_server(answer=answer) as server:
        (folder / "params.yaml").write_text(yaml.safe_dump(params_of(server.base_url), sort_keys=False))
        for stage in ("check", "backbone", "prepare", "warm_up"):
            run(stage)
        run("mine", "texts")
        run("synthesize", "texts")
        run("train", "texts-shn")
    yield folder
    patch.undo()


@pytest.mark.usefixtures("project")
def test_pairs_of_a_corpus_have_stand_ins_for_queries() -> None:
    pairs = read_rows("data/pairs/texts.parquet")
    assert sorted(pairs["positive"]) == sorted(TEXTS)
    assert all(positive.startswith(anchor.rstrip(".")) for anchor, positive in pairs["anchor", "positive"].iter_rows())


@pytest.mark.usefixtures("project")
def test_written_queries_replace_them_and_find_their_passages() -> None:
    rows = read_rows("data/synthetic/texts.parquet")
    written = rows.filter(source=SOURCE)
    index = Index(TEXTS)
    found_QK, _ = index.search(written["anchor"].to_list(), MOST_RANK)
    for found_K, positive in zip(found_QK.tolist(), written["positive"], strict=True):
        assert TEXTS.index(positive) in found_K
    asked = set(written["positive"])
    assert len(asked) >= PASSAGES - 4  # nearly all texts; the random words of a few may fit another one better
    stand_ins = rows.filter(pl.col("source") != SOURCE)
    assert {REFUSED, STRAY} <= set(stand_ins["positive"])  # what has no query keeps its stand-in
    assert not asked & set(stand_ins["positive"])
    outcomes = read_json("reports/synthesize/texts.json")["queries"]["outcomes"]
    assert outcomes["refusal"] == 2
    assert outcomes["round_trip"] >= 2
    assert outcomes["accepted"] == written.height


@pytest.mark.usefixtures("project")
def test_their_negatives_are_written_for_them_and_the_expert_learns_from_all() -> None:
    rows = read_rows("data/synthetic/texts.parquet")
    first = rows.head(10)
    report = read_json("reports/synthesize/texts.json")
    assert report["rows_asked"] == 10
    marked = [origins[0] == "synthetic" for origins in first["origins"].to_list() if len(origins)]
    assert sum(marked) == report["accepted"] > 5
    assert first.filter(source=SOURCE).height > 5
    trained = read_json("reports/train/texts-shn.json")
    assert trained["negatives"] == "synthetic"
    assert trained["rows"] == rows.height > PASSAGES
    assert PeftConfig.from_pretrained("models/experts/texts-shn").base_model_name_or_path == "models/warm_up"
