"""The merge stage as a whole on pico models, its params, dev sets and prompts."""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from stm.stage import run_stage
from stages import merge as stage
from stm.errors import DataError, ParamsError
from stm.files import write_json
from stm.folders import describe_folder
from stm.merge.dev import HALVES, Scores, cut_in_two, make_dev_set, query_texts, score_embeddings, score_model
from stm.merge.evaluator import Evaluator
from stm.merge.experts import read_experts
from stm.merge.methods import METHODS
from stm.merge.plan import inputs_key, make_space
from stm.merge.prompt import PromptScore, best_prompt, score_prompts
from stm.merge.recipe import Recipe
from stm.merge.run import merge_experts
from stm.merge.trials import Trial
from stm.models import load_model
from stm.params.base import parse_section
from stm.params.merge import MergeParams, MethodName, ThinningMethod
from stm.prompts import Prompts, write_prompts
from stm.tasks import Passage, Task, write_task
from stm.text_encoder import Floats
from tests.pico import pico_adapter, pico_backbone

EXPERTS = ("med_real", "nlu", "search")
LEARN = {"granularity": "expert", "steps": 3, "learning_rate": 0.05, "pull": 0.1}


def make_task(name: str = "toy", queries: int = 6, passages: int = 20) -> Task:
    corpus = {f"p{i:02d}": Passage("", f"{name} passage {i} about {chr(97 + i % 26) * 3}") for i in range(passages)}
    asked = {f"q{i}": f"what is {chr(97 + i) * 3}" for i in range(queries)}
    return Task(name, "general", corpus, asked, {f"q{i}": {f"p{i:02d}": 1} for i in range(queries)})


def make_params(**changes: Any) -> MergeParams:
    values: dict[str, Any] = {
        "method": "linear", "lambda": 1.0, "density": 0.5, "seed": 0, "max_queries": 4, "max_passages": 10,
        "search": {"kind": "random", "trials": 2, "seed": 0, "weights": {"low": 0, "high": 1, "step": 0.1},
                   "storage": "sqlite:///:memory:"},
    }  # fmt: skip
    return parse_section({**values, **changes}, MergeParams, "merge")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge_stage")
    base = pico_backbone(folder / "models/warm_up")
    for index, name in enumerate(EXPERTS):
        adapter = pico_adapter(base, folder / "models/selected" / name, seed=index)
        write_prompts(Prompts(f"Instruction of {name}: ", "", "{instruction}: ", f"Instruction of {name}"), adapter)
    for name in ("one", "two"):
        write_task(make_task(name), folder / "data/tasks/dev" / name, "dev")
    return folder


def merge(root: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    folders = {name: root / "models/selected" / name for name in EXPERTS}
    tasks = [make_task("one"), make_task("two")]
    return merge_experts(make_params(**changes), root / "models/warm_up", folders, tasks, tmp_path / "merged", tmp_path)


def test_the_stage_writes_model_and_trace(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    params = make_params(method=["linear", "dare_ties"]).model_dump(by_alias=True)
    (root / "params.yaml").write_text(yaml.safe_dump({"merge": params}))
    stage.main()
    trace = json.loads((root / "reports/merge.json").read_text())
    origins = [trial["origin"] for trial in trace["trials"]]
    assert len(origins) == 2 * (7 + 2)
    for origin in ("uniform", *(f"single:{n}" for n in EXPERTS), *(f"without:{n}" for n in EXPERTS)):
        assert origins.count(origin) == 2
    assert {trial["method"] for trial in trace["trials"]} == {"linear", "dare_ties"}
    assert all({"search", "holdout", "tokens", "seconds", "tasks"} <= set(trial) for trial in trace["trials"])
    assert trace["cost"]["tokens"] >= sum(trial["tokens"] for trial in trace["trials"]) * 0.9
    assert trace["dev"]["tasks"] == {name: {"queries": 4, "passages": 10} for name in ("one", "two")}
    assert set(trace["experts"]["nlu"]) == {"norm", "cosine_med_real", "cosine_search"}
    assert trace["model"] == describe_folder(root / "models/merged")
    assert trace["model"]["dimension"] == 32
    model = SentenceTransformer(str(root / "models/merged"))
    assert model.prompts["query"] == trace["prompts"]["chosen"]["query"]
    assert np.isfinite(model.encode_query(["hello"])).all()


def test_the_baseline_is_one_more_expert_where_params_say_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    pico_adapter(root / "models/warm_up", root / "models/baselines/all", seed=9)
    weights = {"med_real": 0.0, "nlu": 0.0, "search": 0.0, "all": 1.0}
    params = make_params(with_baseline=True, weights=weights).model_dump(by_alias=True)
    (root / "params.yaml").write_text(yaml.safe_dump({"merge": params}))
    stage.main()
    trace = json.loads((root / "reports/merge.json").read_text())
    assert set(trace["experts"]) == {*EXPERTS, "all"}
    baseline, merged = load_model(root / "models/baselines/all"), load_model(root / "models/merged")
    assert np.allclose(baseline.encode(["some text"]), merged.encode(["some text"]), atol=1e-5)
    other = load_model(root / "models/selected/nlu")
    assert not np.allclose(other.encode(["some text"]), merged.encode(["some text"]), atol=1e-3)


def test_the_prompt_is_one_of_the_candidates_and_the_best_on_the_search_half(root: Path, tmp_path: Path) -> None:
    trace = merge(root, tmp_path)
    candidates = trace["prompts"]["final"]
    assert [row["proposed_by"][0] for row in candidates] == ["base", *EXPERTS]
    best = max(candidates, key=lambda row: row["search"])
    assert trace["prompts"]["chosen"] == {"query": best["query"], "document": best["document"]}


def test_the_scores_of_what_is_taken_are_those_with_the_prompts_that_are_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first_then_last(
        scored: Sequence[PromptScore], in_use: Mapping[str, str] | None = None
    ) -> PromptScore:  # others than the search has used
        return scored[-1] if in_use else scored[0]

    monkeypatch.setattr("stm.merge.evaluator.best_prompt", first_then_last)
    trace = merge(root, tmp_path, weights={"med_real": 0.0, "nlu": 0.25, "search": 0.75})
    used, last = (trace["prompts"]["final"][place] for place in (0, -1))
    assert trace["prompts"]["chosen"]["query"] == last["query"] != used["query"]
    taken, searched = trace["decision"]["taken"], trace["decision"]["winner"]
    assert [taken[half] for half in HALVES] == [last[half] for half in HALVES]
    assert [searched[half] for half in HALVES] == [used[half] for half in HALVES] != [last[half] for half in HALVES]


def test_a_prompt_that_is_chosen_last_must_hold_on_the_other_half() -> None:
    def scored(query: str, search: float, holdout: float) -> PromptScore:
        return PromptScore(query, "", (), Scores({"t": {"search": {"a": search}, "holdout": {"b": holdout}}}))

    used, lucky, sound = scored("used", 0.6, 0.6), scored("lucky", 0.7, 0.5), scored("sound", 0.7, 0.6)
    in_use = used.as_model_prompts()
    assert best_prompt([used, lucky]) is lucky
    assert best_prompt([used, lucky], in_use) is used
    assert best_prompt([used, sound], in_use) is sound


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "dare_ties"])
def test_the_multi_fidelity_search_reports_how_far_its_stand_in_held(root: Path, tmp_path: Path, method: str) -> None:
    search = {**make_params().search.model_dump(), "kind": "multi_fidelity", "trials": 3, "rungs": [0.5]}
    trace = merge(root, tmp_path, method=method, search=search)
    (trust,) = trace["surrogate"]
    assert -1 <= trust["spearman"] <= 1
    assert trust["mixes"] == len(trust["points"]) >= 4
    assert [rung["share"] for rung in trust["rungs"]] == [0.5]
    assert trace["cost"]["full_evaluation_equivalents"] > len(trace["trials"]) * 0.9
    assert set(trace["ablation"][method]["nlu"]) == {"alone", "without", "loss_without"}


def test_each_distinct_model_is_evaluated_once_whatever_methods_lead_to_it(root: Path, tmp_path: Path) -> None:
    search = {**make_params().search.model_dump(), "trials": 0}
    one = merge(root, tmp_path / "one", method="linear", search=search)
    methods = ["linear", "task_arithmetic", "dare_linear"]
    three = merge(root, tmp_path / "three", method=methods, density=1.0, search=search)
    assert len(three["trials"]) == 3 * len(one["trials"])
    assert three["cost"]["evaluations"] == one["cost"]["evaluations"]
    assert set(three["ablation"]) == set(methods)
    assert three["ablation"]["linear"] == three["ablation"]["dare_linear"]
    costs = {trial["method"]: 0 for trial in three["trials"]}
    for trial in three["trials"]:
        costs[trial["method"]] += trial["tokens"]
    assert costs["linear"] > 0
    assert costs["task_arithmetic"] == costs["dare_linear"] == 0
    thinned = merge(root, tmp_path / "thinned", method=["linear", "ties"], search=search)
    assert thinned["cost"]["evaluations"] > one["cost"]["evaluations"], "thinned experts are other models"


def test_a_resumed_search_of_several_methods_evaluates_nothing_twice(root: Path, tmp_path: Path) -> None:
    search = {**make_params().search.model_dump(), "storage": "", "trials": 1}
    folders = {name: root / "models/selected" / name for name in EXPERTS}
    for methods in (["linear"], ["linear", "task_arithmetic"]):
        params = make_params(method=methods, search=search)
        tasks = [make_task("one"), make_task("two")]
        trace = merge_experts(params, root / "models/warm_up", folders, tasks, tmp_path / "merged", tmp_path)
    fixed = [t for t in trace["trials"] if t["method"] == "task_arithmetic" and t["origin"] != "search"]
    assert len(fixed) == 7
    assert sum(trial["tokens"] for trial in fixed) == 0


SEARCHES: dict[str, dict[str, Any]] = {
    "multi_fidelity": {"trials": 4},
    "multi_fidelity with rungs": {"trials": 4, "rungs": [0.5]},
    "random": {"trials": 5},
    "tpe": {"trials": 8},
    "cma": {"trials": 4},
    "grid": {"trials": 5},
}


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key != "seconds"}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def interrupt_after(finished: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next merge end in the middle of an evaluation."""
    evaluate, count = Evaluator.evaluate, [0]

    def interrupted(self: Evaluator, origin: str, recipe: Recipe) -> Trial:
        count[0] += 1
        if count[0] > finished:
            raise KeyboardInterrupt
        return evaluate(self, origin, recipe)

    monkeypatch.setattr(Evaluator, "evaluate", interrupted)


# How many evaluations end before the interrupt: among the fixed rows (up to 7), or among the searched candidates.
@pytest.mark.parametrize(("name", "finished"), zip(SEARCHES, (3, 9, 9, 3, 8, 10), strict=True))
def test_an_interrupted_merge_ends_as_if_nothing_had_happened(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, finished: int
) -> None:
    search = {**make_params().search.model_dump(), **SEARCHES[name], "kind": name.split()[0], "storage": ""}
    changes = {"method": "task_arithmetic", "search": search, "interaction": {"source": "surrogate", "step": 0.5}}
    whole, folder = merge(root, tmp_path / "whole", **changes), tmp_path / "resumed"
    with monkeypatch.context() as patch:
        interrupt_after(finished, patch)
        with pytest.raises(KeyboardInterrupt):
            merge(root, folder, **changes)
    assert without_seconds(merge(root, folder, **changes)) == without_seconds(whole)
    weights = "merged/model.safetensors"
    assert (folder / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert [path.name for path in folder.iterdir()] == ["merged"], "a finished search leaves nothing"


@pytest.mark.parametrize("further", [{}, {"mergekit": {"method": "karcher"}}])
def test_a_finished_merge_removes_its_folder_and_what_others_left_a_week_ago(
    root: Path, tmp_path: Path, further: dict[str, Any]
) -> None:
    names = ["0123456789abcdef", "fedcba9876543210", "of somebody else"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("content")
    for name in names[1:]:
        os.utime(tmp_path / name, (0, time.time() - 8 * 24 * 3600))
    merge(root, tmp_path, search={**make_params().search.model_dump(), "storage": "", "trials": 0}, **further)
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[0], "merged", names[2]]


def key_of(root: Path, base: Path, tasks: Sequence[Task]) -> str:
    experts = read_experts(base, {name: root / "models/selected" / name for name in EXPERTS})
    return inputs_key(experts, make_dev_set(tasks, [], 0, 0, 0), {"query": "", "document": ""})


def test_whatever_changes_a_score_changes_the_key_of_a_search(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, task = Path(shutil.copytree(root / "models/warm_up", tmp_path / "base")), make_task()
    keys = [key_of(root, base, [task])]
    assert key_of(root, base, [task]) == keys[0]
    same = {"p00": task.corpus["p00"], "p01": task.corpus["p01"]}
    doubled = [{**task.corpus, "p98": same[one], "p99": same[other]} for one, other in (("p00", "p01"), ("p01", "p00"))]
    for other in (replace(task, notes={"ignore_identical_ids": True}), *(replace(task, corpus=c) for c in doubled)):
        keys.append(key_of(root, base, [other]))
    for file in ("1_Pooling/config.json", "tokenizer_config.json"):
        with (base / file).open("a") as stream:
            stream.write(" ")
        keys.append(key_of(root, base, [task]))
    (base / "._stage.json").write_text("{}")
    assert key_of(root, base, [task]) == keys[-1], "hidden files are no part of the model"
    changes = {"compute_dtype": lambda: torch.float16, "hash_code": lambda *_: "other code"}
    for name, change in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"stm.merge.plan.{name}", change)
            keys.append(key_of(root, base, [task]))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("source", ["surrogate", "model"])
def test_the_interaction_of_two_weights_is_traced_and_decides_nothing(root: Path, tmp_path: Path, source: str) -> None:
    plain = merge(root, tmp_path / "plain")
    asked = {"experts": ["search", "nlu"], "step": 0.5, "source": source}
    trace = merge(root, tmp_path / source, interaction=asked)
    assert trace["decision"]["taken"]["weights"] == plain["decision"]["taken"]["weights"]
    assert len(trace["trials"]) == len(plain["trials"])
    found = trace["interaction"]
    assert found["experts"] == ["search", "nlu"]
    assert found["values"] == [0.0, 0.5, 1.0]
    assert list(found["held"]) == ["med_real"]
    assert [len(row) for row in found["scores"]] == [3, 3, 3]
    assert all(0 <= score <= 1 for row in found["scores"] for score in row if score is not None)
    assert found["share"] is None or 0 <= found["share"] <= 1


def test_the_interaction_of_an_unknown_expert_is_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    asked = {"experts": ["nlu", "nobody"], "step": 0.5, "source": "surrogate"}
    with pytest.raises(ParamsError, match=r"interaction\.experts names the expert 'nobody'; there are med_real, nlu"):
        merge(root, tmp_path, interaction=asked)
    for bad in (["nlu"], ["nlu", "nlu"]):
        with pytest.raises(ParamsError, match="two different experts"):
            make_params(interaction={**asked, "experts": bad})


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_weights_that_may_cancel_out_still_give_a_trace(root: Path, tmp_path: Path, method: str) -> None:
    search = {**make_params().search.model_dump(), "weights": {"low": -1, "high": 1, "step": 0.5}}
    asked = {"experts": ["search", "nlu"], "step": 0.5, "source": "model"}
    params = make_params(method=method, search=search, interaction=asked)
    folders = {name: root / "models/selected" / name for name in ("nlu", "search")}
    trace = merge_experts(params, root / "models/warm_up", folders, [make_task("one")], tmp_path / "merged", tmp_path)
    assert None in [score for row in trace["interaction"]["scores"] for score in row]
    assert trace["interaction"]["share"] is None
    write_json(tmp_path / "merge.json", trace)


def test_one_expert_has_no_interaction_and_is_merged_all_the_same(root: Path, tmp_path: Path) -> None:
    params = make_params(interaction={"source": "model", "step": 0.5})
    folders = {"nlu": root / "models/selected/nlu"}
    trace = merge_experts(params, root / "models/warm_up", folders, [make_task("one")], tmp_path / "merged", tmp_path)
    assert trace["interaction"] is None
    assert [trial["origin"] for trial in trace["trials"]] == ["uniform"]


def test_a_grid_is_gone_through_whole_and_each_point_once(root: Path, tmp_path: Path) -> None:
    weights = {"low": 0.5, "high": 1, "step": 0.5}
    search = {**make_params().search.model_dump(), "kind": "grid", "trials": 9, "weights": weights}
    folders = {name: root / "models/selected" / name for name in ("nlu", "search")}
    params, base = make_params(method="task_arithmetic", search=search), root / "models/warm_up"
    trace = merge_experts(params, base, folders, [make_task("one")], tmp_path / "merged", tmp_path)
    found = [tuple(trial["weights"].values()) for trial in trace["trials"] if trial["origin"] == "search"]
    assert sorted(found) == [(0.5, 1.0), (1.0, 0.5), (1.0, 1.0)], "and (0.5, 0.5) is the row of equal weights"


def test_the_interaction_is_around_the_model_that_is_taken(root: Path, tmp_path: Path) -> None:
    fixed = {"weights": {"nlu": 1.0, "search": 0.5}, "densities": {"nlu": 0.1, "search": 0.2}}
    asked = {"experts": ["nlu", "search"], "step": 0.5, "source": "model"}
    trace = merge(root, tmp_path, method="ties", **fixed, interaction=asked)
    assert trace["interaction"]["scores"][2][1] == trace["decision"]["taken"]["search"]


def test_a_search_that_cannot_search_its_space_is_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    search = make_params().search.model_dump()
    fine = {**search, "kind": "grid", "weights": {"low": 0, "high": 1, "step": 0.01}}
    with pytest.raises(ParamsError, match="grid of 'linear' has 1,030,301 points"):
        merge(root, tmp_path, search=fine)
    with pytest.raises(ParamsError, match="cma, which needs two coefficients"):
        make_space(make_params(method="task_arithmetic", search={**search, "kind": "cma"}), "task_arithmetic", ["a"])


def test_learned_weights_are_one_more_candidate(root: Path, tmp_path: Path) -> None:
    learning = {"granularity": "layer", "steps": 3, "learning_rate": 0.05, "pull": 0.1, "passages": 6}
    search = {**make_params().search.model_dump(), "trials": 0}
    trace = merge(root, tmp_path, search=search, learn=learning)
    (learned,) = [trial for trial in trace["trials"] if trial["origin"] == "learned"]
    assert learned["method"] == "task_arithmetic"
    assert set(learned["layers"]) == {"0", "1"}
    assert len(trace["learned_losses"]) == 3
    uniform = trace["trials"][0]["tokens"]  # with the choice of the prompts, made again for the model that is taken
    assert trace["cost"]["tokens"] == sum(trial["tokens"] for trial in trace["trials"]) + uniform


def test_a_further_method_of_mergekit_is_taken_by_name(root: Path, tmp_path: Path) -> None:
    trace = merge(root, tmp_path, seed=5, mergekit={"method": "karcher", "parameters": {"tol": 1e-4}})
    assert "parameters: tol 0.0001." in (tmp_path / "merged/README.md").read_text()
    assert [trial["method"] for trial in trace["trials"]] == ["linear", "mergekit:karcher"]
    assert trace["decision"]["taken"]["seed"] == trace["trials"][1]["seed"] == 5
    assert set(trace["decision"]["difference"]) == {"search", "holdout"}
    assert SentenceTransformer(str(tmp_path / "merged")).prompts == trace["prompts"]["chosen"]


def test_a_further_method_is_written_in_the_bases_type_where_a_machine_computes_in_bfloat16(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stm.encode.compute_dtype", lambda: torch.bfloat16)
    merge(root, tmp_path, mergekit={"method": "karcher"})
    tensors = load_file(tmp_path / "merged/model.safetensors")
    base = load_file(root / "models/warm_up/model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert torch.equal(tensors["norm.weight"], base["norm.weight"])


def test_fixed_weights_are_taken_without_a_search(root: Path, tmp_path: Path) -> None:
    trace = merge(root, tmp_path, weights={"nlu": 0.25, "search": 0.75})
    assert [trial["origin"] for trial in trace["trials"]] == ["uniform", "fixed"]
    assert trace["decision"]["taken"]["weights"] == {"med_real": 0.0, "nlu": 0.25, "search": 0.75}


def test_fixed_weights_of_an_unknown_expert_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="'nobody'; there are med_real, nlu, search"):
        merge(root, tmp_path, weights={"nobody": 1.0})
    with pytest.raises(ParamsError, match="sum to zero"):
        merge(root, tmp_path, weights={"nlu": 1.0, "search": -1.0})


def test_the_same_inputs_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        merge(root, tmp_path / name, method="dare_linear")
    one, two = ((tmp_path / name / "merged/model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_single_expert_is_merged_as_it_is(root: Path, tmp_path: Path) -> None:
    folders = {"nlu": root / "models/selected/nlu"}
    trace = merge_experts(make_params(), root / "models/warm_up", folders, [make_task()], tmp_path / "m", tmp_path)
    assert trace["decision"]["taken"]["weights"] == {"nlu": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "slurp"}, "merge.method"),
        ({"method": []}, "names no method"),
        ({"method": ["ties", "ties"]}, "twice"),
        ({"density": 0}, "merge.density"),
        ({"lambda": 0}, "merge.lambda"),
        ({"densty": 0.5}, "merge: no such setting: densty"),
        ({"densities": {"nlu": 0.5}}, "only together with weights"),
        ({"weights": {"nlu": 1.0}, "method": ["linear", "ties"]}, "exactly one method"),
        ({"weights": {"nlu": 9.0}}, "merge.weights.nlu"),
        ({"weights": {"nlu": 0.0, "search": 0.0}, "method": "task_arithmetic"}, "weights are all zero"),
        ({"weights": {"nlu": 1.0}, "densities": {"nlu": 0.2}}, "densities change nothing under linear"),
        ({"weights": {"nlu": 1.0}, "learn": LEARN}, "fixed weights search nothing"),
        ({"weights": {"nlu": 1.0}, "mergekit": {"method": "karcher"}}, "goes with neither weights nor learn"),
    ],
)
def test_params_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        make_params(**changes)


def test_params_name_exactly_the_methods_of_the_table() -> None:
    assert get_args(MethodName) == tuple(METHODS)
    assert get_args(ThinningMethod) == tuple(name for name, row in METHODS.items() if row.uses_density)


def test_a_bad_expert_stops_the_stage_with_one_sentence_and_leaves_the_old_model(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tmp_path / "project"
    for name in ("models/warm_up", "models/selected", "data"):
        shutil.copytree(root / name, project / name)
    monkeypatch.chdir(project)
    weights = project / "models/selected/nlu/adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "layers.1.self_attn.q_proj.lora_B" in name)
    save_file({**tensors, name: tensors[name] * float("nan")}, weights)
    (project / "models/merged").mkdir()
    (project / "models/merged/old").write_text("old")
    (project / "params.yaml").write_text(yaml.safe_dump({"merge": make_params().model_dump(by_alias=True)}))
    monkeypatch.setattr("sys.argv", ["merge"])
    with pytest.raises(SystemExit) as stopped:
        run_stage(stage.main)
    assert stopped.value.code not in (0, None)
    assert name in capsys.readouterr().err
    assert [path.name for path in (project / "models/merged").iterdir()] == ["old"]
    assert not (project / "reports").exists()


def test_search_params_out_of_range_are_refused() -> None:
    good = make_params().search.model_dump()
    for bad in (
        {"kind": "guess"}, {"trials": -1}, {"weights": {"low": 1, "high": 0, "step": 0.1}}, {"rungs": [1.0]},
    ):  # fmt: skip
        with pytest.raises(ParamsError, match=f"merge.search.{next(iter(bad))}"):
            make_params(search={**good, **bad})
    with pytest.raises(ParamsError, match=r"merge\.search\.densities\.low"):
        make_params(search={**good, "densities": {"low": 0, "high": 1, "step": 0.1}})


class Letters:
    """An encoder that counts the last letters of a text; the prompt "noise" hides them."""

    def __init__(self) -> None:
        self.tokens = 0
        self.prompts: list[str] = []

    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "") -> Floats:
        self.tokens += len(texts)
        self.prompts.append(prompt)
        rows = np.zeros((len(texts), 26), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for letter in "zzzzzzzzzzz" if prompt == "noise" else text[-3:]:
                row[ord(letter) - 97] += 1
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


def test_halves_are_equal_disjoint_and_stable() -> None:
    task = make_task(queries=7)
    halves = cut_in_two(task, seed=1)
    sizes = [list(halves.values()).count(half) for half in HALVES]
    assert sizes == [4, 3]
    assert halves == cut_in_two(task, seed=1)
    assert any(cut_in_two(task, seed=seed) != halves for seed in range(2, 6))


def test_a_perfect_encoder_scores_one_on_both_halves() -> None:
    dev = make_dev_set([make_task("one"), make_task("two")], [], 0, 0, seed=0)
    scores = score_model(dev, Letters(), {"query": "", "document": ""})
    assert scores.mean("search") == scores.mean("holdout") == 1.0
    assert scores.tasks_overall() == {"one": 1.0, "two": 1.0}


def test_passages_shared_by_tasks_are_encoded_once() -> None:
    one = make_task("one")
    two = Task("two", "general", one.corpus, one.queries, one.qrels)
    dev = make_dev_set([two, one], [], 0, 0, seed=0)
    assert len(dev.texts) == len(one.corpus)
    assert [task.name for task in dev.tasks] == ["one", "two"]
    assert len(query_texts(dev)) == 2 * len(one.queries)


def test_scores_follow_the_rows_of_the_embeddings() -> None:
    dev = make_dev_set([make_task("one", queries=2, passages=2), make_task("two", queries=2, passages=2)], [], 0, 0, 0)
    eye = np.eye(4, dtype=np.float32)
    swapped = eye[[0, 1, 3, 2]]  # the second task's queries each look like the other's passage
    assert score_embeddings(dev, eye, eye).tasks_overall() == {"one": 1.0, "two": 1.0}
    assert score_embeddings(dev, swapped, eye).tasks_overall()["two"] == pytest.approx(1 / np.log2(3))


def test_tiny_dev_tasks_are_refused() -> None:
    with pytest.raises(DataError, match="at least two"):
        make_dev_set([make_task("one", queries=1)], [], 0, 0, 0)


def test_prompts_are_scored_once_each_and_passages_once() -> None:
    dev, encoder = make_dev_set([make_task()], [], 0, 0, 0), Letters()
    candidates = {"base": {"query": "noise", "document": ""}, "a": {"query": "", "document": ""}, "b": {"query": ""}}
    scored = score_prompts(dev, encoder, candidates)
    assert [row.proposed_by for row in scored] == [("base",), ("a", "b")]
    assert encoder.prompts == ["", "noise", ""]
    assert best_prompt(scored).query == ""
    assert scored[1].scores.mean("holdout") == 1.0
