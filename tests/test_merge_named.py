"""mergekit's further methods by name."""

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
    write_named(merge_by_name(experts, method, parameters), PROMPTS, tmp_path / "named", "# A card")
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
    write_named(merge_by_name(experts, method, {}), PROMPTS, tmp_path / "named", "# A card")
    model = SentenceTransformer(str(tmp_path / "named"))
    assert model.prompts == PROMPTS
    assert np.isfinite(model.encode_query(["hello"])).all()
    assert (tmp_path / "named/README.md").read_text() == "# A card"


def test_unknown_names_are_refused_with_the_known_ones(experts: Experts) -> None:
    with pytest.raises(ParamsError, match=r"no method 'blend'.*karcher"):
        merge_by_name(experts, "blend", {})
    with pytest.raises(ParamsError, match=r"weight names \['a', 'x'\]"):
        merge_by_name(experts, "linear", {"weight": {"a": 1.0, "x": 1.0}})
    with pytest.raises(ParamsError, match="mergekit refuses"):
        merge_by_name(experts, "slerp", {"nonsense": 1.0})
