"""Packed texts have the vectors and the gradients of padded ones, in every family."""

from pathlib import Path

import pytest
import torch

from stm import encode
from stm.encode import Encoder, Passes
from stm.models import load_model
from stm.packed import Packed, embed_packed, group_rows, is_packable, pack_rows
from stm.pooled import skip_unpooled
from stm.train.batches import make_batch
from stm.train.lora import attach, trainable
from stm.train.step import Step
from tests.pico import pico_backbone
from tests.test_train import PARAMS, examples

TEXTS = ["a longer text of several words", "a", "two words", "the longest text of them all, which fills what is left"]


def test_rows_lie_end_to_end() -> None:
    packed = pack_rows([[5, 6, 7], [8], [9, 4]])
    assert packed.ids.tolist() == [5, 6, 7, 8, 9, 4]
    assert packed.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert packed.bounds.tolist() == [0, 3, 4, 6]
    assert packed.longest == 3


def test_every_text_begins_at_the_first_place(tmp_path: Path) -> None:
    model, seen = load_model(pico_backbone(tmp_path / "base")), []
    decoder = model[0].model
    assert skip_unpooled(model)
    decoder.rotary_emb.register_forward_pre_hook(lambda _, __, given: seen.append(given), with_kwargs=True)
    packed = pack_rows(Passes(model).tokenize(TEXTS))
    with torch.no_grad():
        embed_packed(model, packed)
    assert seen[0]["position_ids"][0].tolist() == packed.positions.tolist(), "phi's rotation depends on the last one"


def test_groups_hold_all_rows_in_order_within_the_budget() -> None:
    assert group_rows([3, 4, 2, 9, 1], 8) == [[0, 1], [2], [3], [4]]
    assert group_rows([], 8) == []


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "phi3", "mistral"])
def test_vectors_equal_those_of_padded_texts(tmp_path: Path, family: str) -> None:
    model = load_model(pico_backbone(tmp_path / "base", family))
    expected = torch.from_numpy(Encoder(model).encode(TEXTS))
    ids = Passes(model).tokenize(TEXTS)
    with torch.no_grad():
        found = embed_packed(model, pack_rows(ids))
    assert torch.allclose(torch.nn.functional.normalize(found, dim=-1), expected, atol=1e-5)
    assert torch.equal(torch.from_numpy(Encoder(model).encode(TEXTS)), expected), "padded passes stay what they were"


@pytest.mark.parametrize("cached", [False, True])
def test_gradients_equal_those_of_padded_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    base, found = pico_backbone(tmp_path / "base"), []
    for packed in (False, True):
        monkeypatch.setattr(encode, "is_packable", lambda model, packed=packed: packed)
        model = load_model(base)
        parameters = trainable(attach(model, PARAMS, torch.float32))
        step = Step(model.train(), PARAMS.model_copy(update={"cache_gradients": cached, "chunk_tokens": 200}))
        ready = step.prepare(make_batch(examples(8)))
        assert len(ready.chunks) > 1
        assert isinstance(ready.inputs[0], Packed) == packed
        loss, tokens = step.run(ready)
        found.append((float(loss), tokens, [p.grad for p in parameters.values() if p.grad is not None]))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert found[0][1] == found[1][1]
    assert any(grad.abs().max() > 1e-4 for grad in found[0][2])
    for grad, same in zip(found[0][2], found[1][2], strict=True):
        assert torch.allclose(grad, same, rtol=1e-3, atol=1e-6)


def test_only_known_decoders_on_a_gpu_are_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(pico_backbone(tmp_path / "base"))
    assert skip_unpooled(model)
    assert not is_packable(model)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert not is_packable(model), "flash attention takes no float32"
    model.bfloat16()
    assert is_packable(model)
    config = model[0].model.config
    config.is_causal = True
    assert not is_packable(model), "packed attention sees both sides"
    config.is_causal = False
    model.append(torch.nn.Identity())
    assert not is_packable(model), "what follows the pooling would be left out"
    del model[-1]
    assert is_packable(model)
    config.attn_logit_softcapping = 50.0
    assert not is_packable(model), "flash attention of variable lengths knows no soft cap"
