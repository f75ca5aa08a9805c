"""mergekit's further methods by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from stm.errors import ParamsError
from stm.merge.experts import Experts, read_experts
from stm.merge.materialise import materialise
from stm.merge.named import merge_by_name, write_named
from stm.merge.recipe import Recipe
from stm.models import load_model
from stm.rounding import add_delta
from tests.pico import pico_adapter, pico_backbone

PROMPTS = {"query": "Find: ", "document": ""}


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Experts:
    folder = tmp_path_factory.mktemp("merge_named")
    base = pico_backbone(folder / "base")
    folders = {name: pico_adapter(base, folder / name, seed=seed) for seed, name in enumerate(["a", "b", "c"])}
    return read_experts(base, folders)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_methods_that_both_have_give_the_same_model(experts: Experts, tmp_path: Path, method: str) -> None:
    weights = {"a": 0.5, "b": 0.3, "c": 0.4}
    parameters: dict[str, Any] = {"weight": weights, **({"density": 0.5} if method == "ties" else {})}
    write_named(experts, merge_by_name(experts, method, parameters), PROMPTS, tmp_path / "named", "# A card")
    materialise(experts, Recipe(method, weights, dict.fromkeys("abc", 0.5)), PROMPTS, tmp_path / "ours")
    ours, named = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "named"))
    assert ours.keys() == named.keys()
    different = total = 0
    for name, tensor in ours.items():
        different += int((~torch.isclose(tensor, named[name], rtol=1e-4, atol=1e-6)).sum())
        total += tensor.numel()
    # Subtracting full weights rounds deltas, so that TIES may trim another value where magnitudes are almost equal.
    assert different <= (0 if method != "ties" else total * 1e-3)


@pytest.mark.parametrize("method", ["karcher", "sce", "model_stock"])
def test_further_methods_write_a_whole_model(experts: Experts, tmp_path: Path, method: str) -> None:
    write_named(experts, merge_by_name(experts, method, {}), PROMPTS, tmp_path / "named", "# A card")
    model = SentenceTransformer(str(tmp_path / "named"))
    assert model.prompts == PROMPTS
    assert np.isfinite(model.encode_query(["hello"])).all()
    assert (tmp_path / "named/README.md").read_text() == "# A card"


@pytest.mark.parametrize(
    ("method", "parameters"), [("slerp", {"t": 0.3}), ("nearswap", {"t": 0.3}), ("arcee_fusion", {})]
)
def test_methods_of_two_models_go_from_the_first_expert_to_the_second(
    experts: Experts, method: str, parameters: dict[str, float]
) -> None:
    with pytest.raises(ParamsError, match=rf"'{method}' goes from one expert to another, and there are 3 \(a, b, c\)"):
        merge_by_name(experts, method, parameters)
    two = replace(experts, adapters={name: experts.adapters[name] for name in ("a", "b")})
    merged = dict(merge_by_name(two, method, parameters).named_parameters())
    first, second = (dict(load_model(experts.adapters[name].folder).named_parameters()) for name in ("a", "b"))
    changed = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    assert any(not torch.allclose(merged[name], first[name], atol=1e-6) for name in changed)
    if method == "slerp":
        start = dict(merge_by_name(two, method, {"t": 0.0}).named_parameters())
        assert all(torch.allclose(start[name], first[name], atol=1e-5) for name in changed)


def test_a_merge_of_a_bfloat16_base_is_written_in_its_type_as_it_was_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pico_backbone(tmp_path / "base", dtype=torch.bfloat16)
    tensors = load_file(base / "model.safetensors")
    halved = read_experts(base, {name: pico_adapter(base, tmp_path / name, seed=i) for i, name in enumerate("ab")})
    model = merge_by_name(halved, "karcher", {})
    with monkeypatch.context() as patch:
        patch.setattr("stm.merge.named._round", lambda *_: None)
        exact = merge_by_name(halved, "karcher", {})
    scored = {name: parameter.clone() for name, parameter in model.named_parameters()}
    expected = {
        key: add_delta(tensors[key].float(), tensor - tensors[key].float(), torch.bfloat16, f"0.model.{key}").bfloat16()
        for key, tensor in exact[0].model.state_dict().items()
    }
    write_named(halved, model, PROMPTS, tmp_path / "named", "# A card")
    written = load_file(tmp_path / "named/model.safetensors")
    assert written.keys() == load_file(base / "model.safetensors").keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in written.items())
    assert json.loads((tmp_path / "named/config.json").read_text())["dtype"] == "bfloat16"
    loaded = load_model(tmp_path / "named").named_parameters()
    assert all(torch.equal(parameter, scored[name]) for name, parameter in loaded)


def test_unknown_names_are_refused_with_the_known_ones(experts: Experts) -> None:
    with pytest.raises(ParamsError, match=r"no method 'blend'.*karcher"):
        merge_by_name(experts, "blend", {})
    with pytest.raises(ParamsError, match=r"weight names \['a', 'x'\]"):
        merge_by_name(experts, "linear", {"weight": {"a": 1.0, "x": 1.0}})
    with pytest.raises(ParamsError, match="mergekit refuses"):
        merge_by_name(experts, "karcher", {"nonsense": 1.0})
