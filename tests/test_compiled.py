"""Compiled layers are the same function, and a training with them is as reproducible."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stm import encode
from stm.encode import Encoder
from stm.files import sha256_tree
from stm.models import load_model
from stm.prompts import read_prompts
from stm.train import loop
from stm.train.adapter import train_adapter
from stm.train.batches import Example, make_batch
from stm.train.lora import attach, trainable
from stm.train.step import Step
from tests.closure import ROOT
from tests.pico import pico_backbone
from tests.test_train import PARAMS, broken_off_after, examples


@pytest.fixture(autouse=True)
def _compiled_here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "compiled"))


NEEDS_COMPILER = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="compiling needs a C++ compiler, as no other feature does"
)


def gradients(base: Path, compiled: bool) -> tuple[float, list[Tensor]]:
    """Loss and gradients of one step with factors that are drawn alike."""
    params = PARAMS.model_copy(update={"compile": compiled})
    model = load_model(base)
    parameters = trainable(attach(model, params, torch.float32))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    step = Step(model.train(), params)
    loss, _ = step.run(step.prepare(make_batch(examples(16))))
    return float(loss), [p.grad for p in parameters.values() if p.grad is not None]


@NEEDS_COMPILER
def test_a_compiled_step_has_the_loss_and_the_gradients_of_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "is_packable", lambda model: True)  # as on a GPU; padded texts are below
    base = pico_backbone(tmp_path / "base", "qwen3", layers=3)
    (expected, grads), (found, compiled) = gradients(base, False), gradients(base, True)
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(float(grad.abs().max()) for grad in grads) > 1e-4
    for grad, same in zip(compiled, grads, strict=True):
        assert torch.allclose(grad, same, rtol=1e-3, atol=1e-6)


@NEEDS_COMPILER
@pytest.mark.usefixtures("in_float32")
def test_a_compiled_encoder_has_the_vectors_of_the_plain_one(tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base")
    some = ["one text", "another, longer text", "a", "one more", "some twenty letters"]
    plain, compiled = (Encoder(load_model(base), compiled=flag) for flag in (False, True))
    assert np.abs(compiled.encode(some) - plain.encode(some)).max() < 1e-5
    assert [layer._compiled_call_impl is not None for layer in compiled.model[0].model.layers] == [True, False]


@NEEDS_COMPILER
def test_a_compiled_training_that_stopped_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pico_backbone(tmp_path / "base")
    monkeypatch.setattr(loop, "compute_dtype", lambda: torch.bfloat16)
    rng = random.Random(0)
    texts = [
        "".join(rng.choices("abcdefgh", k=length)) for length in range(1, 49)
    ]  # a batch's length is not the next's
    rng.shuffle(texts)
    rows = [Example(f"r{i}", t, t, u, (v,), "") for i, (t, u, v) in enumerate(zip(*[iter(texts)] * 3, strict=True))]
    params = PARAMS.model_copy(update={"compile": True, "batch_size": 4, "max_steps": 6, "epochs": 3})
    prompts = read_prompts(base)
    plain = train_adapter(
        base,
        [rows],
        prompts,
        params.model_copy(update={"compile": False}),
        tmp_path / "plain/a",
        tmp_path / "w",
        "pico",
    )
    whole = train_adapter(base, [rows], prompts, params, tmp_path / "whole/a", tmp_path / "w", "pico")
    for entry, same in zip(whole["history"], plain["history"], strict=True):
        assert entry["loss"] == pytest.approx(same["loss"], rel=0.01)

    with broken_off_after(5):
        train_adapter(base, [rows], prompts, params, tmp_path / "resumed/a", tmp_path / "w2", "pico")
    torch.compiler.reset()  # as a new process is: the first batch it sees is another one
    train_adapter(base, [rows], prompts, params, tmp_path / "resumed/a", tmp_path / "w2", "pico")
    assert sha256_tree(tmp_path / "whole/a") == sha256_tree(tmp_path / "resumed/a"), "with all losses"


def test_without_a_compiler_it_says_what_to_do(tmp_path: Path) -> None:
    code = "import stm.encode, torch; from stm.compiled import compile_layers; compile_layers(torch.nn.Linear(2, 2))"
    environment = {**os.environ, "CXX": "/no/compiler", "PYTHONPATH": str(ROOT)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR")
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (tmp_path / ".stm/compiled").is_dir(), "the project's folder, not one of that name in /tmp"
    assert run.returncode == 1
    assert "ModelError: torch cannot compile for the cpu here (" in run.stderr
    assert "install a C++ compiler (g++ or clang++) and Python's headers, or set `compile: false`" in run.stderr
