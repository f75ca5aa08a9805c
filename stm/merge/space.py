"""The coefficients that a search may choose, as Optuna distributions, and their way to recipes and back.

One space belongs to one method. Does not know how points are chosen or what they score.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import FloatDistribution

from stm.merge.methods import Rescale, find_method
from stm.merge.recipe import Recipe

Point = dict[str, float]  # "weight.<expert>" and "density.<expert>" -> value


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included, in steps of `step` (0: continuous)."""

    low: float
    high: float
    step: float

    def values(self) -> list[float]:
        """The grid; a continuous interval has a grid of eleven values, as the paper's."""
        step = self.step or (self.high - self.low) / 10
        count = int((self.high - self.low) / step + 1e-9) + 1
        return [round(self.low + index * step, 10) for index in range(count)]


@dataclass(frozen=True)
class Space:
    """All recipes of one method over these experts; without an interval of densities all experts have `density`."""

    method: str
    experts: tuple[str, ...]
    weights: Interval
    densities: Interval | None
    density: float
    scale: float
    seed: int
    rescale: Rescale

    @property
    def searches_densities(self) -> bool:
        """Whether densities are dimensions of the space."""
        return self.densities is not None and find_method(self.method).uses_density

    @property
    def is_normalised(self) -> bool:
        """Whether the method divides by the sum of the weights."""
        return find_method(self.method).normalize

    @property
    def is_single_model(self) -> bool:
        """Whether all points give the same model: one expert whose weight is divided by itself."""
        return len(self.experts) == 1 and self.is_normalised and not self.searches_densities

    def intervals(self) -> dict[str, Interval]:
        """Every dimension with its interval, weights first."""
        found = {f"weight.{name}": self.weights for name in self.experts}
        if self.densities is not None and self.searches_densities:
            found |= {f"density.{name}": self.densities for name in self.experts}
        return found

    def distributions(self) -> dict[str, FloatDistribution]:
        """The dimensions as Optuna wants them."""
        return {
            name: FloatDistribution(interval.low, interval.high, step=interval.step or None)
            for name, interval in self.intervals().items()
        }

    def grid(self) -> Iterator[Point]:
        """All grid points but those without any weight, or whose weights cannot be normalised."""
        names = list(self.intervals())
        for values in itertools.product(*(interval.values() for interval in self.intervals().values())):
            point = dict(zip(names, values, strict=True))
            if self.has_model(point):
                yield point

    def has_model(self, point: Mapping[str, float]) -> bool:
        """Whether the point has a weight, and weights that can be divided by their sum where the method does so."""
        weights = [point[f"weight.{name}"] for name in self.experts]
        return any(weights) and find_method(self.method).can_divide(weights)

    def grid_size(self) -> int:
        """How many points the grid has."""
        return math.prod(len(interval.values()) for interval in self.intervals().values())

    def recipe(self, point: Mapping[str, float]) -> Recipe:
        """The recipe of a point; `ParamsError` where it cannot be merged."""
        weights = {name: float(point[f"weight.{name}"]) for name in self.experts}
        densities = {name: float(point.get(f"density.{name}", self.density)) for name in self.experts}
        return Recipe(self.method, weights, densities, self.scale, self.seed, self.rescale)

    def point(self, weights: Mapping[str, float]) -> Point:
        """The point with these weights (missing: 0); searched densities stand at the upper end."""
        point = {f"weight.{name}": float(weights.get(name, 0.0)) for name in self.experts}
        if self.densities is not None and self.searches_densities:
            point |= {f"density.{name}": self.densities.high for name in self.experts}
        return point

    def uniform(self) -> Point:
        """The point of equal weights that sum to 1."""
        return self.point(dict.fromkeys(self.experts, 1 / len(self.experts)))

    def describe(self) -> dict[str, Any]:
        """Plain data that tells one space from another."""
        return {
            "method": self.method,
            "experts": list(self.experts),
            "intervals": {name: [i.low, i.high, i.step] for name, i in self.intervals().items()},
            "density": self.density,
            "lambda": self.scale,
            "seed": self.seed,
            "rescale": self.rescale,
        }


def fixed_rows(space: Space) -> list[tuple[str, Point]]:
    """The rows that every trace has: uniform weights, each expert alone, and all but each expert."""
    experts = space.experts
    rows = [("uniform", space.uniform())]
    if len(experts) > 1:
        rows += [(f"single:{name}", space.point({name: 1.0})) for name in experts]
    if len(experts) > 2:
        rest = 1 / (len(experts) - 1)
        rows += [(f"without:{name}", space.point({n: rest for n in experts if n != name})) for name in experts]
    return rows
