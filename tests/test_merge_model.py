"""Experts checked, mixed in memory and written: the merged model equals the adapters applied at run time."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModel

from stm.deltas import WEIGHTS_FILE
from stm.errors import ModelError, STMError
from stm.merge.experts import Experts, hash_experts, read_experts
from stm.merge.materialise import materialise
from stm.merge.methods import METHODS, Part, find_method, merge_parts
from stm.merge.mixer import Mixer
from stm.merge.recipe import Recipe
from stm.merge.shards import find_shards, rewrite_shard
from stm.merge.similarity import compare_experts
from stm.model_hash import ADAPTER_CONFIG
from stm.models import load_model
from stm.rounding import add_delta
from stm.warm_up import fold_adapter
from tests.pico import pico_adapter, pico_backbone

TEXTS = ["an ear", "the lungs", "a long text about nothing in particular"]
PROMPTS = {"query": "Find it\nQuery: ", "document": ""}
UNIFORM = Recipe("linear", dict.fromkeys(["med_real", "nlu", "search"], 1 / 3))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge_model")
    base = pico_backbone(folder / "base")
    for index, name in enumerate(["search", "med_real", "nlu"]):
        pico_adapter(base, folder / name, rank=2 + index, seed=index)
    return folder


@pytest.fixture(scope="module")
def experts(root: Path) -> Experts:
    return read_experts(root / "base", {name: root / name for name in ("search", "med_real", "nlu")})


def copy(root: Path, tmp_path: Path, name: str = "nlu") -> Path:
    return Path(shutil.copytree(root / name, tmp_path / name))


def test_experts_are_sorted_and_may_have_different_ranks(experts: Experts) -> None:
    assert experts.names == ["med_real", "nlu", "search"]
    ranks = {next(iter(adapter.factors.values())).a.shape[0] for adapter in experts.adapters.values()}
    assert ranks == {2, 3, 4}
    assert len(hash_experts(experts)) == 64


def test_merged_model_equals_adapters_applied_at_run_time(root: Path, experts: Experts, tmp_path: Path) -> None:
    """PEFT runs several active adapters side by side, each with its own scale; nothing of ours is in that pass."""
    weights = {"med_real": 0.7, "nlu": 0.25, "search": 0.4}
    runtime: Any = PeftModel.from_pretrained(
        AutoModel.from_pretrained(root / "base"), str(root / "nlu"), adapter_name="nlu"
    )
    for name in ("med_real", "search"):
        runtime.load_adapter(str(root / name), adapter_name=name)
    runtime.base_model.set_adapter(list(weights))
    module: Any
    for module in runtime.modules():
        if hasattr(module, "scaling") and hasattr(module, "lora_A"):
            for name, weight in weights.items():
                module.scaling[name] *= weight
    materialise(experts, Recipe("task_arithmetic", weights), PROMPTS, tmp_path / "merged")
    merged = AutoModel.from_pretrained(tmp_path / "merged")
    tokens = torch.arange(2, 40).reshape(2, 19)
    with torch.inference_mode():
        expected = runtime(input_ids=tokens).last_hidden_state
        found = merged(input_ids=tokens).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", list(METHODS))
def test_mixed_in_memory_is_what_is_written(root: Path, experts: Experts, tmp_path: Path, method: str) -> None:
    recipe = Recipe(
        method, {"med_real": 0.7, "nlu": 0.2, "search": 0.4}, {"nlu": 0.5, "search": 0.3}, scale=1.5, seed=3
    )
    materialise(experts, recipe, PROMPTS, tmp_path / "merged")
    written = SentenceTransformer(str(tmp_path / "merged"))
    model = load_model(root / "base")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with Mixer(model, experts) as mixer:
        mixer.mix(UNIFORM)  # what was mixed before leaves no trace
        mixer.mix(recipe)
        for name, tensor in written.state_dict().items():
            assert torch.equal(tensor, model.state_dict()[name]), name
    for name, tensor in before.items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_the_product_of_joined_factors_is_the_sum_of_deltas(experts: Experts, method: str) -> None:
    recipe = Recipe(method, {"med_real": 0.7, "nlu": 0.2, "search": 0.4}, scale=1.5)
    for tensor in experts.targets:
        parts = [Part(a.delta(tensor), recipe.weights[name], 1.0, 0) for name, a in experts.adapters.items()]
        expected = 1.5 * merge_parts(find_method(method), parts)
        delta = recipe.merged_delta(experts.adapters, tensor)
        assert delta is not None
        torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-6)


def test_base_comes_back_after_an_error(root: Path, experts: Experts) -> None:
    model = load_model(root / "base")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def mix_and_fail() -> None:
        with Mixer(model, experts) as mixer:
            mixer.mix(Recipe("linear", {"nlu": 1.0}))
            mixer.mix(Recipe("linear", {"nobody": 1.0}))

    with pytest.raises(KeyError):
        mix_and_fail()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_one_expert_alone_is_that_expert(root: Path, experts: Experts, tmp_path: Path) -> None:
    materialise(experts, Recipe("linear", {"nlu": 1.0}), PROMPTS, tmp_path / "merged")
    merged = SentenceTransformer(str(tmp_path / "merged")).encode(TEXTS)
    np.testing.assert_allclose(merged, load_model(root / "nlu").encode(TEXTS), atol=1e-6)


def test_written_folder_is_plain_and_complete(root: Path, experts: Experts, tmp_path: Path) -> None:
    materialise(experts, UNIFORM, PROMPTS, tmp_path / "merged")
    config = json.loads((tmp_path / "merged/config_sentence_transformers.json").read_text())
    assert config["prompts"] == PROMPTS
    assert config["default_prompt_name"] is None
    assert (experts.base / "prompts.json").exists()
    assert not (tmp_path / "merged/prompts.json").exists(), "the base's prompts are not those chosen"
    assert not [p for p in (tmp_path / "merged").rglob("*") if p.suffix in {".py", ".bin", ".pt"}]
    assert [p.name for p in (tmp_path / "merged").rglob("*.md")] == ["README.md"]
    card = (tmp_path / "merged/README.md").read_text()
    assert json.dumps(PROMPTS["query"]) in card
    assert 'SentenceTransformer(".")' in card
    model = SentenceTransformer(str(tmp_path / "merged"))
    np.testing.assert_allclose(
        model.encode_query(TEXTS), model.encode([PROMPTS["query"] + text for text in TEXTS]), atol=1e-6
    )
    transformer: Any = model[0]
    assert transformer.auto_model.config.is_causal is False


def test_the_cards_lines_run_in_the_folder_of_the_card(
    experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    materialise(experts, UNIFORM, PROMPTS, tmp_path / "model of mine")
    (lines,) = re.findall(r"```python\n(.*?)```", (tmp_path / "model of mine/README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "model of mine")
    exec(lines, {})
    assert "tensor([[" in capsys.readouterr().out


def test_same_recipe_same_bytes(experts: Experts, tmp_path: Path) -> None:
    recipe = Recipe("dare_ties", {"med_real": 0.7, "nlu": 0.2}, {"med_real": 0.3, "nlu": 0.5}, seed=1)
    for name in ("one", "two"):
        materialise(experts, recipe, PROMPTS, tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert files
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_shards_keep_type_and_metadata(root: Path, tmp_path: Path) -> None:
    """Sharded bf16 base: every shard is rewritten in its own type and file, with fp32 arithmetic in between."""
    base = Path(shutil.copytree(root / "base", tmp_path / "base"))
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(base / "model.safetensors").items()}
    names = sorted(tensors)
    (base / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, chosen in parts.items():
        save_file({name: tensors[name] for name in chosen}, base / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, chosen in parts.items() for name in chosen}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    folders = {name: copy(root, tmp_path, name) for name in ("nlu", "search")}
    for folder in folders.values():
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
        (folder / ADAPTER_CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    experts = read_experts(base, folders)
    recipe = Recipe("task_arithmetic", {"nlu": 0.5, "search": 0.5})
    materialise(experts, recipe, PROMPTS, tmp_path / "merged")
    for file, chosen in parts.items():
        merged = load_file(tmp_path / "merged" / file)
        assert sorted(merged) == sorted(chosen)
        for name, tensor in merged.items():
            delta = recipe.merged_delta(experts.adapters, name)
            exact = tensors[name] if delta is None else add_delta(tensors[name], delta, torch.bfloat16, name).bfloat16()
            assert torch.equal(tensor, exact), name
    (base / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        read_experts(base, folders)


def kept_share(found: dict[str, Tensor], base: dict[str, Tensor], delta: dict[str, Tensor]) -> float:
    """How far the weights moved along the delta, as a share of its length."""
    moved = sum(((found[name].float() - base[name].float()) * delta[name]).sum() for name in delta)
    return float(moved / sum((part**2).sum() for part in delta.values()))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_what_is_mixed_written_folded_and_alone_has_the_same_numbers(tmp_path: Path, kind: torch.dtype) -> None:
    base = pico_backbone(tmp_path / "base", dtype=kind)
    experts = read_experts(base, {"a": pico_adapter(base, tmp_path / "a", scale=0.0015)})
    recipe = Recipe("task_arithmetic", {"a": 1.0})
    materialise(experts, recipe, PROMPTS, tmp_path / "merged")
    fold_adapter(tmp_path / "a", base, tmp_path / "folded")
    merged, folded = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "folded"))
    model = load_model(base)
    with Mixer(model, experts) as mixer:
        mixer.mix(recipe)
        state = {name: tensor.clone() for name, tensor in model[0].model.state_dict().items()}
    alone = load_model(tmp_path / "a")[0].model.state_dict()
    for name in experts.targets:
        assert merged[name].dtype == folded[name].dtype == kind
        for other in (folded, state, alone):
            assert torch.equal(other[name].float(), merged[name].float()), name


def test_deltas_below_the_resolution_of_a_base_in_bfloat16_are_kept(tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base", dtype=torch.bfloat16)
    experts = read_experts(base, {"a": pico_adapter(base, tmp_path / "a", scale=0.0015)})
    materialise(experts, Recipe("task_arithmetic", {"a": 1.0}), PROMPTS, tmp_path / "merged")
    old, merged = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    delta = {name: experts.adapters["a"].delta(name) for name in experts.targets}
    nearest = {name: (old[name].float() + delta[name]).bfloat16() for name in delta}
    assert kept_share(nearest, old, delta) < 0.6
    assert kept_share(merged, old, delta) == pytest.approx(1, abs=0.15)


def test_the_roundings_of_a_warm_up_and_of_a_merge_have_nothing_in_common() -> None:
    torch.manual_seed(0)
    weight, *deltas = torch.randn(3, 200, 300)
    weight, errors = weight.bfloat16().float(), []
    for delta in deltas:
        exact = weight + delta * 2.0**-10
        weight = add_delta(weight, delta * 2.0**-10, torch.bfloat16, "layers.0.mlp.up_proj.weight")
        errors.append((weight - exact).flatten())
    assert (
        abs(float(torch.nn.functional.cosine_similarity(errors[0], errors[1], dim=0))) < 0.02
    )  # five standard deviations


def test_rewriting_without_change_is_the_same_file(root: Path, tmp_path: Path) -> None:
    (shard,) = find_shards(root / "base")
    rewrite_shard(shard, tmp_path / "copy.safetensors", lambda _, tensor: tensor, shard.shapes)
    assert (tmp_path / "copy.safetensors").read_bytes() == shard.path.read_bytes()
    rewrite_shard(shard, tmp_path / "copy.safetensors", lambda _, tensor: tensor, set())
    assert (tmp_path / "copy.safetensors").read_bytes() == shard.path.read_bytes()


def test_a_tensor_of_a_type_without_fractions_is_not_added_to(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2, dtype=torch.int8)}, tmp_path / "model.safetensors")
    (shard,) = find_shards(tmp_path)
    with pytest.raises(ModelError, match="'x' has the type I8; deltas are added to F64, F32, F16, BF16 only"):
        rewrite_shard(shard, tmp_path / "copy.safetensors", lambda _, tensor: tensor, {"x"})


def test_task_vectors_are_compared_exactly(experts: Experts) -> None:
    table = compare_experts(experts.adapters)
    vectors = {n: torch.cat([a.delta(t).flatten() for t in a.names]) for n, a in experts.adapters.items()}
    assert table["nlu"]["norm"] == pytest.approx(float(vectors["nlu"].norm()), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(vectors["nlu"], vectors["search"], dim=0)
    assert table["nlu"]["cosine_search"] == pytest.approx(float(cosine), abs=1e-4)


def test_different_targets_are_refused_with_the_difference(root: Path, tmp_path: Path) -> None:
    folder = copy(root, tmp_path)
    tensors = load_file(folder / WEIGHTS_FILE)
    dropped = "base_model.model.layers.1.mlp.up_proj.lora_"
    save_file({k: v for k, v in tensors.items() if not k.startswith(dropped)}, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"'search'.*only 'search' changes 'layers\.1\.mlp\.up_proj\.weight'"):
        read_experts(root / "base", {"search": root / "search", "nlu": folder})


def test_another_architecture_is_refused_with_the_difference(root: Path, tmp_path: Path) -> None:
    other = pico_backbone(tmp_path / "other", seed=5)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rope_theta_extra": 7}))
    folder = pico_adapter(other, tmp_path / "adapter")
    with pytest.raises(ModelError, match="rope_theta_extra=7"):
        read_experts(root / "base", {"x": folder})


def test_the_same_architecture_with_other_weights_is_refused(root: Path, tmp_path: Path) -> None:
    other = pico_backbone(tmp_path / "other", seed=5)
    with pytest.raises(ModelError, match="whose weights differ"):
        read_experts(root / "base", {"x": pico_adapter(other, tmp_path / "adapter")})


def test_a_copy_of_the_base_is_the_same_base(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "base", tmp_path / "copy")
    assert read_experts(tmp_path / "copy", {"nlu": root / "nlu"}).names == ["nlu"]


def test_a_base_that_is_not_here_is_compared_by_name(root: Path, tmp_path: Path) -> None:
    folder = copy(root, tmp_path)
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "gone/somewhere"}))
    with pytest.raises(ModelError, match="of the base 'gone/somewhere'"):
        read_experts(root / "base", {"nlu": folder})
    (folder / ADAPTER_CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": "gone/base"}))
    assert read_experts(root / "base", {"nlu": folder}).names == ["nlu"]


def test_factors_of_another_width_are_refused_with_both_shapes(root: Path, tmp_path: Path) -> None:
    folder = copy(root, tmp_path)
    tensors = load_file(folder / WEIGHTS_FILE)
    name = next(name for name in tensors if "layers.0.mlp.up_proj.lora_A" in name)
    save_file({**tensors, name: tensors[name][:, :8].contiguous()}, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"with shape \[64, 8\], the base has \[64, 32\]"):
        read_experts(root / "base", {"nlu": folder})


def test_another_vocabulary_is_refused_with_both_sizes(root: Path, tmp_path: Path) -> None:
    folder = copy(root, tmp_path)
    tokenizer = json.loads((root / "base/tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["extra"] = 258
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"different vocabularies \(259 and 258 entries\)"):
        read_experts(root / "base", {"nlu": folder})


def test_an_expert_that_changes_nothing_is_refused(root: Path, tmp_path: Path) -> None:
    folder = copy(root, tmp_path)
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({k: v * ("lora_A" in k) for k, v in tensors.items()}, folder / WEIGHTS_FILE)
    with pytest.raises(ModelError, match="'nlu' changes nothing"):
        read_experts(root / "base", {"nlu": folder})


def test_no_experts_and_no_safetensors_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no experts"):
        read_experts(root / "base", {})
    base = Path(shutil.copytree(root / "base", tmp_path / "base"))
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors"):
        read_experts(base, {"nlu": root / "nlu"})


def test_a_truncated_base_is_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(root / "base", tmp_path / "base"))
    data = (base / "model.safetensors").read_bytes()
    for size in (len(data) - 1, 20, 3):
        (base / "model.safetensors").write_bytes(data[:size])
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            read_experts(base, {"nlu": root / "nlu"})


def test_custom_code_is_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(root / "base", tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ModelError, match="auto_map"):
        read_experts(base, {"nlu": root / "nlu"})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", '{"a":', "config.json is not JSON"),
        ("model.safetensors.index.json", "{", "index.json is not JSON"),
        ("model.safetensors.index.json", "{}", "names no weights"),
        ("model.safetensors.index.json", '{"weight_map": []}', "names no weights"),
    ],
)
def test_a_broken_file_of_the_base_is_one_sentence(
    root: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    base = Path(shutil.copytree(root / "base", tmp_path / "base"))
    (base / name).write_text(text)
    with pytest.raises(STMError, match=message):
        read_experts(base, {"nlu": root / "nlu"})
