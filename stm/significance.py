"""How far a difference between retrievers can be trusted: intervals, tests, corrections, effect sizes.

Takes scores per query, one array per task with a column per model, and returns figures; knows nothing of models,
files or metrics. Tasks are strata, and an average over tasks weighs each task the same. What is resampled are groups of
queries: those that ask for the same answers succeed and fail together, and say less than as many others would. Where
no groups are given, each query is one.

Legend of shapes: N queries of a task, G groups of them, M columns (models or differences), R resamples.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from stm.errors import DataError

Array = npt.NDArray[np.float64]
Groups = npt.NDArray[np.int64]  # [N]: the group of each query of a task, counted from 0
Draw = Callable[[np.random.Generator, int, int], npt.NDArray[Any]]  # of weights [R, G] from a generator, R and G
CELLS_PER_BLOCK = 4_000_000  # resampling weights held at once: 32 MB of float64


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence limits."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A paired comparison: the mean difference with limits, its two-sided p-value, and how it comes about."""

    difference: float
    low: float
    high: float
    p_value: float
    effect: float  # standardised: mean difference over the standard deviation of the differences (Cohen's d for pairs)
    wins: int
    losses: int
    ties: int


def _check_strata(strata: Sequence[Array]) -> None:
    if not strata or any(values_NM.ndim != 2 or not len(values_NM) for values_NM in strata):
        raise DataError("a comparison needs scores of at least one query per task, as rows, with one column per model")
    if any(not np.isfinite(values_NM).all() for values_NM in strata):
        raise DataError("scores to compare hold NaN or infinity; evaluate the models again")


def group_alike(labels: Iterable[Hashable]) -> Groups:
    """Return the group of each label: equal ones are in one, counted from 0 as they first occur."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def count_groups(groups_N: Groups) -> int:
    """Return G."""
    return int(groups_N.max()) + 1


def _each_alone(strata: Sequence[Array]) -> list[Groups]:
    return [np.arange(len(values_NM)) for values_NM in strata]


def bootstrap_means(
    strata: Sequence[Array], resamples: int, seed: int, groups: Sequence[Groups] | None = None
) -> list[Array]:
    """Return bootstrap means [R, M] per stratum [N, M], the same resampled groups for all columns.

    Groups are drawn whole (the cluster bootstrap; Davison and Hinkley 1997, section 3.8), so a resample of groups of
    several sizes may hold more or fewer queries. Deviations are widened by sqrt(G / (G - 1)): the plain bootstrap uses
    the biased variance and covers too rarely on few queries (Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap", section 3.2).
    """

    def draw(rng: np.random.Generator, size: int, count: int) -> npt.NDArray[np.int64]:
        return rng.multinomial(count, np.full(count, 1 / count), size=size)

    groups, widened = groups or _each_alone(strata), []
    drawn = _weighted_means(strata, groups, resamples, seed, draw)
    for values_NM, groups_N, means_RM in zip(strata, groups, drawn, strict=True):
        count, centre_M = count_groups(groups_N), values_NM.mean(axis=0)
        widened.append(centre_M + (means_RM - centre_M) * np.sqrt(count / max(1, count - 1)))
    return widened


def _weighted_means(
    strata: Sequence[Array], groups: Sequence[Groups], rounds: int, seed: int, draw: Draw
) -> list[Array]:
    """Means [R, M] per stratum [N, M], its groups weighted by what `draw` gives for (generator, R, G); in blocks."""
    _check_strata(strata)
    rng = np.random.default_rng(seed)
    drawn = []
    for values_NM, groups_N in zip(strata, groups, strict=True):
        sizes_G, totals_GM = np.bincount(groups_N), np.zeros((count_groups(groups_N), values_NM.shape[1]))
        np.add.at(totals_GM, groups_N, values_NM)
        block = max(1, CELLS_PER_BLOCK // len(sizes_G))
        blocks = []
        for start in range(0, rounds, block):
            weights_RG = draw(rng, min(block, rounds - start), len(sizes_G))
            blocks.append(weights_RG @ totals_GM / (np.abs(weights_RG) @ sizes_G)[:, None])
        drawn.append(np.concatenate(blocks))
    return drawn


def macro_mean(strata: Sequence[Array]) -> Array:
    """Return the mean over strata of the column means [M]."""
    _check_strata(strata)
    means: Array = np.mean([values_NM.mean(axis=0) for values_NM in strata], axis=0)
    return means


def percentile_intervals(centre_M: Array, means_RM: Array, level: float) -> list[Interval]:
    """Return the percentile interval of each column at the confidence `level`, for example 0.95."""
    tail = 50 * (1 - level)
    low_M, high_M = np.percentile(means_RM, [tail, 100 - tail], axis=0)
    return [Interval(float(c), float(lo), float(hi)) for c, lo, hi in zip(centre_M, low_M, high_M, strict=True)]


def mean_intervals(
    strata: Sequence[Array], resamples: int, seed: int, level: float = 0.95, groups: Sequence[Groups] | None = None
) -> list[Interval]:
    """Return per column the mean over strata with its stratified bootstrap interval."""
    means_RM = np.mean(bootstrap_means(strata, resamples, seed, groups), axis=0)
    return percentile_intervals(macro_mean(strata), means_RM, level)


def randomised_means(
    strata: Sequence[Array], rounds: int, seed: int, groups: Sequence[Groups] | None = None
) -> list[Array]:
    """Return means [R, M] per stratum of paired differences [N, M] with each group's sign flipped at random."""

    def flip(rng: np.random.Generator, size: int, count: int) -> npt.NDArray[Any]:
        return rng.integers(0, 2, size=(size, count), dtype=np.int8) * 2.0 - 1.0

    return _weighted_means(strata, groups or _each_alone(strata), rounds, seed, flip)


def p_values(observed_M: Array, randomised_RM: Array) -> Array:
    """Return the two-sided p-values [M]: how often chance alone is as far from 0; never 0, by (count + 1) / (R + 1)."""
    slack = 1e-12  # sums of the same numbers in another order must count as equal
    extreme_M = (np.abs(randomised_RM) >= np.abs(observed_M) - slack).sum(axis=0)
    values: Array = (extreme_M + 1) / (len(randomised_RM) + 1)
    return values


def least_p_value(rounds: int, flipped: int) -> float:
    """Return the least p-value that so many rounds, and so many groups whose signs are flipped, can give.

    Of the 2^G ways to flip, at least two are as far from 0 as what was observed: it and its mirror image.
    """
    return max(1 / (rounds + 1), 2.0 ** (1 - flipped))


def seed_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean over trainings with several seeds and its interval by Student's t distribution.

    The seeds are the unit: it says where the mean over other seeds would lie, on these very queries.
    """
    mean, spread, count = float(np.mean(values)), _spread(values), len(values)
    reach = float(stats.t.ppf((1 + level) / 2, count - 1)) * spread / count**0.5
    return Interval(mean, mean - reach, mean + reach)


def seed_difference(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Interval:
    """Return mean(first) - mean(second) over unpaired seeds, with Welch's (1947) interval."""
    difference = float(np.mean(first) - np.mean(second))
    if _spread(first) == _spread(second) == 0:
        return Interval(difference, difference, difference)
    found = stats.ttest_ind(first, second, equal_var=False).confidence_interval(level)
    return Interval(difference, float(found.low), float(found.high))


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        raise DataError("an interval over training seeds needs at least two of them")
    return float(np.std(values, ddof=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's (1979) adjusted p-values in the order given; they control the family-wise error."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def corrected_width(comparisons: int, level: float) -> float:
    """Return by how much an interval at `level` widens if it is to hold for the strictest of so many comparisons, as
    the first step of Holm's correction asks; by the normal distribution, 1.40 for eight at 0.95.
    """
    alpha = 1 - level
    return float(stats.norm.isf(alpha / (2 * comparisons)) / stats.norm.isf(alpha / 2))


def _effects(strata: Sequence[Array]) -> Array:
    centre_M = macro_mean(strata)
    variance_M = np.mean([values_NM.var(axis=0, ddof=1 if len(values_NM) > 1 else 0) for values_NM in strata], axis=0)
    spread_M = np.sqrt(variance_M)
    effects: Array = np.divide(centre_M, spread_M, out=np.zeros_like(centre_M), where=spread_M > 1e-9)
    return effects


@dataclass(frozen=True)
class Resampled:
    """All resamples that a table of scores needs, drawn once: any scope of tasks reads its figures from them.

    `column` is the model that the others are compared with. The paired randomisation test (Fisher; for retrieval
    Smucker, Allan and Carterette 2007) takes the sign of each group's difference for a coin toss if two models are
    the same.
    """

    strata: list[Array]  # [N, M] per task
    groups: list[Groups]  # per task
    column: int
    bootstrapped: list[Array]  # [R, M] per task: resampled means
    randomised: list[Array]  # [R, M] per task: means of differences under the null hypothesis

    def intervals(self, tasks: Sequence[int], level: float) -> list[Interval]:
        """Return every column's mean over those tasks with its interval at the confidence `level`."""
        means_RM = np.mean([self.bootstrapped[task] for task in tasks], axis=0)
        return percentile_intervals(macro_mean([self.strata[task] for task in tasks]), means_RM, level)

    def comparisons(self, tasks: Sequence[int], level: float) -> list[Comparison]:
        """Compare `column` with every column over those tasks; positive differences say that `column` is higher."""
        differences = [self.strata[task][:, [self.column]] - self.strata[task] for task in tasks]
        means_RM = np.mean([self.bootstrapped[task] for task in tasks], axis=0)
        centre_M = macro_mean(differences)
        intervals = percentile_intervals(centre_M, means_RM[:, [self.column]] - means_RM, level)
        randomised_RM = np.mean([self.randomised[task] for task in tasks], axis=0)
        effects_M, all_NM = _effects(differences), np.concatenate(differences)
        # On few groups the rounds estimate a p-value too coarsely, and could fall below what is possible.
        least = least_p_value(len(randomised_RM), sum(count_groups(self.groups[task]) for task in tasks))
        chance_M = np.maximum(p_values(centre_M, randomised_RM), least)
        return [
            Comparison(
                row.mean, row.low, row.high, float(chance_M[index]), float(effects_M[index]),
                int((all_NM[:, index] > 0).sum()), int((all_NM[:, index] < 0).sum()),
                int((all_NM[:, index] == 0).sum()),
            )
            for index, row in enumerate(intervals)
        ]  # fmt: skip


def resample(
    strata: Sequence[Array], column: int, rounds: int, seed: int, groups: Sequence[Groups] | None = None
) -> Resampled:
    """Draw the resamples of scores [N, M] per task; the same seed gives the same figures."""
    _check_strata(strata)
    differences = [values_NM[:, [column]] - values_NM for values_NM in strata]
    groups = groups or _each_alone(strata)
    return Resampled(
        list(strata), list(groups), column, bootstrap_means(strata, rounds, seed, groups),
        randomised_means(differences, rounds, seed + 1, groups),
    )  # fmt: skip
