"""The search: spaces, fixed rows, samplers, resumption, the guard, and storages of another search."""

import multiprocessing
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cma
import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.trial import TrialState

from stm.errors import ParamsError
from stm.merge.dev import Scores
from stm.merge.fidelity import Doubles, fidelity_proposer
from stm.merge.guard import compare, decide
from stm.merge.recipe import Recipe
from stm.merge.run import ablation
from stm.merge.samplers import Proposer, grid_proposer, make_sampler
from stm.merge.search import run_search
from stm.merge.space import Interval, Point, Space, fixed_rows
from stm.merge.trials import (
    Trial,
    ask,
    earlier_points,
    enqueue,
    finished_trials,
    give_up,
    open_study,
    running_points,
    storage_url,
    tell,
)

EXPERTS = ("med_real", "nlu", "search")
BEST = {"med_real": 0.7, "nlu": 0.1, "search": 0.2}


def make_space(method: str = "linear", step: float = 0.1, densities: Interval | None = None) -> Space:
    return Space(method, EXPERTS, Interval(0.0, 1.0, step), densities, 1.0, 1.0, 0, "l1")


def make_scores(search: float, holdout: float) -> Scores:
    return Scores({"t": {"search": {"q1": search, "q2": search}, "holdout": {"q3": holdout, "q4": holdout}}})


class Bowl:
    """An evaluation whose best mix is known: one minus the squared distance of the normalised weights from BEST."""

    def __init__(self) -> None:
        self.calls: list[Recipe] = []

    def __call__(self, origin: str, recipe: Recipe) -> Trial:
        self.calls.append(recipe)
        total = sum(recipe.weights.values())
        distance = sum((recipe.weights[name] / total - BEST[name]) ** 2 for name in EXPERTS)
        return Trial(origin, recipe, make_scores(1 - distance, 1 - distance), tokens=10, seconds=0.1)


def search(
    space: Space, kind: str, trials: int, evaluate: Callable[[str, Recipe], Trial], storage: BaseStorage | None = None
) -> list[Trial]:
    study = open_study(space, "key", storage or InMemoryStorage(), make_sampler(kind, space, seed=1))
    propose = grid_proposer(space, seed=1) if kind == "grid" else None
    return run_search(space, study, evaluate, trials, propose, is_shared=False)


def test_fixed_rows_are_uniform_singles_and_drop_ones() -> None:
    rows = dict(fixed_rows(make_space()))
    assert list(rows) == ["uniform", *(f"single:{n}" for n in EXPERTS), *(f"without:{n}" for n in EXPERTS)]
    assert rows["single:nlu"] == {"weight.med_real": 0.0, "weight.nlu": 1.0, "weight.search": 0.0}
    assert rows["without:nlu"]["weight.nlu"] == 0
    assert rows["without:nlu"]["weight.search"] == 0.5
    assert [o for o, _ in fixed_rows(Space("linear", ("a",), Interval(0, 1, 0.1), None, 1, 1, 0, "l1"))] == ["uniform"]


def test_the_grid_is_the_papers() -> None:
    assert Interval(0.0, 1.0, 0.1).values() == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert len(list(make_space().grid())) == 11**3 - 1
    assert Interval(0.1, 0.9, 0.4).values() == [0.1, 0.5, 0.9]


def test_densities_are_dimensions_only_where_they_matter() -> None:
    interval = Interval(0.1, 1.0, 0.1)
    assert not make_space("linear", densities=interval).searches_densities
    space = make_space("ties", densities=interval)
    assert len(space.intervals()) == 6
    recipe = space.recipe({**space.point(BEST), "density.nlu": 0.4})
    assert recipe.densities == {"med_real": 1.0, "nlu": 0.4, "search": 1.0}


@pytest.mark.parametrize("kind", ["random", "tpe", "cma", "grid"])
def test_every_kind_evaluates_its_budget_and_the_fixed_rows_first(kind: str) -> None:
    bowl = Bowl()
    trials = search(make_space(), kind, 8, bowl)
    assert [trial.origin for trial in trials[:7]] == [origin for origin, _ in fixed_rows(make_space())]
    assert len(bowl.calls) == 7 + 8
    assert len({recipe.key() for recipe in bowl.calls}) == len(bowl.calls)
    assert all(0 <= weight <= 1 for recipe in bowl.calls for weight in recipe.weights.values())


@pytest.mark.parametrize("kind", ["tpe", "cma"])
def test_model_based_searches_come_near_the_best(kind: str) -> None:
    trials = search(make_space(step=0.0), kind, 40, Bowl())
    assert max(trial.value for trial in trials) > 0.985


def test_a_whole_grid_finds_the_best_and_evaluates_each_model_once() -> None:
    bowl = Bowl()
    trials = search(make_space(step=0.5), "grid", 1000, bowl)
    assert len({recipe.key() for recipe in bowl.calls}) == len(bowl.calls)
    distinct = {make_space(step=0.5).recipe(point).key() for point in make_space(step=0.5).grid()}
    assert distinct <= {trial.recipe.key() for trial in trials}


def take(propose: Proposer, count: int) -> list[Point]:
    """The first points that are proposed, at most `count`."""
    points = (propose([], []) for _ in range(count))
    return [point for point in points if point is not None]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("trials", "least"), [(64, 14), (256, 16)])
def test_in_a_part_of_a_grid_every_expert_takes_nearly_all_its_values(trials: int, least: int, seed: int) -> None:
    space = Space("task_arithmetic", ("a", "b", "c", "d"), Interval(0.0, 1.5, 0.1), None, 1.0, 1.0, 0, "l1")
    points = take(grid_proposer(space, seed), trials)
    assert len(points) == trials
    assert all(len({point[name] for point in points}) >= least for name in space.intervals())
    assert take(grid_proposer(space, seed), trials) == points
    assert take(grid_proposer(space, seed + 1), trials) != points


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_grid_proposes_each_of_its_models_once(method: str) -> None:
    space = make_space(method, step=0.25)
    proposed = [space.recipe(point).key() for point in take(grid_proposer(space, seed=1), 1000)]
    assert sorted(proposed) == sorted({space.recipe(point).key() for point in space.grid()})


def test_a_grid_of_any_size_is_sampled() -> None:
    experts = tuple(f"e{index}" for index in range(30))
    space = Space("task_arithmetic", experts, Interval(0.0, 1.5, 0.01), None, 1.0, 1.0, 0, "l1")
    points = take(grid_proposer(space, seed=1), 50)
    assert len({tuple(point.values()) for point in points}) == 50
    assert {value for point in points for value in point.values()} == set(space.weights.values())


def test_a_grid_leaves_out_what_cannot_be_normalised() -> None:
    space = Space("linear", ("a", "b"), Interval(-1.0, 1.0, 1.0), None, 1.0, 1.0, 0, "l1")
    assert len(list(space.grid())) == 6
    assert len(list(replace(space, method="task_arithmetic").grid())) == 8


@pytest.mark.parametrize("kind", ["random", "tpe", "cma"])
def test_a_point_without_any_weight_is_no_candidate(kind: str) -> None:
    """Every expert hurts here, so that a search that may leave all out would end with nothing merged."""
    space = Space("task_arithmetic", ("a", "b"), Interval(0.0, 1.0, 0.5), None, 1.0, 1.0, 0, "l1")
    evaluated: list[Recipe] = []

    def evaluate(origin: str, recipe: Recipe) -> Trial:
        evaluated.append(recipe)
        value = 0.9 - 0.1 * sum(recipe.weights.values())
        return Trial(origin, recipe, make_scores(value, value), 1, 0.1)

    study = open_study(space, "key", InMemoryStorage(), make_sampler(kind, space, 0))
    trials = run_search(space, study, evaluate, 6, None, is_shared=False)
    assert study.get_trials(states=(TrialState.PRUNED,)), "it was drawn"
    assert all(any(recipe.weights.values()) for recipe in [*evaluated, decide(trials).taken.recipe])


def test_cma_stays_on_a_grid_whose_step_does_not_divide_the_interval() -> None:
    space = replace(make_space("task_arithmetic"), weights=Interval(0.0, 1.5, 0.4))
    trials = search(space, "cma", 12, Bowl())
    assert {weight for t in trials if t.origin == "search" for weight in t.recipe.weights.values()} <= set(
        space.weights.values()
    )
    bowl, storage = Bowl(), InMemoryStorage()

    def interrupted(origin: str, recipe: Recipe) -> Trial:
        if len(bowl.calls) == 14:
            raise KeyboardInterrupt
        return bowl(origin, recipe)

    with pytest.raises(KeyboardInterrupt):
        search(space, "cma", 12, interrupted, storage)
    assert [t.recipe for t in search(space, "cma", 12, bowl, storage)] == [t.recipe for t in trials]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cma_goes_on_after_points_that_have_no_model(seed: int) -> None:
    space = Space("linear", ("a", "b"), Interval(-1.0, 1.0, 0.1), None, 1.0, 1.0, 0, "l1")

    def evaluate(origin: str, recipe: Recipe) -> Trial:
        value = 1 / (1 + abs(recipe.factors()["a"] - 0.4))
        return Trial(origin, recipe, make_scores(value, value), 1, 0.1)

    study = open_study(space, "key", InMemoryStorage(), make_sampler("cma", space, seed))
    trials = run_search(space, study, evaluate, 30, None, is_shared=False)
    assert len({trial.recipe.key() for trial in trials if trial.origin == "search"}) >= 25


def test_same_seed_same_search() -> None:
    for kind in ("random", "tpe", "cma"):
        one = search(make_space(), kind, 10, Bowl())
        two = search(make_space(), kind, 10, Bowl())
        assert [trial.recipe for trial in one] == [trial.recipe for trial in two]


@pytest.mark.parametrize("kind", ["random", "cma", "grid"])
def test_an_interrupted_search_goes_on(tmp_path: Path, kind: str) -> None:
    bowl, storage = Bowl(), RDBStorage(storage_url("", "key", tmp_path)) if kind == "cma" else InMemoryStorage()

    def interrupted(origin: str, recipe: Recipe) -> Trial:
        if len(bowl.calls) == 9:
            raise KeyboardInterrupt
        return bowl(origin, recipe)

    with pytest.raises(KeyboardInterrupt):
        search(make_space(), kind, 6, interrupted, storage)
    trials = search(make_space(), kind, 6, bowl, storage)
    assert len(trials) >= 13
    assert len(bowl.calls) == 13
    assert len({recipe.key() for recipe in bowl.calls}) == 13
    search(make_space(), kind, 6, bowl, storage)
    assert len(bowl.calls) == 13, "a finished search evaluates nothing again"


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("kind", ["random", "tpe", "cma", "grid"])
def test_an_interrupted_search_ends_with_the_trials_of_an_undisturbed_one(
    kind: str, is_killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome(trials: list[Trial]) -> list[tuple[str, Recipe, float]]:
        return [(trial.origin, trial.recipe, trial.value) for trial in trials]

    undisturbed = outcome(search(make_space(), kind, 6, Bowl()))
    for count in (0, 2, 5, 7, 9, 12):
        bowl, storage = Bowl(), InMemoryStorage()

        def interrupted(origin: str, recipe: Recipe, bowl: Bowl = bowl, count: int = count) -> Trial:
            if len(bowl.calls) == count:
                raise KeyboardInterrupt
            return bowl(origin, recipe)

        with monkeypatch.context() as patched:
            if is_killed:  # then the trial that is running stays so
                patched.setattr("stm.merge.search.give_up", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                search(make_space(), kind, 6, interrupted, storage)
        assert outcome(search(make_space(), kind, 6, bowl, storage)) == undisturbed, count
        assert len(bowl.calls) == 13


@pytest.mark.parametrize(
    ("kind", "method", "trials"), [("cma", "task_arithmetic", 10), ("random", "linear", 14), ("tpe", "linear", 14)]
)
def test_a_search_that_repeats_itself_is_as_long_after_an_interruption(kind: str, method: str, trials: int) -> None:
    space = make_space(method, 0.5)
    undisturbed = [trial.recipe for trial in search(space, kind, trials, Bowl())]
    bowl, storage = Bowl(), InMemoryStorage()
    for count in (3, 13):

        def interrupted(origin: str, recipe: Recipe, count: int = count) -> Trial:
            if len(bowl.calls) == count:
                raise KeyboardInterrupt
            return bowl(origin, recipe)

        with suppress(KeyboardInterrupt):
            search(space, kind, trials, interrupted, storage)
    assert [trial.recipe for trial in search(space, kind, trials, bowl, storage)] == undisturbed


def test_an_interruption_within_the_fixed_rows_loses_none() -> None:
    bowl, storage = Bowl(), InMemoryStorage()

    def interrupted(origin: str, recipe: Recipe) -> Trial:
        if origin == "single:nlu":
            raise KeyboardInterrupt
        return bowl(origin, recipe)

    with pytest.raises(KeyboardInterrupt):
        search(make_space(), "random", 0, interrupted, storage)
    trials = search(make_space(), "random", 0, bowl, storage)
    assert {trial.origin for trial in trials} == {origin for origin, _ in fixed_rows(make_space())}


def test_a_storage_of_another_search_is_refused_with_the_difference(tmp_path: Path) -> None:
    url = storage_url(str(tmp_path / "shared.db"), "unused", tmp_path)
    sampler = optuna.samplers.RandomSampler(seed=0)
    open_study(make_space(), "key", url, sampler)
    open_study(make_space(), "key", url, sampler)
    with pytest.raises(ParamsError, match=r"another space.*intervals"):
        open_study(make_space(step=0.2), "other", url, sampler)
    with pytest.raises(ParamsError, match="other experts, dev tasks or prompts"):
        open_study(make_space(), "other", url, sampler)


def test_a_storage_of_another_search_kind_is_refused_and_no_password_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, sampler = f"sqlite:///{tmp_path / 'one.db'}", optuna.samplers.RandomSampler()
    open_study(make_space(), "key", url, sampler)
    with pytest.raises(ParamsError, match=r"of another search\.kind"):
        open_study(make_space(), "key of another kind", url, sampler)
    monkeypatch.setattr(optuna, "create_study", lambda **_: 1 / 0)
    monkeypatch.setattr("stm.merge.trials.WAITS", ())
    with pytest.raises(ParamsError, match=r"postgresql://host/db: ZeroDivisionError"):
        open_study(make_space(), "key", "postgresql://user:secret@host/db", sampler)


def test_a_storage_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("hello " * 1000)
    with pytest.raises(ParamsError, match="cannot open the search storage"):
        open_study(make_space(), "key", f"sqlite:///{tmp_path / 'text.db'}", optuna.samplers.RandomSampler())


def share_a_search(url: str, seed: int, budget: int, folder: str) -> None:
    """One process of a shared search; what it evaluates leaves a line in a file of its own."""

    def evaluate(origin: str, recipe: Recipe) -> Trial:
        with (Path(folder) / f"{seed}.txt").open("a") as stream:
            stream.write(recipe.key() + "\n")
        time.sleep(0.01)
        return Bowl()(origin, recipe)

    space = make_space()
    study = open_study(space, "key", url, make_sampler("random", space, seed, is_shared=True))
    run_search(space, study, evaluate, budget, None, is_shared=True)


def test_a_point_that_another_process_has_finished_in_between_is_left_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space()
    study = open_study(
        space, "key", storage_url(str(tmp_path / "one.db"), "", tmp_path), make_sampler("random", space, 0)
    )
    suggest, finished = optuna.Trial._suggest, []

    def interrupted(self: optuna.Trial, name: str, distribution: Any) -> Any:
        if not finished:
            finished.append(self.number)
            study.tell(self.number, 0.5)
        return suggest(self, name, distribution)

    monkeypatch.setattr(optuna.Trial, "_suggest", interrupted)
    assert ask(study, space).number == 1
    assert finished == [0]


def test_what_another_process_has_told_in_between_stands(tmp_path: Path) -> None:
    space = make_space()
    url = storage_url(str(tmp_path / "one.db"), "", tmp_path)
    study, other = (open_study(space, "key", url, make_sampler("random", space, seed)) for seed in (0, 1))
    for has_result in (True, False):
        trial = ask(study, space)
        other.tell(trial.number, 0.25)
        if has_result:
            tell(study, trial, Bowl()("search", space.recipe(trial.params)))
        else:
            give_up(study, trial, TrialState.FAIL)
        assert other.trials[trial.number].value == 0.25


def test_a_full_disk_and_a_missing_driver_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = optuna.samplers.RandomSampler()
    for error, expected, words in (
        (sqlite3.OperationalError("database or disk is full"), sqlite3.OperationalError, "disk is full"),
        (ModuleNotFoundError("", name="psycopg2"), ParamsError, "needs the package psycopg2; install it"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(optuna, "create_study", Mock(side_effect=error))
            with pytest.raises(expected, match=words):
                open_study(make_space(), "key", f"sqlite:///{tmp_path / 'one.db'}", sampler)


def test_two_processes_share_one_storage(tmp_path: Path) -> None:
    space, url = make_space(), storage_url(str(tmp_path / "shared.db"), "", tmp_path)
    open_study(space, "key", url, make_sampler("random", space, 0))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=share_a_search, args=(url, seed, 10, str(tmp_path))) for seed in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    done = finished_trials(open_study(space, "key", url, make_sampler("random", space, 0)), space, fixed_rows(space))
    assert {trial.origin for trial in done} >= {origin for origin, _ in fixed_rows(space)}
    assert len({trial.recipe.key() for trial in done}) >= 7 + 10
    work = [(tmp_path / f"{seed}.txt").read_text().split() for seed in (1, 2)]
    assert all(work), "both took part"
    # Each may have begun what the other was at; nothing is done by both as a rule.
    assert len(set(work[0]) & set(work[1])) <= 3


def test_a_row_that_another_process_left_is_done_in_the_end(tmp_path: Path) -> None:
    space, url = make_space(), storage_url(str(tmp_path / "shared.db"), "", tmp_path)
    study = open_study(space, "key", url, make_sampler("random", space, 0))
    enqueue(study, space.uniform(), "uniform")
    ask(study, space)  # somebody else begins uniform weights and dies
    trials = run_search(space, study, Bowl(), 2, None, is_shared=True)
    assert {trial.origin for trial in trials} >= {origin for origin, _ in fixed_rows(space)}


def join(space: Space, kind: str, trials: int, evaluate: Callable[[str, Recipe], Trial], storage: BaseStorage) -> None:
    """Take part in a shared search."""
    study = open_study(space, "key", storage, make_sampler(kind, space, 1, is_shared=True))
    propose = grid_proposer(space, seed=1) if kind == "grid" else None
    if kind == "multi_fidelity":
        propose = fidelity_proposer(space, Flat(), 0)
    run_search(space, study, evaluate, trials, propose, is_shared=True)


class Flat:
    """A stand-in that knows nothing."""

    def score(self, points: Sequence[Point], done: Sequence[Trial]) -> Doubles:
        return np.zeros(len(points))

    def score_unseen(self, done: Sequence[Trial]) -> Doubles:
        return np.zeros(len(done))


@pytest.mark.parametrize("kind", ["grid", "random", "tpe", "cma", "multi_fidelity"])
def test_what_another_process_is_at_is_left_to_it(kind: str) -> None:
    bowl, storage, space = Bowl(), InMemoryStorage(), make_space()

    def evaluate(origin: str, recipe: Recipe) -> Trial:
        found = bowl(origin, recipe)
        if origin == "search" and len(bowl.calls) == 8:
            join(space, kind, 4, bowl, storage)  # somebody else does the rest in the meantime
        return found

    join(space, kind, 4, evaluate, storage)
    assert len({recipe.key() for recipe in bowl.calls}) == len(bowl.calls) == 7 + 5


@pytest.mark.parametrize("kind", ["grid", "random", "multi_fidelity"])
def test_what_a_dead_process_was_at_is_done_when_nothing_else_is_left(kind: str) -> None:
    space = replace(make_space("task_arithmetic"), weights=Interval(0.5, 1.0, 0.5))
    bowl, storage = Bowl(), InMemoryStorage()
    study = open_study(space, "key", storage, make_sampler(kind, space, 1, is_shared=True))
    left = space.point({"med_real": 1.0, "nlu": 1.0, "search": 0.5})
    enqueue(study, left, "search")
    ask(study, space)
    join(space, kind, 8, bowl, storage)
    assert bowl.calls[-1].key() == space.recipe(left).key()
    assert len({recipe.key() for recipe in bowl.calls}) == len(bowl.calls) == 7 + 8, "all points of the space"


def test_of_two_trials_of_one_point_the_first_stands() -> None:
    space = make_space()
    study = open_study(space, "key", InMemoryStorage(), make_sampler("grid", space, 1, is_shared=True))
    enqueue(study, space.point(BEST), "search")
    enqueue(study, space.point(BEST), "search")
    assert earlier_points(study, space, 0) == []
    assert earlier_points(study, space, 1) == [space.point(BEST)], "somebody is still to come to it"
    ask(study, space)
    assert earlier_points(study, space, 1) == running_points(study, space) == [space.point(BEST)]


def test_a_shared_cma_is_told_the_scores_of_the_points_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    space, told, tell_strategy = make_space("task_arithmetic", 0.0), [], cma.CMAEvolutionStrategy.tell

    def spy(self: Any, points: Any, values: Any) -> None:
        told.extend(zip(points, values, strict=True))
        tell_strategy(self, points, values)

    monkeypatch.setattr(cma.CMAEvolutionStrategy, "tell", spy)
    study = open_study(space, "key", InMemoryStorage(), make_sampler("cma", space, 0, is_shared=True))
    waiting = [ask(study, space), ask(study, space)]  # two processes, one after the other
    for _ in range(20):
        study.tell(waiting[0], sum(waiting[0].params.values()))
        waiting = [waiting[1], ask(study, space)]
    assert len(told) > 20
    assert all(value == pytest.approx(-sum(point)) for point, value in told)


def test_a_shared_cma_comes_near_the_best() -> None:
    bowl = Bowl()
    join(make_space(step=0.0), "cma", 80, bowl, InMemoryStorage())
    assert max(bowl("search", recipe).value for recipe in list(bowl.calls)) > 0.995


@pytest.mark.parametrize("step", ["create_study", "set_user_attr"])
def test_a_storage_that_somebody_else_is_just_creating_is_opened_in_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    owner: Any = optuna if step == "create_study" else optuna.Study
    whole, failures = getattr(owner, step), [sqlite3.OperationalError("table studies already exists")]

    def hindered(*args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, step, hindered)
    monkeypatch.setattr("stm.merge.trials.WAITS", (0.0,))
    study = open_study(make_space(), "key", f"sqlite:///{tmp_path / 'one.db'}", optuna.samplers.RandomSampler())
    assert study.user_attrs["key"] == "key"


def trial(origin: str, search_score: float, holdout: float) -> Trial:
    return Trial(origin, Recipe("linear", BEST), make_scores(search_score, holdout), 0, 0.0)


def test_a_winner_that_holds_is_taken() -> None:
    uniform, best = trial("uniform", 0.5, 0.5), trial("search", 0.6, 0.55)
    decision = decide([uniform, trial("single:nlu", 0.4, 0.9), best])
    assert decision.taken is best
    assert decision.reason == "the winner holds on the half that this search has not seen: 0.5500 against 0.5000"
    assert decision.as_dict()["difference"]["holdout"]["mean"] == pytest.approx(0.05)
    assert not decision.as_dict()["is_uniform_taken"]


def test_a_winner_that_does_not_hold_gives_way_to_uniform() -> None:
    uniform, best = trial("uniform", 0.5, 0.5), trial("search", 0.6, 0.49)
    decision = decide([uniform, best])
    assert decision.taken is uniform
    assert decision.winner is best
    assert "does not hold" in decision.reason
    assert decision.as_dict()["is_uniform_taken"]


def test_a_winner_is_held_against_the_row_of_uniform_weights_wherever_that_stands() -> None:
    uniform, best = trial("uniform", 0.5, 0.6), trial("search", 0.6, 0.55)
    assert decide([trial("single:nlu", 0.4, 0.1), uniform, best]).taken is uniform


def test_the_standard_error_is_that_of_paired_differences_within_tasks() -> None:
    ours = Scores({"one": {"search": {"q1": 0.5, "q2": 0.9}}, "two": {"search": {"q1": 0.6}}})
    theirs = Scores({"one": {"search": {"q1": 0.4, "q2": 0.6}}, "two": {"search": {"q1": 0.2}}})
    # 0.1 and 0.3 have the variance 0.02, their mean 0.01; of a single query nothing is known.
    assert compare(ours, theirs, "search") == pytest.approx({"mean": 0.3, "standard_error": 0.1 / 2})


def test_a_single_model_is_one_expert_that_is_normalised_and_has_no_densities_to_search() -> None:
    densities = Interval(0.1, 1.0, 0.1)
    one = replace(make_space("ties"), experts=("nlu",))
    assert one.is_single_model
    assert not replace(one, densities=densities).is_single_model
    assert replace(one, method="linear", densities=densities).is_single_model
    assert not replace(one, method="task_arithmetic").is_single_model
    assert not make_space("ties").is_single_model


def test_among_equals_the_simplest_wins() -> None:
    uniform = trial("uniform", 0.5, 0.5)
    assert decide([uniform, trial("search", 0.5, 0.9)]).taken is uniform


def test_the_ablation_says_what_each_expert_brings_alone_and_what_is_lost_without_it() -> None:
    rows = [("uniform", 0.5, 0.7), ("single:nlu", 0.2, 0.4), ("without:nlu", 0.4, 0.4), ("without:search", 0.8, 0.8)]
    table = ablation([trial(*row) for row in [*rows, ("search", 0.9, 0.9)]])["linear"]
    assert table["nlu"] == pytest.approx({"alone": 0.3, "without": 0.4, "loss_without": 0.2})
    assert table["search"] == pytest.approx({"without": 0.8, "loss_without": -0.2}), "better off without that expert"


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_what_is_taken_is_never_below_uniform_on_the_other_half(values: list[tuple[float, float]]) -> None:
    trials = [trial("uniform" if index == 0 else "search", *pair) for index, pair in enumerate(values)]
    decision = decide(trials)
    assert decision.taken.scores.mean("holdout") >= trials[0].scores.mean("holdout")
    assert decision.winner.value == max(t.value for t in trials)
