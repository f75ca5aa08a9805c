"""Trains, encodes and merges on a GPU that is not there, and says as JSON what reached it: devices, types, forms.

torch's fake tensors know their shape, type and device and hold no numbers. Operands on two devices are an error to
them, and so is whatever makes the processor wait for a number of the GPU. What is computed they cannot say:
check_gpu.py looks at that, on a real one. Runs as a process of its own, with the library of imagined.cpp loaded before
torch.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stm import chip, encode
from stm.ahead import ahead
from stm.encode import Embeddings, Encoder, Passes
from stm.merge.experts import read_experts
from stm.merge.learn import adapters_at_run_time
from stm.merge.mixer import Mixer
from stm.merge.recipe import Recipe
from stm.models import load_model
from stm.train.batches import make_batch
from stm.train.loop import make_optimizer
from stm.train.lora import attach, trainable
from stm.train.step import Step
from tests.gpu.check_gpu import PACKED
from tests.pico import pico_adapter, pico_backbone
from tests.test_train import PARAMS, examples

TEXTS = ["fever and chills", "a cough", "the rash of measles"] * 20
ROWS = 16
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "baddbmm_")


class Calls(TorchDispatchMode):
    """Notes the types of what is multiplied, and the forms of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[str] = set()
        self.attention: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call and make it."""
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.products |= {str(x.dtype).removeprefix("torch.") for x in args if isinstance(x, torch.Tensor)}
        if "attn" in name or "attention" in name:
            self.attention.add(name)
        return func(*args, **(kwargs or {}))


class NoGrad:
    """In place of `torch.inference_mode`, in which no fake tensor can be made."""

    def __init__(self, mode: bool = True) -> None:
        self._stack, self._mode = ExitStack(), mode

    def __enter__(self) -> None:
        if self._mode:
            self._stack.enter_context(torch.no_grad())

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def replace_all(self: torch.nn.Module, convert: Callable[[Any], Any], recurse: bool = True) -> torch.nn.Module:
    """In place of `torch.nn.Module._apply`, which writes into parameters: fake tensors take their places."""
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(convert(parameter.detach()), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = convert(buffer)
    return self


@contextmanager
def on_a_gpu(dtype: torch.dtype) -> Iterator[Calls]:
    """A block in which what is put on the GPU is fake, and all that follows from it; it multiplies in `dtype`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chip, "device", lambda: torch.device("cuda"))
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: dtype == torch.bfloat16)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
        patch.setattr(torch.nn.Module, "_apply", replace_all)
        patch.setattr(torch, "inference_mode", NoGrad)
        chip.compute_dtype.cache_clear()
        with FakeTensorMode(allow_non_fake_inputs=True), Calls() as calls:
            yield calls
        chip.compute_dtype.cache_clear()


def train(base: Path, dtype: torch.dtype, cached: bool) -> dict[str, Any]:
    """One step of a training, from the texts to the optimizer."""
    model, batch = load_model(base), make_batch(examples(ROWS))
    params = PARAMS.model_copy(update={"cache_gradients": cached, "chunk_tokens": 256})
    with on_a_gpu(dtype) as calls:
        factors = trainable(attach(model.to("cuda"), params, chip.compute_dtype()))
        optimizer, step = make_optimizer(factors, params), Step(model, params)
        ready = next(ahead([batch], step.prepare))  # in a thread of its own, as in a training: there nothing is fake
        loss, _ = step.run(ready)
        norm = torch.nn.utils.clip_grad_norm_(list(factors.values()), params.max_grad_norm)
        devices = {str(tensor.device) for tensor in (loss, norm, *(factor.grad for factor in factors.values()))}
        with Calls() as forward:
            step.passes.embed(ready.inputs[0])
        optimizer.step()
    return {
        "chunks": len(ready.chunks), "packed": step.passes.is_packed, "devices": sorted(devices),
        "products": sorted(forward.products), "attention": sorted(calls.attention),
    }  # fmt: skip


def embed(base: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Encode some texts."""
    devices: set[str] = set()

    def fetch(vectors: torch.Tensor) -> Callable[[], Embeddings]:
        devices.add(str(vectors.device))
        return lambda: np.zeros(tuple(vectors.shape), np.float32)

    model = load_model(base)
    with pytest.MonkeyPatch.context() as patch, on_a_gpu(dtype) as calls:
        patch.setattr(encode, "_begin_fetch", fetch)
        encoder = Encoder(model.to("cuda"))
        vectors = encoder.encode(TEXTS)
    return {
        "shape": list(vectors.shape), "packed": encoder.passes.is_packed, "devices": sorted(devices),
        "products": sorted(calls.products), "attention": sorted(calls.attention),
    }  # fmt: skip


def merge(base: Path) -> dict[str, Any]:
    """Mix two experts in memory, then learn their weights for one pass."""
    folders = {name: pico_adapter(base, base.parent / f"{base.name} {name}", rank=2) for name in ("a", "b")}
    experts, model = read_experts(base, folders), load_model(base)
    with on_a_gpu(torch.bfloat16):
        model.to("cuda")
        with Mixer(model, experts) as mixer:
            for method in ("linear", "task_arithmetic"):  # what thins deltas keeps its masks in main memory, as numbers
                mixer.mix(Recipe(method, {"a": 0.5, "b": 0.5}))
        passes, coefficients = Passes(model), torch.ones(1, 2, device="cuda", requires_grad=True)
        inputs = passes.arrange(passes.tokenize(TEXTS))
        with adapters_at_run_time(model, experts, coefficients, [None]):
            passes.embed(inputs).sum().backward()
    devices = {str(parameter.device) for parameter in model.parameters()} | {str(coefficients.grad.device)}
    return {"devices": sorted(devices)}


def main() -> None:
    """Do all of it for a pico model of every packed family, and for one in the precision of an older GPU."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for family, dtype in [*((family, torch.bfloat16) for family in PACKED), ("llama", torch.float32)]:
            base = pico_backbone(Path(name) / f"{family} {dtype}", family)
            found[f"{family} {dtype}"] = {
                "train": train(base, dtype, cached=False), "train cached": train(base, dtype, cached=True),
                "encode": embed(base, dtype),
            }  # fmt: skip
        found["merge"] = merge(pico_backbone(Path(name) / "merge"))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
