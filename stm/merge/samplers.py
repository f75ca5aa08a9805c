"""Where the next candidate comes from: a grid, Optuna's random and TPE samplers, or CMA-ES through the package cma.

Samplers see the search half's scores only, through the study. They know nothing of models.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cma
import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from stm.merge.space import Point, Space
from stm.merge.trials import Trial

Proposer = Callable[[Sequence[Trial]], Point | None]  # the next point, or None where there is none left


class CmaSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """CMA-ES (Hansen 2016, arXiv 1604.00772) on the box of the space.

    Its state is not stored: it is replayed from the study's finished trials, so that a search goes on after an
    interruption exactly as it would have.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._intervals = space.intervals()
        self._seed = seed
        self._fallback = optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All dimensions are sampled together."""
        del study, trial
        return {name: optuna.distributions.FloatDistribution(i.low, i.high) for name, i in self._intervals.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The next member of the current generation, rounded to the steps of the space."""
        del trial, search_space
        lows = np.array([i.low for i in self._intervals.values()])
        widths = np.array([i.high - i.low for i in self._intervals.values()])
        # cma numbers seeds from 1; 0 would mean the clock.
        options = {"seed": self._seed + 1, "bounds": [0, 1], "verbose": -9}
        strategy = cma.CMAEvolutionStrategy(np.full(len(lows), 0.5), 0.3, options)
        done = [
            t
            for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
            if t.user_attrs.get("origin", "search") == "search"
        ]
        generation = strategy.ask()
        while len(done) >= strategy.popsize:
            told, done = done[: strategy.popsize], done[strategy.popsize :]
            strategy.tell(generation, [-float(t.value or 0.0) for t in told])  # no model: no score
            generation = strategy.ask()
        chosen = lows + widths * np.asarray(generation[len(done) % strategy.popsize])
        return {
            name: _round(float(value), interval.low, interval.high, interval.step)
            for (name, interval), value in zip(self._intervals.items(), chosen, strict=True)
        }

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed here, since all dimensions are relative; kept for Optuna's contract."""
        return self._fallback.sample_independent(study, trial, param_name, param_distribution)


def _round(value: float, low: float, high: float, step: float) -> float:
    rounded = low + round((value - low) / step) * step if step else value
    return round(min(high, max(low, rounded)), 10)


class ResumableSampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Another sampler, made anew for each trial with a seed that counts the trials told before, so that a search goes
    on after an interruption exactly as it would have.
    """

    def __init__(self, make: Callable[[int], optuna.samplers.BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._sampler = make(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        del trial
        told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        self._sampler = self._make((self._seed * 1_000_003 + len(told)) % 2**32)

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


def _make_random(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _make_tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=5, warn_independent_sampling=False)


def make_sampler(kind: str, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    """The Optuna sampler of that kind; kinds that propose points themselves get the random one, never asked."""
    if kind == "cma":
        return CmaSampler(space, seed)
    return ResumableSampler(_make_tpe if kind == "tpe" else _make_random, seed)


def grid_proposer(space: Space, trials: int) -> Proposer:
    """Propose the grid point by point, leaving out what gives a recipe that has been proposed or evaluated.

    With fewer `trials` than points the first ones are spread evenly, so that the whole range is covered.
    """
    seen: set[str] = set()
    total = sum(1 for _ in _distinct(space))
    first = {index * total // trials for index in range(min(trials, total))} if trials < total else set(range(total))
    passes = (enumerate(_distinct(space)), enumerate(_distinct(space)))
    chosen = itertools.chain(
        (point for index, point in passes[0] if index in first),
        (point for index, point in passes[1] if index not in first),
    )

    def propose(done: Sequence[Trial]) -> Point | None:
        seen.update(trial.recipe.key() for trial in done)
        return next((point for point in chosen if space.recipe(point).key() not in seen), None)

    return propose


def _distinct(space: Space) -> Iterator[Point]:
    keys: set[str] = set()
    for point in space.grid():
        key = space.recipe(point).key()
        if key not in keys:
            keys.add(key)
            yield point
