"""The multi-fidelity search: candidates ranked in bulk by a stand-in, corrected by what true evaluations have shown.

The prediction for a candidate is a line through (stand-in, true) of all evaluated mixes, as steep as their rank
correlation allows, plus a Gaussian process over the residuals. With no correlation it falls back to the process
alone. The best predicted may have to pass cheap rungs before one of them is evaluated in full. Takes numbers and
functions: no models, no tasks.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from stm.merge.recipe import Recipe
from stm.merge.samplers import Proposer
from stm.merge.space import Point, Space
from stm.merge.trials import Trial

Doubles = npt.NDArray[np.float64]
RungScore = Callable[[Recipe], float]  # the true score on a part of dev, higher is better
POOL = 15_000  # candidates ranked in bulk: the paper's grid of four experts, 11^4, is ranked whole
LENGTH = 0.3  # of the process, in units of a normalised weight
NOISE = 0.25  # share of the residual variance that no coefficient explains: dev is a sample
OPTIMISM = 1.0  # standard deviations added to the prediction


class RanksPoints(Protocol):
    """A stand-in for evaluation: scores on the scale of nDCG@10, higher for better points, one per point or trial in
    their order; nothing given is changed.
    """

    def score(self, points: Sequence[Point], done: Sequence[Trial]) -> Doubles:
        """Predict points, knowing all of `done`."""
        ...

    def score_unseen(self, done: Sequence[Trial]) -> Doubles:
        """Predict each trial of `done` as if it had not been evaluated."""
        ...


def rank_correlation(surrogate: Doubles, true: Doubles) -> float:
    """Spearman's correlation in [-1, 1]; 0 where fewer than three points or no spread say anything."""
    if len(true) < 3 or np.ptp(surrogate) == 0 or np.ptp(true) == 0:
        return 0.0
    return float(spearmanr(surrogate, true).statistic)


def candidate_pool(space: Space, seed: int) -> list[Point]:
    """All distinct grid points, or a seeded sample of `POOL` where they are more (or the space is continuous)."""
    intervals = space.intervals()
    is_grid = all(interval.step for interval in intervals.values())
    total = space.grid_size()
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
    """The first point of each distinct model; points that have none are left out."""
    usable = [point for point in points if space.has_model(point)]
    _, first = np.unique(_coordinates(space, usable), axis=0, return_index=True)
    return [usable[index] for index in sorted(first)]


def _coordinates(space: Space, points: Sequence[Point]) -> Doubles:
    """What tells one model of a space from another, one row per point: `Recipe.key` for many at once."""
    rows, count = _features(space, points), len(space.experts)
    if rows.shape[1] > count:
        rows[:, count:] = np.where(rows[:, :count] == 0, 1.0, rows[:, count:])  # nobody's density does not matter
    return rows.round(9) + 0.0  # no negative zeros, whose bytes differ


def _features(space: Space, points: Sequence[Point]) -> Doubles:
    """Coordinates in which near means alike: weights (divided by their sum where the method does so) and
    densities.
    """
    count, names = len(space.experts), list(space.intervals())
    values = [[point[name] for name in names] for point in points]
    rows = np.array(values, dtype=np.float64).reshape(len(points), len(names))
    if space.is_normalised:
        rows[:, :count] /= rows[:, :count].sum(axis=1, keepdims=True)
    return rows


def _point_of(recipe: Recipe, space: Space) -> Point:
    point = space.point(recipe.weights)
    return {
        name: recipe.densities[name.split(".", 1)[1]] if name.startswith("density.") else value
        for name, value in point.items()
    }


def _kernel(one: Doubles, other: Doubles) -> Doubles:
    squared = ((one[:, None, :] - other[None, :, :]) ** 2).sum(axis=2)
    kernel: Doubles = np.exp(-squared / (2 * LENGTH**2))
    return kernel


def predict(
    known: Doubles, values: Doubles, stand_in: Doubles, candidates: Doubles, candidate_stand_in: Doubles, trust: float
) -> tuple[Doubles, Doubles]:
    """Mean and standard deviation of the true score of each candidate.

    `known` [N, F] and `candidates` [C, F] are coordinates, `values` [N] true scores, the stand-ins belong to the
    rows. Line: slope `max(0, trust) sd(values) / sd(stand-in)` (the least-squares slope with the rank correlation in
    place of Pearson's).
    """
    spread = float(np.std(stand_in))
    slope = max(0.0, trust) * float(np.std(values)) / spread if spread else 0.0
    residuals = values - values.mean() - slope * (stand_in - stand_in.mean())
    variance = max(float(np.var(residuals)), 1e-8)
    gram = _kernel(known, known) + NOISE * np.eye(len(known))
    cross = _kernel(candidates, known)
    mean = values.mean() + slope * (candidate_stand_in - stand_in.mean()) + cross @ np.linalg.solve(gram, residuals)
    explained = np.einsum("cn,cn->c", cross, np.linalg.solve(gram, cross.T).T)
    return mean, np.sqrt(variance * np.clip(1 - explained, 1e-9, None))


def _is_single(trial: Trial) -> bool:
    return trial.origin.startswith("single:")


def mixes_of(done: Sequence[Trial]) -> dict[str, int]:
    """Where the distinct models that mix experts stand among the trials, by key; an expert alone is what the stand-in
    is made of.
    """
    found: dict[str, int] = {}
    for row, trial in enumerate(done):
        if not _is_single(trial):
            found.setdefault(trial.recipe.key(), row)
    return found


def fidelity_proposer(space: Space, stand_in: RanksPoints, seed: int, rungs: Sequence[RungScore] = ()) -> Proposer:
    """Propose the candidate with the highest optimistic prediction.

    With `rungs`, twice as many candidates as the rung after keeps are scored on each, the cheapest first, and the
    better half goes on.
    """
    pool = candidate_pool(space, seed)
    keys = [row.tobytes() for row in _coordinates(space, pool)]
    pool_features = _features(space, pool)

    def propose(done: Sequence[Trial], running: Sequence[Recipe]) -> Point | None:
        points = [_point_of(trial.recipe, space) for trial in done]
        begun = points + [_point_of(recipe, space) for recipe in running]
        seen = {row.tobytes() for row in _coordinates(space, begun)}
        free = [index for index, key in enumerate(keys) if key not in seen]
        if not free:
            return None
        unseen = stand_in.score_unseen(done)
        trust = measure_correlation(done, unseen)
        own = np.array([trial.value for trial in done])
        known = np.where([_is_single(trial) for trial in done], own, unseen)  # an expert alone is its own stand-in
        candidates = stand_in.score([pool[index] for index in free], done)
        mean, deviation = predict(_features(space, points), own, known, pool_features[free], candidates, trust)
        best = np.argsort(-(mean + OPTIMISM * deviation), kind="stable")[: 2 ** len(rungs)]
        mixes = [done[row] for row in mixes_of(done).values()]
        return climb(space, [pool[free[index]] for index in best], rungs, mixes, trust)

    return propose


def measure_correlation(done: Sequence[Trial], scores: Doubles) -> float:
    """The rank correlation of `scores`, one per trial, with the true scores of the distinct mixes."""
    chosen = list(mixes_of(done).values())
    return rank_correlation(scores[chosen], np.array([done[row].value for row in chosen]))


def climb(
    space: Space, points: Sequence[Point], rungs: Sequence[RungScore], done: Sequence[Trial], trust: float
) -> Point:
    """Halve the points, best predicted first, on each rung until one is left.

    A rung ranks them only if, over what is evaluated, its scores correlate better with the true ones than the stand-in
    does; otherwise the order stays and the rung costs nothing.
    """
    left = list(points)
    for number, rung in enumerate(rungs):
        if len(left) > 1 and rung_correlation(rung, done) > trust:
            left.sort(key=lambda point: -rung(space.recipe(point)))
        left = left[: 2 ** (len(rungs) - number - 1)]
    return left[0]


def rung_correlation(rung: RungScore, done: Sequence[Trial]) -> float:
    """The rank correlation of a rung with the true scores of `done`."""
    return rank_correlation(np.array([rung(trial.recipe) for trial in done]), np.array([t.value for t in done]))


def measure_trust(space: Space, stand_in: RanksPoints, done: Sequence[Trial]) -> dict[str, Any]:
    """Stand-in and true score of all distinct mixes and their rank correlation, each mix predicted from the others."""
    mixes, unseen = mixes_of(done).values(), stand_in.score_unseen(done)
    return {
        "method": space.method,
        "spearman": measure_correlation(done, unseen),
        "mixes": len(mixes),
        "points": [
            {"surrogate": float(unseen[row]), "true": done[row].value, "origin": done[row].origin} for row in mixes
        ],
    }
