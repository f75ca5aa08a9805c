"""The paper's profiles: refused until they are filled in, and run on local copies of the hub sets' layout with a pico
model of the paper's architecture.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from stm.errors import ParamsError
from stm.files import read_json, write_json
from stm.merge.experts import read_experts
from stm.models import load_model
from stm.params.all import load_params
from stm.params.complete import check_complete
from stm.profiles import use_profile
from stm.schema import read_rows
from tests.closure import ROOT
from tests.own_project import pairs
from tests.pico import pico_decoder, pico_tokenizer

PAPER = {"paper-qwen3-0.6b": "qwen3", "paper-gemma-2b": "gemma", "paper-phi-4-mini": "phi3"}
SPLITS = ("med_real", "med_synth", "search", "nlu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
INSTRUCTIONS = {split: [f"Given a {split} {kind}, find what answers it" for kind in "xy"] for split in SPLITS}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def apply(name: str) -> dict[str, Any]:
    """The shipped params with a profile."""
    use_profile(name, ROOT / "profiles")
    params: dict[str, Any] = yaml.safe_load(Path("params.yaml").read_text())
    return params


def fill_in(params: dict[str, Any], revision: str) -> None:
    """What the profile asks of its user."""
    params["backbone"]["source"]["revision"] = revision
    for split, (source,) in params["prepare"]["splits"].items():
        source["revision"] = source["released"]["revision"] = revision
        source["only_instructions"] = INSTRUCTIONS[split]


def check(params: dict[str, Any]) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    import_module("stages.check").main()


@pytest.mark.parametrize("name", PAPER)
def test_a_profile_is_refused_until_it_is_filled_in(project: Path, name: str) -> None:
    params = apply(name)
    with pytest.raises(ParamsError) as caught:
        check(params)
    lines = str(caught.value).splitlines()[1:]
    keys = [f"prepare.splits.{split}.0.{key}" for split in SPLITS for key in ("revision", "released.revision")]
    assert [line.split()[0] for line in lines[:9]] == ["backbone.source.revision", *keys]
    assert all("40 hexadecimal digits" in line for line in lines[:9])
    assert len(lines) == 12
    assert "'med_real' and 'nlu' take the same rows of BMRetriever/biomed_retrieval_dataset" in lines[-1]
    fill_in(params, "v1.0")
    with pytest.raises(ParamsError, match=r"the commit of (google|Qwen|microsoft)/.*given: 'v1.0'"):
        check(params)
    fill_in(params, COMMIT)
    check(params)
    assert Path("data/params.ok").exists()


def test_splits_that_share_a_text_are_refused(project: Path) -> None:
    params = apply("paper-gemma-2b")
    fill_in(params, COMMIT)
    params["prepare"]["splits"]["nlu"][0]["only_instructions"] = INSTRUCTIONS["search"][:1]
    with pytest.raises(ParamsError, match="the splits 'search' and 'nlu' take the same rows"):
        check(params)


def test_the_embedded_default_needs_nothing_of_a_hub(project: Path) -> None:
    check_complete(load_params())


def write_hub_copies(folder: Path) -> None:
    """Both data sets in their layout: JSON rows of the mixture, and negatives that name its rows."""
    rows = []
    for number, split in enumerate(SPLITS * 12):
        (pair,) = pairs(number, 1)
        prompt = INSTRUCTIONS[split][number // 4 % 2]
        rows.append({"original prompt": prompt, "query": pair["question"], "positive": pair["answer"],
                     "negative": pair["wrong"]})  # fmt: skip
    (folder / "mixture").mkdir(parents=True)
    pl.DataFrame(rows).write_ndjson(folder / "mixture/ft_data.json")
    released = [{"bmretriever_index": i, "hard_negative": pairs(1000 + i, 1)[0]["answer"]} for i in range(len(rows))]
    (folder / "released/data").mkdir(parents=True)
    pl.DataFrame(released).write_parquet(folder / "released/data/train-00000-of-00001.parquet")


def shrink(params: dict[str, Any], family: str) -> None:
    """Local copies in place of the ids, and sizes for a pico model."""
    pico_decoder(family).save_pretrained("own/decoder")
    config = read_json("own/decoder/config.json")
    # As Phi-4-mini's has it: code of the model's own, which transformers does not need.
    write_json("own/decoder/config.json", {**config, "auto_map": {"AutoModelForCausalLM": "modeling.Own"}})
    pico_tokenizer().save_pretrained("own/decoder")
    fill_in(params, "")
    params["backbone"]["source"] = {"kind": "folder", "path": "own/decoder"}
    params["backbone"]["max_tokens"] = 64  # of the pico decoder's positions
    for sources in params["prepare"]["splits"].values():
        sources[0]["path"], sources[0]["released"]["path"] = "own/mixture", "own/released"
    tasks = {}
    for part, queries in (("dev", ["what is farther away", "what is farthest away"]), ("test", ["what is far away"])):
        path = f"{part}.parquet"
        pl.DataFrame({"anchor": queries, "positive": "Nothing of the mixture."}).write_parquet(path)
        tasks[part] = {"own": {"kind": "parquet", "path": path}}
    params["files"] = {
        name: {"path": path, "read_by": reader}
        for name, path, reader in (("decoder", "own/decoder", "backbone"), ("mixture", "own/mixture", "prepare"),
                                   ("released", "own/released", "prepare"), ("dev", "dev.parquet", "prepare"),
                                   ("test", "test.parquet", "prepare"))
    }  # fmt: skip
    params["prepare"] |= {"tasks": tasks, "warm_up_pairs": 16}
    for section in ("warm_up", "train"):
        params[section] |= {"batch_size": 6, "max_steps": 2, "chunk_tokens": 128, "must_learn": False}


@pytest.mark.parametrize("name", PAPER)
def test_the_mixture_becomes_experts_on_mined_and_released_negatives(project: Path, name: str) -> None:
    params = apply(name)
    write_hub_copies(project / "own")
    shrink(params, PAPER[name])
    check(params)
    for stage in ("backbone", "prepare"):
        import_module(f"stages.{stage}").main()
    for split in SPLITS:
        import_module("stages.mine").main(split)
    import_module("stages.synthesize").main("search")
    import_module("stages.warm_up").main()
    for expert in ("search-ft", "search-shn"):
        import_module("stages.train").main(expert)
    mined, synthetic = (read_rows(f"data/{kind}/search.parquet") for kind in ("mined", "synthetic"))
    assert sorted(mined["instruction"].unique()) == INSTRUCTIONS["search"]
    assert {len(negatives) for negatives in mined["negatives"]} == {1}
    assert mined["origins"].explode().unique().to_list() == ["given"]
    assert synthetic["origins"].list.first().unique().to_list() == ["synthetic"]
    assert read_json("reports/synthesize/search.json")["released"] == mined.height
    assert read_json("models/backbone/config.json")["model_type"] == PAPER[name]
    assert read_experts("models/warm_up", {"search": Path("models/experts/search-ft")}).names == ["search"]
    query = load_model("models/experts/search-shn").prompts["query"]
    assert query == "Given a web search query, retrieve passages that answer it\nQuery: "
    report = read_json("reports/train/search-shn.json")
    assert (report["rows"], report["steps"]) == (mined.height, 2)
