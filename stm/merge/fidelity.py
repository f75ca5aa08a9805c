"""The multi-fidelity search: candidates ranked in bulk by a stand-in, corrected by what true evaluations have shown.

The prediction for a candidate is a line through (stand-in, true) of all evaluated mixes, as steep as their rank
correlation allows, plus a Gaussian process over the residuals. With no correlation it falls back to the process
alone. Takes numbers only: no models, no tasks.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from stm.merge.samplers import Proposer
from stm.merge.space import Point, Space
from stm.merge.trials import Trial

Doubles = npt.NDArray[np.float64]
Score = Callable[[Sequence[Point]], Doubles]  # points -> stand-in scores, higher is better
POOL = 4000  # candidates ranked in bulk
LENGTH = 0.3  # of the process, in units of a normalised weight
NOISE = 0.25  # share of the residual variance that no coefficient explains: dev is a sample
OPTIMISM = 1.0  # standard deviations added to the prediction


def rank_correlation(surrogate: Doubles, true: Doubles) -> float:
    """Spearman's correlation in [-1, 1]; 0 where fewer than three points or no spread say anything."""
    if len(true) < 3 or np.ptp(surrogate) == 0 or np.ptp(true) == 0:
        return 0.0
    return float(spearmanr(surrogate, true).statistic)


def candidate_pool(space: Space, seed: int) -> list[Point]:
    """All distinct grid points, or a seeded sample of `POOL` where they are more (or the space is continuous)."""
    intervals = space.intervals()
    is_grid = all(interval.step for interval in intervals.values())
    total = int(np.prod([len(interval.values()) for interval in intervals.values()], dtype=np.float64))
    if is_grid and total <= POOL:
        points = list(space.grid())
    else:
        rng = np.random.default_rng(seed)
        columns = {
            name: rng.choice(i.values(), POOL) if i.step else np.round(rng.uniform(i.low, i.high, POOL), 6)
            for name, i in intervals.items()
        }
        points = [{name: float(column[row]) for name, column in columns.items()} for row in range(POOL)]
    return _distinct(space, points)


def _distinct(space: Space, points: Sequence[Point]) -> list[Point]:
    found: dict[str, Point] = {}
    for point in points:
        if sum(value for name, value in point.items() if name.startswith("weight.")) > 0:
            found.setdefault(space.recipe(point).key(), point)
    return list(found.values())


def _features(space: Space, points: Sequence[Point]) -> Doubles:
    """Coordinates in which near means alike: weights (divided by their sum where the method does so) and
    densities.
    """
    rows = []
    for point in points:
        weights = np.array([point[f"weight.{name}"] for name in space.experts])
        if space.is_normalised:
            weights = weights / weights.sum()
        rows.append([*weights, *(value for name, value in point.items() if name.startswith("density."))])
    return np.array(rows, dtype=np.float64)


def _point_of(trial: Trial, space: Space) -> Point:
    point = space.point(trial.recipe.weights)
    return {
        name: trial.recipe.densities[name.split(".", 1)[1]] if name.startswith("density.") else value
        for name, value in point.items()
    }


def _kernel(one: Doubles, other: Doubles) -> Doubles:
    squared = ((one[:, None, :] - other[None, :, :]) ** 2).sum(axis=2)
    kernel: Doubles = np.exp(-squared / (2 * LENGTH**2))
    return kernel


def predict(
    known: Doubles, values: Doubles, stand_in: Doubles, candidates: Doubles, candidate_stand_in: Doubles
) -> tuple[Doubles, Doubles]:
    """Mean and standard deviation of the true score of each candidate.

    `known` [N, F] and `candidates` [C, F] are coordinates, `values` [N] true scores, the stand-ins belong to the
    rows. Line: slope `max(0, rho) sd(values) / sd(stand-in)` (the least-squares slope with the rank correlation rho
    in place of Pearson's).
    """
    spread = float(np.std(stand_in))
    slope = max(0.0, rank_correlation(stand_in, values)) * float(np.std(values)) / spread if spread else 0.0
    residuals = values - values.mean() - slope * (stand_in - stand_in.mean())
    variance = max(float(np.var(residuals)), 1e-8)
    gram = _kernel(known, known) + NOISE * np.eye(len(known))
    cross = _kernel(candidates, known)
    mean = values.mean() + slope * (candidate_stand_in - stand_in.mean()) + cross @ np.linalg.solve(gram, residuals)
    explained = np.einsum("cn,cn->c", cross, np.linalg.solve(gram, cross.T).T)
    return mean, np.sqrt(variance * np.clip(1 - explained, 1e-9, None))


def fidelity_proposer(space: Space, score: Score, seed: int) -> Proposer:
    """Propose the candidate with the highest optimistic prediction; `score` is called once for the pool and once per
    finished trial.
    """
    pool = candidate_pool(space, seed)
    keys = [space.recipe(point).key() for point in pool]
    pool_features = _features(space, pool)
    pool_stand_in = cache(lambda: score(pool))  # at the first proposal, when the single experts have been evaluated

    def propose(done: Sequence[Trial]) -> Point | None:
        seen = {trial.recipe.key() for trial in done}
        free = [index for index, key in enumerate(keys) if key not in seen]
        if not free:
            return None
        points = [_point_of(trial, space) for trial in done]
        values = np.array([trial.value for trial in done])
        mean, deviation = predict(
            _features(space, points), values, score(points), pool_features[free], pool_stand_in()[free]
        )
        return pool[free[int(np.argmax(mean + OPTIMISM * deviation))]]

    return propose


def measure_trust(space: Space, score: Score, done: Sequence[Trial]) -> dict[str, Any]:
    """Stand-in and true score of all distinct trials, and their rank correlation with and without the single experts.

    A single expert's stand-in is its true score, so that the correlation without them is the honest one.
    """
    distinct = list({trial.recipe.key(): trial for trial in reversed(done)}.values())[::-1]
    stand_in = score([_point_of(trial, space) for trial in distinct])
    true = np.array([trial.value for trial in distinct])
    mixed = np.array([not trial.origin.startswith("single:") for trial in distinct])
    return {
        "method": space.method,
        "spearman": rank_correlation(stand_in[mixed], true[mixed]),
        "spearman_with_singles": rank_correlation(stand_in, true),
        "mixes": int(mixed.sum()),
        "points": [
            {"surrogate": float(s), "true": float(t), "origin": d.origin}
            for s, t, d in zip(stand_in, true, distinct, strict=True)
        ],
    }
