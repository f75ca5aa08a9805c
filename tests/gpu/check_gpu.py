"""Training and encoding on a GPU against the same in float32 on the CPU: vectors, gradients, and that it learns.

Not collected by a plain `pytest`, which hides every GPU: `make test-gpu` names this file.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoConfig, AutoModel

from stm import encode, models
from stm.backbone import add_bos_and_eos, assemble, make_bidirectional
from stm.chip import compute_dtype
from stm.encode import Encoder
from stm.models import fuse_norms, load_model
from stm.packed import Packed
from stm.params.train import TrainParams
from stm.train.batches import Batch, make_batch, plan_steps
from stm.train.loop import advance, learning_rate, make_optimizer
from stm.train.lora import attach, trainable
from stm.train.step import Step
from tests.pico import pico_backbone, pico_params, pico_tokenizer
from tests.test_train import PARAMS, examples

PACKED = ("llama", "qwen3", "gemma", "phi3", "mistral")


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """What is loaded here is on the CPU and in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "device", lambda: torch.device("cpu"))
        patch.setattr(encode, "compute_dtype", lambda: torch.float32)
        yield


def texts(count: int, longest: int) -> list[str]:
    """Random words, of one to `longest` letters in all."""
    rng = random.Random(0)
    return ["".join(rng.choices("abcdefgh ", k=rng.randint(1, longest))) for _ in range(count)]


def wide_backbone(folder: Path) -> Path:
    """Three layers of SmolLM2's width: kernels of the size that a real model starts."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=258, hidden_size=576, intermediate_size=1536, num_hidden_layers=3, num_attention_heads=9,
        num_key_value_heads=3, head_dim=64, pad_token_id=0, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    folder.mkdir()
    params = pico_params(max_tokens=256)
    assemble(
        make_bidirectional(AutoModel.from_config(config), 0),
        add_bos_and_eos(pico_tokenizer(), None, 256),
        params,
        folder,
    )
    return folder


def gradients(
    base: Path, batch: Batch, dtype: torch.dtype, params: TrainParams, packed: bool, fused: bool = False
) -> tuple[float, dict[str, Tensor]]:
    """Loss and, by kind of projection, the gradient of all factors, drawn alike for every caller, from one step."""
    model = load_model(base)
    if fused:
        fuse_norms(model)
    parameters = trainable(attach(model, params, dtype))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    step = Step(model.train(), params)
    ready = step.prepare(batch)
    assert {isinstance(inputs, Packed) for inputs in ready.inputs} == {packed}
    loss, _ = step.run(ready)
    kinds: dict[str, list[Tensor]] = {}
    for name, parameter in parameters.items():
        assert parameter.grad is not None
        kind = next(part for part in name.split(".") if part.endswith("_proj"))
        kinds.setdefault(kind, []).append(parameter.grad.flatten().cpu())
    return float(loss), {kind: torch.cat(found) for kind, found in kinds.items()}


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Each kind by itself: over all together, values and outputs outweigh queries, keys and the MLP a thousandfold."""
    cosines = {kind: float(cosine_similarity(found[kind], expected[kind], dim=0)) for kind in expected}
    assert min(cosines.values()) > 0.98, cosines
    lengths = {kind: float(found[kind].norm() / expected[kind].norm()) for kind in expected}
    assert all(0.9 < length < 1.1 for length in lengths.values()), lengths


def test_there_is_a_gpu() -> None:
    assert torch.cuda.is_available(), "these checks need a GPU with bfloat16"
    assert compute_dtype() == torch.bfloat16


@pytest.mark.parametrize("family", [*PACKED, "gemma2"])
def test_vectors_are_those_of_the_cpu(tmp_path: Path, family: str) -> None:
    base, some = pico_backbone(tmp_path / "base", family), texts(300, 40)
    with on_the_cpu():
        expected = torch.from_numpy(Encoder(load_model(base)).encode(some))
    encoder = Encoder(load_model(base))
    assert encoder.passes.is_packed == (family in PACKED)
    found = torch.from_numpy(encoder.encode(some))
    assert cosine_similarity(found, expected).min() > 0.998
    assert cosine_similarity(found, expected).mean() > 0.9995


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("family", [*PACKED, "gemma2"])
def test_gradients_are_those_of_the_cpu(tmp_path: Path, family: str, cached: bool) -> None:
    base, batch = pico_backbone(tmp_path / "base", family), make_batch(examples(16))
    params = PARAMS.model_copy(update={"cache_gradients": cached, "chunk_tokens": 300})
    with on_the_cpu():
        loss, expected = gradients(base, batch, torch.float32, params, packed=False)
    found_loss, found = gradients(base, batch, torch.bfloat16, params, family in PACKED)
    assert found_loss == pytest.approx(loss, rel=0.03)
    assert_alike(found, expected)


@pytest.mark.parametrize("kind", ["plain", "compiled", "fused norms"])
def test_gradients_of_a_wide_model_are_those_of_the_cpu(tmp_path: Path, kind: str) -> None:
    base = wide_backbone(tmp_path / "base")
    params = PARAMS.model_copy(update={"chunk_tokens": 65536, "rank": 16})
    long = [
        type(e)(e.id, e.anchor, e.query, e.positive + text, e.negatives, e.concept)
        for e, text in zip(examples(32), texts(32, 240), strict=True)
    ]
    with on_the_cpu():
        loss, expected = gradients(base, make_batch(long), torch.float32, params, packed=False)
    params = params.model_copy(update={"compile": kind == "compiled"})
    found_loss, found = gradients(base, make_batch(long), torch.bfloat16, params, True, kind == "fused norms")
    assert found_loss == pytest.approx(loss, rel=0.03)
    assert_alike(found, expected)


def test_training_learns_as_on_the_cpu(tmp_path: Path) -> None:
    base, rows = wide_backbone(tmp_path / "base"), examples(32)
    params = PARAMS.model_copy(update={"learning_rate": 1e-3, "epochs": 10, "max_steps": 40})
    losses = []

    def train(dtype: torch.dtype) -> list[float]:
        model = load_model(base)
        parameters = trainable(attach(model, params, dtype))
        optimizer, step = make_optimizer(parameters, params), Step(model.train(), params)
        steps = plan_steps(len(rows), params)
        return [
            advance(
                step, step.prepare(make_batch([rows[row] for row in chosen])), optimizer, parameters,
                learning_rate(number, len(steps), params),
            )["loss"]
            for number, chosen in enumerate(steps)
        ]  # fmt: skip

    with on_the_cpu():
        losses.append(train(torch.float32))
    losses.append(train(torch.bfloat16))
    first, last = ([sum(part) / len(part) for part in zip(*losses, strict=True)][i] for i in (0, -1))
    assert last < 0.7 * first
    assert sum(losses[1][-20:]) == pytest.approx(sum(losses[0][-20:]), rel=0.15)
