"""Adapter folders as deltas: equality with PEFT at run time, and everything that is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel

from stm.deltas import WEIGHTS_FILE, Adapter, add_adapter, match_names, read_adapter
from stm.errors import ModelError
from stm.model_hash import ADAPTER_CONFIG
from tests.pico import pico_adapter, pico_backbone


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_backbone(tmp_path_factory.mktemp("deltas") / "base")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    return pico_adapter(base, tmp_path / "adapter")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / ADAPTER_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, **changes: torch.Tensor) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({**tensors, **changes}, folder / WEIGHTS_FILE)


def random_lora(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter with random factors, made and saved by PEFT with these settings."""
    torch.manual_seed(7)
    model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(**settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]},
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {"q_proj": 2}},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj"],
            "alpha_pattern": {"layers.1.self_attn.v_proj": 3},
        },
        {"r": 3, "lora_alpha": 1, "target_modules": ["embed_tokens", "k_proj"]},
    ],
    ids=["plain", "rslora", "rank_pattern", "alpha_pattern", "embedding"],
)
def test_adding_a_delta_equals_peft_merging_it(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = random_lora(base, tmp_path / "adapter", **settings)
    expected = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(folder)).merge_and_unload().state_dict()
    model = AutoModel.from_pretrained(base)
    add_adapter(model, read_adapter(folder))
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def test_reading_gives_sorted_names_and_the_base(base: Path, adapter: Path) -> None:
    read = read_adapter(adapter)
    assert list(read.names) == sorted(read.names)
    assert read.base == str(base)
    assert read.delta(read.names[0]).dtype == torch.float32


def test_prefixes_on_either_side_are_matched(adapter: Path) -> None:
    read = read_adapter(adapter)
    bare = list(read.names)
    for prefix in ("", "model.", "0.model."):
        assert match_names(read, [prefix + name for name in bare]) == {name: prefix + name for name in bare}
    causal = Adapter(read.folder, read.base, {f"model.{name}": factors for name, factors in read.factors.items()})
    assert match_names(causal, bare) == {f"model.{name}": name for name in bare}


def test_a_tensor_that_the_base_lacks_is_named(adapter: Path) -> None:
    read = read_adapter(adapter)
    with pytest.raises(ModelError, match=read.names[-1]):
        match_names(read, read.names[:-1])
    with pytest.raises(ModelError, match="of another base"):
        match_names(read, ["nothing.weight"])


def test_another_shape_is_refused_and_changes_nothing(base: Path, adapter: Path) -> None:
    model = AutoModel.from_pretrained(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.layers[1].mlp.up_proj = nn.Linear(32, 60, bias=False)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight.*\[64, 32\].*\[60, 32\]"):
        add_adapter(model, read_adapter(adapter))
    name = "layers.0.self_attn.q_proj.weight"
    assert torch.equal(model.state_dict()[name], before[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "biases"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
        ({"peft_type": "IA3"}, "only peft_type LORA"),
        ({"r": 9}, "rank 9"),
    ],
)
def test_what_is_no_plain_delta_is_refused(adapter: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(adapter, **changes)
    with pytest.raises(ModelError, match=message):
        read_adapter(adapter)


def test_a_dora_adapter_of_peft_is_refused(base: Path, tmp_path: Path) -> None:
    folder = random_lora(base, tmp_path / "dora", r=2, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(ModelError, match="DoRA"):
        read_adapter(folder)
    edit_config(folder, use_dora=False)
    with pytest.raises(ModelError, match="DoRA magnitudes"):
        read_adapter(folder)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_names_the_tensor(adapter: Path, bad: float) -> None:
    key = "base_model.model.layers.1.self_attn.k_proj.lora_B.weight"
    tensor = load_file(adapter / WEIGHTS_FILE)[key]
    tensor[0, 0] = bad
    edit_tensors(adapter, **{key: tensor})
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.k_proj\.lora_B.*NaN or infinity"):
        read_adapter(adapter)


def test_missing_and_broken_files_are_named(adapter: Path) -> None:
    weights = (adapter / WEIGHTS_FILE).read_bytes()
    (adapter / WEIGHTS_FILE).write_bytes(weights[:100])
    with pytest.raises(ModelError, match="not a readable safetensors"):
        read_adapter(adapter)
    (adapter / WEIGHTS_FILE).unlink()
    with pytest.raises(ModelError, match=f"{WEIGHTS_FILE} does not exist"):
        read_adapter(adapter)
    (adapter / ADAPTER_CONFIG).write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        read_adapter(adapter)
    (adapter / ADAPTER_CONFIG).unlink()
    with pytest.raises(ModelError, match=f"cannot read .*{ADAPTER_CONFIG}"):
        read_adapter(adapter)


def test_half_a_pair_and_foreign_tensors_are_refused(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS_FILE)
    save_file({**tensors, "base_model.model.norm.weight": torch.ones(32)}, adapter / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="no LoRA factor"):
        read_adapter(adapter)
    tensors.pop("base_model.model.layers.0.mlp.up_proj.lora_A.weight")
    save_file(tensors, adapter / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"layers\.0\.mlp\.up_proj.*expected"):
        read_adapter(adapter)
    save_file({}, adapter / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="no factors"):
        read_adapter(adapter)
