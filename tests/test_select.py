"""Selection: the best variant per split, ties, the copied folders, the baseline's prompts, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stages import select as stage
from stm.encode import Encoder
from stm.errors import ModelError, ParamsError
from stm.files import read_json
from stm.merge.dev import make_dev_set, score_model
from stm.metrics import mean
from stm.models import load_model
from stm.params.experts import ExpertRow
from stm.prompts import read_prompts, render, write_prompts
from stm.select import Scored, choose, prompt_baseline, score_expert, select_experts
from stm.tasks import Passage, Task, write_task
from tests.pico import pico_adapter, pico_backbone

FT = ExpertRow(split="a", negatives="mined", instruction="seed")
SHN = ExpertRow(split="a", negatives="synthetic", instruction="seed")
PO = ExpertRow(split="a", negatives="mined", instruction="searched")
SHN_PO = ExpertRow(split="a", negatives="synthetic", instruction="searched")
NAMES = {FT: "a-ft", SHN: "a-shn", PO: "a-po", SHN_PO: "a-shn_po"}


def make_task() -> Task:
    corpus = {f"p{i}": Passage("", f"passage {i} about {chr(97 + i) * 3}") for i in range(12)}
    queries = {f"q{i}": f"what is {chr(97 + i) * 3}" for i in range(6)}
    return Task("toy", "general", corpus, queries, {f"q{i}": {f"p{i}": 1} for i in range(6)})


def scored(row: ExpertRow, mean: float) -> Scored:
    return Scored(NAMES.get(row, "b-ft"), row, {"toy": mean}, mean, tokens=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("select")
    base = pico_backbone(folder / "models/warm_up")
    for index, name in enumerate(["a-ft", "a-shn", "b-ft", "all"]):
        pico_adapter(base, folder / "models/experts" / name, seed=index, scale=0.3)
    for name in ("a-ft", "a-shn", "b-ft"):
        prompts = read_prompts(base)
        write_prompts(render(prompts.template, f"Instruction of {name[0]}"), folder / "models/experts" / name)
    write_task(make_task(), folder / "data/tasks/dev/toy", "dev")
    return folder


def test_the_best_of_each_split_is_chosen() -> None:
    other = FT.model_copy(update={"split": "b"})
    best = choose([scored(FT, 0.3), scored(other, 0.1), scored(SHN, 0.4), scored(PO, 0.2)])
    assert {split: s.name for split, s in best.items()} == {"a": "a-shn", "b": "b-ft"}


def test_ties_go_to_the_simpler_variant() -> None:
    ordered = [FT, SHN, PO, SHN_PO]
    for start in range(4):
        tied = [scored(variant, 0.5) for variant in reversed(ordered[start:])]
        assert choose(tied)["a"].row == ordered[start]


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.permutations([0, 1, 2, 3]))
def test_the_choice_does_not_depend_on_the_order(means: list[float], order: list[int]) -> None:
    rows = [scored(variant, mean) for variant, mean in zip([FT, SHN, PO, SHN_PO], means, strict=True)]
    assert choose(rows) == choose([rows[index] for index in order])
    assert choose(rows)["a"].mean == max(means)


def test_the_stage_copies_the_winner_and_writes_the_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    row = {"negatives": "mined", "instruction": "seed"}
    experts = {"a-ft": {"split": "a", **row}, "a-shn": {"split": "a", **row}, "b-ft": {"split": "b", **row}}
    params = {"select": {"max_queries": 0, "max_passages": 0, "seed": 0}, "splits": ["a", "b"], "experts": experts}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    stage.main()
    report = json.loads((root / "reports/select.json").read_text())
    assert set(report["experts"]) == set(experts)
    assert sorted(p.name for p in (root / "models/selected").iterdir()) == ["a", "b"]
    winner = report["selected"]["a"]
    assert report["experts"][winner]["mean"] == max(report["experts"][name]["mean"] for name in ("a-ft", "a-shn"))
    assert [name for name, r in report["experts"].items() if r["is_selected"]] == sorted([winner, "b-ft"])
    for name in ("adapter_config.json", "adapter_model.safetensors", "prompts.json"):
        source, copied = root / "models/experts" / winner / name, root / "models/selected/a" / name
        assert copied.read_bytes() == source.read_bytes()
    assert load_model(root / "models/selected/a").prompts["query"]


def test_the_same_adapter_under_two_names_is_scored_once_and_is_the_simpler_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    for name in ("1-po", "2-ft"):
        shutil.copytree("models/experts/a-ft", tmp_path / "experts" / name)
    dev = make_dev_set([make_task()], [], 0, 0, 0)
    table = select_experts({"1-po": PO, "2-ft": FT}, tmp_path / "experts", dev, tmp_path / "selected")
    first, second = table["experts"].values()
    assert (first["mean"], first["tasks"]) == (second["mean"], second["tasks"])
    assert first["tokens"] > second["tokens"] == 0
    assert table["selected"] == {"a": "2-ft"}


def test_the_baseline_gets_the_prompt_that_is_best_on_dev(root: Path, tmp_path: Path) -> None:
    dev = make_dev_set([make_task()], [], 0, 0, 0)
    folder = root / "models/experts"
    report = prompt_baseline("all", ["a-ft", "b-ft", "a-shn"], folder, dev, tmp_path)
    assert [row["proposed_by"] for row in report["prompts"]] == [["all"], ["a-ft", "a-shn"], ["b-ft"]]
    model = load_model(folder / "all")
    for row in report["prompts"]:
        expected = mean(score_model(dev, Encoder(model), row).tasks_overall())
        assert row["mean"] == pytest.approx(expected, abs=1e-6)
    best = max(report["prompts"], key=lambda row: row["mean"])
    assert report["mean"] == best["mean"] > min(row["mean"] for row in report["prompts"])
    written = tmp_path / "all"
    assert (written / "prompts.json").read_bytes() == (folder / best["proposed_by"][0] / "prompts.json").read_bytes()
    assert (written / "adapter_model.safetensors").read_bytes() == (
        folder / "all/adapter_model.safetensors"
    ).read_bytes()
    assert load_model(written).prompts["query"] == best["query"]


def test_the_stage_writes_the_baseline_with_the_prompts_of_selected_experts(root: Path) -> None:
    report = read_json(root / "reports/select.json")
    proposers = [name for row in report["baseline"]["prompts"] for name in row["proposed_by"]]
    assert sorted(proposers) == sorted(["all", *report["selected"].values()])
    assert load_model(root / "models/baselines/all").prompts["query"] in [
        r["query"] for r in report["baseline"]["prompts"]
    ]


def test_a_baseline_that_is_not_trained_is_refused(root: Path, tmp_path: Path) -> None:
    dev = make_dev_set([make_task()], [], 0, 0, 0)
    with pytest.raises(ModelError, match="run `dvc repro train_all`"):
        prompt_baseline("none", ["a-ft"], root / "models/experts", dev, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scores_are_per_task_and_counted_in_tokens(root: Path) -> None:
    dev = make_dev_set([make_task()], [], 0, 0, 0)
    result = score_expert("a-ft", FT, root / "models/experts/a-ft", dev)
    assert set(result.scores) == {"toy"}
    assert result.mean == result.scores["toy"]
    assert 0 <= result.mean <= 1
    assert result.tokens > 18


def test_an_untrained_variant_is_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    dev = make_dev_set([make_task()], [], 0, 0, 0)
    with pytest.raises(ModelError, match="'a-shn_po' is not in"):
        select_experts({NAMES[row]: row for row in (FT, SHN_PO)}, root / "models/experts", dev, tmp_path / "selected")
    assert not (tmp_path / "selected").exists()


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        (None, "experts"),
        ({}, "experts"),
        ({"a-ft": {"split": "a", "negatives": "none", "instruction": "seed"}}, r"experts\.a-ft\.negatives"),
        ({"a-ft": {"split": "a", "negatives": "mined"}}, r"experts\.a-ft\.instruction"),
        ({"all": {"split": "a", "negatives": "mined", "instruction": "seed"}}, "is the baseline on all splits"),
    ],
)
def test_a_wrong_table_is_refused(experts: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = {"select": {"max_queries": 0, "max_passages": 0, "seed": 0}, "splits": ["a"], "experts": experts}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ParamsError, match=message):
        stage.main()
