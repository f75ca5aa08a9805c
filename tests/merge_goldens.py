"""Goldens of the merge methods: what mergekit makes of three small tensors, with where that comes from.

`python -m tests.merge_goldens` writes tests/merge_goldens.json anew; the tests compare our methods with the file, so
that neither side can drift unseen. mergekit's random masks are replaced by ours, which `mask_source` makes.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mergekit import sparsify
from mergekit.merge_methods import get as mergekit_method
from mergekit.merge_methods import merge_state_dicts
from torch import Tensor

FILE = Path(__file__).with_suffix(".json")
SEED, SHAPE, WEIGHTS, DENSITIES = 3, (4, 5), [0.6, 0.3, 0.4], [0.5, 0.9, 0.3]
METHODS = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")


def make_tensors() -> tuple[Tensor, list[Tensor]]:
    """A base and three deltas in multiples of 1/64: adding and subtracting the base loses nothing."""
    generator = torch.Generator().manual_seed(SEED)
    base, *deltas = ((torch.randn(SHAPE, generator=generator) * 64).round() / 64 for _ in range(4))
    return base, deltas


def mask_source() -> Callable[[Tensor], Tensor]:
    """The masks that `stm.merge.methods.draw_mask` draws with the seeds 0, 1, ..., in mergekit's way of asking."""
    calls = iter(range(100))

    def bernoulli(probabilities: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(next(calls))
        return (torch.rand(probabilities.shape, generator=generator) < probabilities).to(probabilities.dtype)

    return bernoulli


def mergekit_merge(name: str, base: Tensor, deltas: list[Tensor], weights: list[float], kept: list[float]) -> Tensor:
    """What mergekit 0.1.5 makes of the full tensors, with its own defaults."""
    states = {index: {"t": base + delta} for index, delta in enumerate(deltas)}
    parameters: dict[str, Any] = {"weight": dict(enumerate(weights))}
    base_id = None
    if name != "linear":
        base_id = len(deltas)
        states[base_id] = {"t": base}
        parameters["density"] = dict(enumerate(kept))
    merged = merge_state_dicts(states, mergekit_method(name), base=base_id, parameters=parameters, dtype=torch.float32)
    return torch.as_tensor(merged["t"])


def merge(name: str) -> Tensor:
    """mergekit's delta for one method, with our masks."""
    sparsify.torch.bernoulli = mask_source()
    base, deltas = make_tensors()
    return mergekit_merge(name, base, deltas, WEIGHTS, DENSITIES) - base


def main() -> None:
    """Write the file."""
    base, deltas = make_tensors()
    origin = {
        "reference": "mergekit", "version": version("mergekit"), "command": "python -m tests.merge_goldens",
        "torch": version("torch"), "seed": SEED, "weights": WEIGHTS, "densities": DENSITIES,
    }  # fmt: skip
    found = {name: merge(name).tolist() for name in METHODS}
    content = {"origin": origin, "base": base.tolist(), "deltas": [delta.tolist() for delta in deltas], "merged": found}
    FILE.write_text(json.dumps(content) + "\n", encoding="utf-8")
    sys.stderr.write(f"written: {FILE}\n")


if __name__ == "__main__":
    main()
