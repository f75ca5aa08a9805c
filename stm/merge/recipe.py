"""What is to be merged and how: the method, a weight and a density per expert, lambda, seed.

A recipe is checked when it is made and is plain data otherwise; applied to the experts it gives one merged delta per
tensor. Does not know where the experts lie or where the result goes.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from stm.deltas import Adapter
from stm.errors import ParamsError
from stm.files import sha256_text
from stm.merge.methods import Part, Rescale, find_method, mask_seed, merge_parts


@dataclass(frozen=True)
class Recipe:
    """`weights` and `densities` are by expert; a missing density is 1. Raises `ParamsError` for values that cannot be
    merged.
    """

    method: str
    weights: Mapping[str, float]
    densities: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0  # lambda: the factor of the merged delta
    seed: int = 0
    rescale: Rescale = "l1"

    def __post_init__(self) -> None:
        row = find_method(self.method)
        if not self.weights:
            raise ParamsError("a merge needs at least one expert")
        for name, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ParamsError(f"the weight of {name!r} is {weight}; weights are finite numbers")
        for name, density in self.densities.items():
            if not 0 < density <= 1:
                raise ParamsError(f"the density of {name!r} is {density}; it is the fraction kept, in (0, 1]")
        if row.normalize and abs(math.fsum(self.weights.values())) < 1e-8:
            raise ParamsError(
                f"the weights of method {self.method!r} sum to zero and cannot be normalised: {dict(self.weights)}"
            )

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts that take part, in name order."""
        return tuple(sorted(name for name, weight in self.weights.items() if weight != 0))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for reports; densities only where the method uses them."""
        data: dict[str, Any] = {
            "method": self.method,
            "weights": dict(sorted(self.weights.items())),
            "lambda": self.scale,
        }
        row = find_method(self.method)
        if row.uses_density:
            data["densities"] = {name: self.densities.get(name, 1.0) for name in sorted(self.weights)}
        if row.thin == "random":
            data |= {"seed": self.seed, "rescale": self.rescale}
        return data

    def key(self) -> str:
        """A hash of what the recipe computes; equal for recipes that give the same model.

        Methods that normalise do not see a common factor of the weights.
        """
        data = self.as_dict()
        total = math.fsum(self.weights.values()) if find_method(self.method).normalize else 1.0
        data["weights"] = {name: round(weight / total, 9) for name, weight in data["weights"].items()}
        return sha256_text(json.dumps(data, sort_keys=True))

    def merged_delta(self, adapters: Mapping[str, Adapter], tensor: str) -> Tensor | None:
        """The fp32 change of the base's `tensor`, or None where no expert with a weight changes it."""
        names = [name for name in self.experts if tensor in adapters[name].factors]
        if not names:
            return None
        parts = [
            Part(
                adapters[name].delta(tensor),
                self.weights[name],
                self.densities.get(name, 1.0),
                mask_seed(self.seed, name, tensor),
            )
            for name in names
        ]
        return merge_parts(find_method(self.method), parts, self.rescale).mul_(self.scale)


def uniform(experts: list[str], method: str = "linear", **settings: Any) -> Recipe:
    """The simplest recipe: every expert with the same weight, summing to 1."""
    return Recipe(method, dict.fromkeys(experts, 1 / len(experts)), **settings)
