"""Training in bfloat16 with float32 factors: no delta is lost in rounding.

Processors without bfloat16 instructions emulate them, which is slow but the same function.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stm.files import sha256_tree
from stm.models import FusedRMSNorm, compute_in, fuse_norms, load_model, saved_type
from stm.rounding import draw_noise, round_by_chance
from stm.schema import write_rows
from stm.train import loop
from stm.train.expert import Share, train_expert
from stm.train.lora import attach
from tests.pico import pico_backbone
from tests.test_train import PARAMS, broken_off_after, train
from tests.test_train_bad_input import rows

BF16 = torch.bfloat16


def test_rounding_by_chance_keeps_a_delta_far_below_the_resolution() -> None:
    torch.manual_seed(0)
    weight = torch.randn(61).to(BF16).float()
    exact = weight + weight.abs() * 2.0**-12  # a sixteenth to a thirty-second of a step
    assert torch.equal(exact.to(BF16).float(), weight), "rounding to nearest loses it"
    noise = draw_noise(torch.Size((20_001, 61)), torch.device("cpu"))
    assert (int(noise.min()), int(noise.max())) == (0, (1 << 16) - 1)
    drawn, kept = exact.expand(20_001, 61).clone(), weight.expand(20_001, 61).clone()
    round_by_chance(drawn, noise)
    assert torch.equal(drawn.to(BF16).float(), drawn)
    assert ((drawn.double().mean(0) - exact.double()).abs() / (exact - weight).double().abs()).max() < 0.2
    round_by_chance(kept, noise)
    assert torch.equal(kept, weight.expand(20_001, 61))


@pytest.mark.parametrize("key", ["dtype", "torch_dtype", ""])
def test_the_type_of_saved_weights_is_read_under_the_key_of_transformers_4_too(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(f'{{"{key}": "bfloat16"}}')
    assert saved_type(tmp_path) == (BF16 if key else torch.float32)


def test_training_in_bfloat16_follows_that_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pico_backbone(tmp_path / "base")
    write_rows(rows(32), tmp_path / "rows.parquet")
    reports, deltas, params = [], [], PARAMS.model_copy(update={"learning_rate": 1e-3})
    for name, dtype in (("float32", torch.float32), ("bfloat16", BF16)):
        monkeypatch.setattr(loop, "compute_dtype", lambda dtype=dtype: dtype)
        out = tmp_path / name / "out"
        reports.append(train_expert(base, [Share(tmp_path / "rows.parquet")], params, out, tmp_path / "work", "pico"))
        tensors = load_file(out / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        deltas.append(torch.cat([tensors[key].flatten() for key in sorted(tensors) if "lora_B" in key]))
    for exact, rounded in zip(reports[0]["history"], reports[1]["history"], strict=True):
        assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.005)
    assert torch.nn.functional.cosine_similarity(deltas[0], deltas[1], dim=0) > 0.99


@pytest.mark.usefixtures("in_float32")
def test_the_kernel_of_a_gpus_optimizer_trains_the_same_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, losses = pico_backbone(tmp_path / "base"), []
    for name, fused in (("plain", False), ("fused", True)):
        monkeypatch.setattr(
            loop, "make_optimizer",
            lambda parameters, _, fused=fused: torch.optim.AdamW(parameters.values(), weight_decay=0.01, fused=fused),
        )  # fmt: skip
        report = train(base, tmp_path / name / "out", tmp_path / "work", max_steps=12, epochs=4)
        losses.append([entry["loss"] for entry in report["history"]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert sum(losses[1][-3:]) < 0.9 * sum(losses[1][:3])


def test_a_training_in_bfloat16_that_stopped_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pico_backbone(tmp_path / "base")
    monkeypatch.setattr(loop, "compute_dtype", lambda: BF16)
    changes = {"dev_rows": 4, "dev_steps": 3, "max_steps": 8, "epochs": 4}
    train(base, tmp_path / "1/whole", tmp_path / "w", **changes)
    for stop in (3, 5):  # after a measurement, and between two
        with broken_off_after(stop):
            train(base, tmp_path / f"{stop}/resumed", tmp_path / f"w{stop}", **changes)
        train(base, tmp_path / f"{stop}/resumed", tmp_path / f"w{stop}", **changes)
        assert sha256_tree(tmp_path / "1/whole") == sha256_tree(tmp_path / f"{stop}/resumed"), "with all losses"


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "phi3", "mistral"])
def test_a_model_in_bfloat16_has_the_vectors_of_its_float32_form(tmp_path: Path, family: str) -> None:
    model = load_model(pico_backbone(tmp_path / "base", family))
    texts = ["one text", "another and longer text"]
    expected = torch.tensor(model.encode(texts))
    fused = sum(type(m).__name__.endswith("RMSNorm") for m in model.modules())
    compute_in(model, BF16)
    fuse_norms(model)
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {p.dtype for name, p in model.named_parameters() if name in linear} == {BF16}
    assert {p.dtype for name, p in model.named_parameters() if name not in linear} == {torch.float32}
    assert {b.dtype for name, b in model.named_buffers() if "inv_freq" in name} == {torch.float32}
    assert sum(isinstance(m, FusedRMSNorm) for m in model.modules()) == (0 if family == "gemma" else fused)
    found = torch.tensor(model.encode(texts, convert_to_tensor=True).float().tolist())
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "phi3", "mistral", "gemma2"])
def test_what_runs_through_the_layers_stays_in_float32(tmp_path: Path, family: str) -> None:
    model = load_model(pico_backbone(tmp_path / "base", family))
    compute_in(model, BF16)
    seen: dict[str, set[torch.dtype]] = {"layers": set(), "inputs": set(), "products": set()}

    def remember(_: torch.nn.Module, args: tuple[torch.Tensor], product: torch.Tensor) -> None:
        seen["inputs"].add(args[0].dtype)
        seen["products"].add(product.dtype)

    for layer in model[0].model.layers:
        layer.register_forward_hook(lambda _, __, out: seen["layers"].add(out.dtype))
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(remember)
    found = model({key: torch.tensor([[5, 6, 7, 1]]) for key in ("input_ids", "attention_mask")})
    assert seen["layers"] == {torch.float32}
    assert seen["products"] == {BF16}
    assert seen["inputs"] == {BF16}, "rounded once, not by each product"
    assert found["sentence_embedding"].dtype == torch.float32


@pytest.mark.parametrize(("longest", "dtype", "plain"), [(512, BF16, True), (513, BF16, False), (64, None, False)])
def test_attention_of_short_texts_is_plain_products_on_a_cpu(
    tmp_path: Path, longest: int, dtype: torch.dtype | None, plain: bool
) -> None:
    model = load_model(pico_backbone(tmp_path / "base"))
    model.max_seq_length = longest
    attach(model, PARAMS, dtype or torch.float32)
    assert (model[0].model.config._attn_implementation == "eager") == plain


def test_a_fused_norm_equals_the_models_own(tmp_path: Path) -> None:
    norm = load_model(pico_backbone(tmp_path / "base"))[0].model.norm
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(3, 5, norm.weight.numel())
    expected = norm(x)
    norm.__class__ = FusedRMSNorm
    assert torch.allclose(norm(x), expected, atol=1e-6)
