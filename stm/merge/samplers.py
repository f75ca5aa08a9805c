"""Where the next candidate comes from: a grid, Optuna's random and TPE samplers, or CMA-ES through the package cma.

Samplers see the search half's scores only, through the study. They know nothing of models.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

import cma
import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from stm.merge.recipe import Recipe
from stm.merge.space import Interval, Point, Space
from stm.merge.trials import Trial

Doubles = npt.NDArray[np.float64]
# The next point after what is done and what others are at, or None where there is none left.
Proposer = Callable[[Sequence[Trial], Sequence[Recipe]], Point | None]


class CmaSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """CMA-ES (Hansen 2016, arXiv 1604.00772) on the box of the space.

    Its state is not stored: it is replayed from the study's finished trials, so that a search goes on after an
    interruption exactly as it would have. In a shared study a generation is whatever has been finished, in that order.
    """

    def __init__(self, space: Space, seed: int, is_shared: bool = False) -> None:
        self._intervals = space.intervals()
        self._seed, self._is_shared = seed, is_shared
        self._fallback = optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All dimensions are sampled together."""
        del study, trial
        return {name: optuna.distributions.FloatDistribution(i.low, i.high) for name, i in self._intervals.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next member of the current generation, rounded to the steps of the space."""
        del search_space
        lows = np.array([i.low for i in self._intervals.values()])
        widths = np.array([i.high - i.low for i in self._intervals.values()])
        done = [
            t
            for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            if t.user_attrs.get("origin", "search") == "search"
        ]
        if self._is_shared:
            done.sort(key=lambda t: (t.datetime_complete or datetime.max, t.number))
            points = [(np.array([t.params[name] for name in self._intervals]) - lows) / widths for t in done]
            member = self._draw(_costs(done), points, trial.number)
        else:
            member = self._next_member(_costs(done))
        chosen = lows + widths * member
        return {
            name: _round(float(value), interval)
            for (name, interval), value in zip(self._intervals.items(), chosen, strict=True)
        }

    def _start(self, seed: int) -> cma.CMAEvolutionStrategy:
        # cma numbers seeds from 1; 0 would mean the clock.
        options = {"seed": seed + 1, "bounds": [0, 1], "verbose": -9}
        return cma.CMAEvolutionStrategy(np.full(len(self._intervals), 0.5), 0.3, options)

    def _next_member(self, costs: list[float]) -> Doubles:
        """The member after those whose costs are given, all of one process: each has its place in its generation."""
        strategy = self._start(self._seed)
        generation = strategy.ask()
        while len(costs) >= strategy.popsize:
            told, costs = costs[: strategy.popsize], costs[strategy.popsize :]
            strategy.tell(generation, told)
            generation = strategy.ask()
        return np.asarray(generation[len(costs)])

    def _draw(self, costs: list[float], points: list[Doubles], number: int) -> Doubles:
        """A member for the trial of that number, drawn as no other trial's is, after generations of finished points."""
        strategy = self._start(_mix(self._seed, number))
        for start in range(0, len(points) - strategy.popsize + 1, strategy.popsize):
            strategy.ask()
            strategy.tell(points[start : start + strategy.popsize], costs[start : start + strategy.popsize])
        return np.asarray(strategy.ask(1)[0])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed here, since all dimensions are relative; kept for Optuna's contract."""
        return self._fallback.sample_independent(study, trial, param_name, param_distribution)


def _costs(trials: Sequence[FrozenTrial]) -> list[float]:
    return [-float(trial.value or 0.0) for trial in trials]  # no model: no score


def _mix(seed: int, count: int) -> int:
    return (seed * 1_000_003 + count) % 2**32


def _round(value: float, interval: Interval) -> float:
    """The nearest value of the interval; the last one of a grid lies below `high` where the step does not divide."""
    low, step = interval.low, interval.step
    rounded = low + round((value - low) / step) * step if step else value
    high = interval.values()[-1] if step else interval.high
    return round(min(high, max(low, rounded)), 10)


class ResumableSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Another sampler, made anew for each trial with a seed that counts the trials told before, so that a search goes
    on after an interruption exactly as it would have.

    In a shared study the trial's own number takes the place of that count: two processes never have the same.
    """

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], seed: int, is_shared: bool = False) -> None:
        self._make, self._seed, self._is_shared = make, seed, is_shared
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        self._sampler = self._make(_mix(self._seed, trial.number if self._is_shared else len(told)))

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler does."""
        return dict(self._sampler.infer_relative_search_space(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler does."""
        return dict(self._sampler.sample_relative(study, trial, search_space))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler does."""
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


def _make_tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=5, warn_independent_sampling=False)


def make_sampler(kind: str, space: Space, seed: int, is_shared: bool = False) -> optuna.samplers.BaseSampler:
    """The Optuna sampler of that kind; kinds that propose points themselves get the random one, never asked.

    `is_shared`: whether other processes have trials in the study.
    """
    if kind == "cma":
        return CmaSampler(space, seed, is_shared)
    return ResumableSampler(_make_tpe if kind == "tpe" else optuna.samplers.RandomSampler, seed, is_shared)


def grid_proposer(space: Space, seed: int) -> Proposer:
    """Propose the grid's points in a random order, leaving out what gives a recipe that has been proposed or evaluated.

    The order depends on the seed alone. So the first points are a sample without replacement, in which each expert
    takes nearly all its values; every n-th point in the order of the grid would hold most experts at one value.
    """
    seen: set[str] = set()
    points = (_grid_point(space, index) for index in _shuffled(space.grid_size(), seed))

    def propose(done: Sequence[Trial], running: Sequence[Recipe]) -> Point | None:
        seen.update(recipe.key() for recipe in [*(trial.recipe for trial in done), *running])
        for point in points:
            if space.has_model(point) and (key := space.recipe(point).key()) not in seen:
                seen.add(key)
                return point
        return None

    return propose


def _shuffled(size: int, seed: int) -> Iterator[int]:
    """The numbers below `size` in a random order (Fisher-Yates); memory grows with those taken, not with `size`."""
    rng, moved = random.Random(seed), dict[int, int]()
    for last in range(size - 1, -1, -1):
        place = rng.randrange(last + 1)
        drawn = moved.get(place, place)
        moved[place] = moved.get(last, last)
        moved.pop(last, None)
        yield drawn


def _grid_point(space: Space, index: int) -> Point:
    """The point of the grid with that number, below `grid_size`; not every point has a model."""
    point: Point = {}
    for name, interval in space.intervals().items():
        values = interval.values()
        index, place = divmod(index, len(values))
        point[name] = values[place]
    return point
