"""How two coefficients act together: dev nDCG@10 over a grid of two experts' weights, all others held.

Scored by the stand-in, which costs next to nothing, or by true evaluations. Parallel rows mean that each weight could
have been chosen alone; the share of interaction says how far that is from true. Changes no decision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stm.errors import ParamsError
from stm.merge.evaluator import Evaluator
from stm.merge.interpolation import Doubles
from stm.merge.methods import find_method
from stm.merge.recipe import Recipe
from stm.merge.space import Interval, Point, Space
from stm.merge.stand_in import StandIn
from stm.merge.trials import Trial
from stm.params.merge import InteractionParams


def choose_pair(weights: Mapping[str, float], named: Sequence[str]) -> tuple[str, str]:
    """The two experts named, or else the two of largest weight, the first by name among equals; `ParamsError` for a
    name that is none.
    """
    unknown = sorted(set(named) - set(weights))
    if unknown:
        raise ParamsError(
            f"merge.interaction.experts names the expert {unknown[0]!r}; there are {', '.join(sorted(weights))}"
        )
    first, second = named or sorted(weights, key=lambda name: (-abs(weights[name]), name))[:2]
    return first, second


def grid_of_two(space: Space, centre: Recipe, pair: tuple[str, str], values: Sequence[float]) -> list[Point | None]:
    """The points with both weights from `values`, the second one's running faster; None where no weight is left."""
    method = find_method(space.method)
    points: list[Point | None] = []
    for first in values:
        for second in values:
            weights = {**centre.weights, pair[0]: first, pair[1]: second}
            point = space.point(weights)
            if method.uses_density:
                point |= {f"density.{name}": centre.densities.get(name, 1.0) for name in space.experts}
            points.append(point if method.can_divide(weights.values()) else None)
    return points


def interaction_share(scores: Doubles) -> float | None:
    """The share in [0, 1] of the variance over a two-way grid that row and column means do not explain (two-way ANOVA
    without replication); None where rows or columns are too few, where more than the first of them lacks a score, or
    where nothing varies.
    """
    # With weights from 0 the one point without any weight stands in a corner: its row and column are left out.
    whole = scores[1:, 1:] if np.isnan(scores).any() else scores
    if min(whole.shape) < 2 or np.isnan(whole).any() or np.ptp(whole) == 0:
        return None
    deviations = whole - whole.mean()
    residual = deviations - deviations.mean(axis=1, keepdims=True) - deviations.mean(axis=0, keepdims=True)
    return float((residual**2).sum() / (deviations**2).sum())


def measure_interaction(
    params: InteractionParams, space: Space, evaluator: Evaluator, taken: Recipe, done: Sequence[Trial]
) -> dict[str, Any]:
    """Score the grid around `taken` and describe it; `done` are the finished trials of this space."""
    centre = replace(taken, layers={})
    pair = choose_pair(centre.weights, params.experts)
    values = Interval(space.weights.low, space.weights.high, params.step).values()
    points = grid_of_two(space, centre, pair, values)
    known = [point for point in points if point is not None]
    if params.source == "surrogate":
        found = StandIn(space, evaluator).score(known, done)
    else:
        found = np.array([evaluator.evaluate("interaction", space.recipe(point)).value for point in known])
    scores = np.full(len(points), np.nan)
    scores[[index for index, point in enumerate(points) if point is not None]] = found
    table = scores.reshape(len(values), len(values))
    return {
        "method": space.method, "experts": list(pair), "source": params.source, "values": values,
        "held": {name: weight for name, weight in sorted(centre.weights.items()) if name not in pair},
        "scores": [[None if np.isnan(score) else float(score) for score in row] for row in table],
        "share": interaction_share(table),
    }  # fmt: skip
