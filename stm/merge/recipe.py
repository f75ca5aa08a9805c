"""What is to be merged and how: the method, a weight and a density per expert, lambda, seed.

A recipe is checked when it is made and is plain data otherwise; applied to the experts it gives one merged delta per
tensor. Does not know where the experts lie or where the result goes.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stm.deltas import Adapter, Factors
from stm.errors import ParamsError
from stm.files import sha256_text
from stm.merge.methods import Part, Rescale, Thin, find_method, make_mask, mask_seed, merge_parts


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
    layers: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # weights that hold in one layer, by its number

    def __post_init__(self) -> None:
        row = find_method(self.method)
        if not self.weights:
            raise ParamsError("a merge needs at least one expert")
        for name, weight in self.weights.items():
            if not math.isfinite(weight):
                raise ParamsError(f"the weight of {name!r} is {weight}; weights are finite numbers")
        for layer, weights in self.layers.items():
            if not all(map(math.isfinite, weights.values())):
                raise ParamsError(f"the weights of layer {layer} are {dict(weights)}; weights are finite numbers")
        for name, density in self.densities.items():
            if not 0 < density <= 1:
                raise ParamsError(f"the density of {name!r} is {density}; it is the fraction kept, in (0, 1]")
        if not row.can_divide(self.weights.values()):
            raise ParamsError(
                f"the weights of method {self.method!r} sum to zero and cannot be normalised: {dict(self.weights)}"
            )

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts that take part, in name order."""
        return self._experts(self.weights)

    def density_of(self, expert: str) -> float:
        """The fraction of the expert's delta that is kept: all of it where the method thins nothing."""
        return self.densities.get(expert, 1.0) if find_method(self.method).uses_density else 1.0

    @staticmethod
    def _experts(weights: Mapping[str, float]) -> tuple[str, ...]:
        return tuple(sorted(name for name, weight in weights.items() if weight != 0))

    def weights_of(self, tensor: str) -> Mapping[str, float]:
        """The weights that hold for one tensor of the base."""
        return self.layers.get(str(layer_of(tensor)), self.weights) if self.layers else self.weights

    def as_dict(self) -> dict[str, Any]:
        """Plain data for reports; densities only where the method uses them."""
        data: dict[str, Any] = {
            "method": self.method,
            "weights": dict(sorted(self.weights.items())),
            "lambda": self.scale,
        }
        row = find_method(self.method)
        if row.uses_density:
            data["densities"] = {name: self.density_of(name) for name in sorted(self.weights)}
        if row.thin == "random":
            data |= {"seed": self.seed, "rescale": self.rescale}
        if self.layers:
            data["layers"] = {layer: dict(sorted(weights.items())) for layer, weights in sorted(self.layers.items())}
        return data

    def factors(self) -> dict[str, float]:
        """What each expert's delta is multiplied by where nothing is thinned: weights, divided by their sum where the
        method does so, times lambda.
        """
        total = find_method(self.method).divisor(self.weights.values())
        return {name: self.scale * weight / total for name, weight in sorted(self.weights.items())}

    def key(self) -> str:
        """A hash of what the recipe computes; equal for recipes of any methods that give the same model up to
        rounding.

        What is a plain sum of deltas is known by its factors, whatever the method: all linear and task arithmetic,
        DARE linear with nothing dropped, one expert with nothing thinned. Experts of weight zero do not count.
        """
        return sha256_text(json.dumps(self._effect(), sort_keys=True))

    def _effect(self) -> dict[str, Any]:
        row, names = find_method(self.method), self.experts
        densities = {name: self.density_of(name) for name in names}
        is_thinned = any(density < 1 for density in densities.values())
        if self.layers:
            return self.as_dict()
        if not is_thinned and (row.is_sum or len(names) == 1):
            return {"sum": {name: round(factor, 9) for name, factor in self.factors().items() if factor}}
        total = abs(row.divisor(self.weights.values()))
        effect = {
            "method": self.method, "lambda": self.scale, "densities": densities,
            "weights": {name: round(self.weights[name] / total, 9) for name in names},
        }  # fmt: skip
        return effect | ({"seed": self.seed, "rescale": self.rescale} if row.thin == "random" and is_thinned else {})

    def merged_delta(
        self, adapters: Mapping[str, Adapter], tensor: str, mask_of: Callable[[Thin, Part], Tensor] = make_mask
    ) -> Tensor | None:
        """The fp32 change of the base's `tensor`, or None where no expert with a weight changes it; `mask_of` as
        in `merge_parts`.
        """
        weights = self.weights_of(tensor)
        names = [name for name in self._experts(weights) if tensor in adapters[name].factors]
        if not names:
            return None
        row = find_method(self.method)
        if row.thin == "none":
            total = row.divisor(weights.values())
            factors = [adapters[name].factors[tensor] for name in names]
            return sum_products(factors, [self.scale * weights[name] / total for name in names])
        parts = [
            Part(adapters[name].delta(tensor), weights[name], self.density_of(name), mask_seed(self.seed, name, tensor))
            for name in names
        ]
        return merge_parts(row, parts, self.rescale, mask_of).mul_(self.scale)


def sum_products(factors: Sequence[Factors], weights: Sequence[float]) -> Tensor:
    """Return `sum_k w_k scale_k B_k A_k` as one fp32 product of the factors side by side, without the single deltas.

    The same as adding up deltas but for the last bits, in a K-th of the time and memory.
    """
    b = torch.cat(
        [part.b.float() * (weight * part.scale) for part, weight in zip(factors, weights, strict=True)], dim=1
    )
    a = torch.cat([part.a.float() for part in factors])
    return (b @ a).T.contiguous() if factors[0].is_transposed else b @ a


def layer_of(tensor: str, layers: Sequence[int | None] = ()) -> int | None:
    """The number of the layer that a tensor belongs to, None outside of layers or where `layers` does not list it."""
    found = re.search(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.", tensor)
    layer = int(found[1]) if found else None
    return layer if not layers or layer in layers else None
