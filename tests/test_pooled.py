"""Leaving out what no pooled vector depends on changes no vector and no gradient, in any family and on either side."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoConfig, AutoModel

from stm.models import load_model
from stm.pooled import last_positions, skip_unpooled
from stm.train.lora import attach, trainable
from tests.pico import pico_backbone, pico_tokenizer
from tests.test_train import PARAMS

TEXTS = ["a", "a longer text of several words", "two words"]
FAMILIES = ("llama", "qwen3", "gemma", "gemma2", "phi3", "mistral")


def vectors_and_gradients(model: SentenceTransformer) -> list[torch.Tensor]:
    layers = model[0].model.layers
    watched = [layers[-1].mlp.down_proj.weight, layers[-1].self_attn.o_proj.weight, layers[0].self_attn.o_proj.weight]
    out = model(model.preprocess(TEXTS))["sentence_embedding"]
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), watched)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_and_gradients_stay_the_same(tmp_path: Path, family: str, side: str) -> None:
    model = load_model(pico_backbone(tmp_path / "base", family))
    model.tokenizer.padding_side = side
    plain = vectors_and_gradients(model)
    assert skip_unpooled(model)
    assert skip_unpooled(model), "a second call changes nothing"
    for found, expected in zip(vectors_and_gradients(model), plain, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)


def test_the_last_mlp_sees_one_position_per_text(tmp_path: Path) -> None:
    model = load_model(pico_backbone(tmp_path / "base"))
    skip_unpooled(model)
    shapes = []
    projection = model[0].model.layers[-1].mlp.up_proj
    projection.register_forward_hook(lambda module, args, out: shapes.append(tuple(args[0].shape)))
    model.encode(TEXTS)
    assert shapes == [(len(TEXTS), 1, projection.in_features)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_mixtures_of_experts_keep_their_vectors(tmp_path: Path, family: str, side: str) -> None:
    """gpt_oss gives the router's scores beside the states."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=None, eos_token_id=1,
        num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(tmp_path / "decoder")
    tokenizer = pico_tokenizer()
    tokenizer.padding_side = side
    tokenizer.save_pretrained(tmp_path / "decoder")
    modules = [Transformer(str(tmp_path / "decoder")), Pooling(32, pooling_mode="lasttoken")]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "model"))
    model = load_model(tmp_path / "model")
    expected = model.encode(TEXTS)
    assert skip_unpooled(model)
    assert np.allclose(model.encode(TEXTS), expected, atol=1e-6)


def test_other_poolings_are_left_alone(tmp_path: Path) -> None:
    model = load_model(pico_backbone(tmp_path / "base"))
    width = model.get_embedding_dimension()
    mean = SentenceTransformer(modules=[model[0], Pooling(width, pooling_mode="mean")])
    before = mean.encode(TEXTS)
    assert not skip_unpooled(mean)
    assert (mean.encode(TEXTS) == before).all()


def test_the_last_position_is_found_on_both_sides() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1]])
    assert last_positions(mask).tolist() == [1, 2, 0, 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_training_without_unpooled_positions_has_the_gradients_of_peft(tmp_path: Path, family: str) -> None:
    """Folded products and the narrowed last layer together, against plain peft on the whole model."""
    base, found = pico_backbone(tmp_path / "base", family), []
    for quick in (True, False):
        model = load_model(base)
        if quick:
            adapted = attach(model, PARAMS, torch.float32)
        else:
            config = LoraConfig(r=PARAMS.rank, lora_alpha=PARAMS.alpha, target_modules="all-linear")
            adapted = get_peft_model(model[0].model, config)
        factors = trainable(adapted)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for factor in factors.values():
                factor.copy_(torch.randn(factor.shape, generator=generator) * 0.1)
        out = model(model.preprocess(TEXTS))["sentence_embedding"]
        weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
        found.append([out.detach(), *torch.autograd.grad((out * weights).sum(), list(factors.values()))])
    assert len(found[0]) > 16
    for fast, plain in zip(*found, strict=True):
        assert torch.allclose(fast, plain, rtol=1e-3, atol=1e-5)
