"""The search: fixed rows first, then candidates until the budget is spent, each recorded as it is finished.

Takes a function that evaluates a recipe; knows neither models nor tasks. A candidate that gives the same model as an
earlier one is not evaluated again.
"""

from collections.abc import Callable
from dataclasses import replace

import optuna
from optuna.trial import TrialState

from stm.merge.recipe import Recipe
from stm.merge.samplers import Proposer
from stm.merge.space import Point, Space, fixed_rows
from stm.merge.trials import (
    Trial,
    ask,
    earlier_points,
    enqueue,
    finished_trials,
    give_up,
    origins,
    running_points,
    tell,
)
from stm.progress import Meter

Evaluate = Callable[[str, Recipe], Trial]  # origin and recipe -> a finished trial


def run_search(
    space: Space, study: optuna.Study, evaluate: Evaluate, trials: int, propose: Proposer | None, is_shared: bool
) -> list[Trial]:
    """Evaluate the fixed rows and `trials` distinct candidates of the search; return all trials of the study.

    `propose` gives the next point; without it the study's own sampler does. What the study already holds counts, so
    that an interrupted search goes on. In a shared study, what another process has begun is left to it. In the end
    fixed rows that it has not finished are evaluated here, since no decision can do without them, and so are other
    points where nothing else is left: it may have died at them.
    """
    if not is_shared:
        _clear_away(space, study)
    known = origins(study, is_shared)
    rows = fixed_rows(space)
    for origin, point in rows:
        if origin not in known:
            enqueue(study, point, origin)
    goal = len(rows) + trials
    running, done = _look(study, space, rows, is_shared)
    # A sampler on a coarse grid may repeat itself for ever. What an interrupted search has done counts.
    spent = 0 if is_shared else len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))
    steps = len(rows) + 5 * trials + 20
    with Meter(f"merge {space.method}", goal) as meter:
        meter.advance(_distinct(done))
        for _ in range(steps - spent):
            if _distinct(done) >= goal:
                break
            is_waiting = bool(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
            if propose and not is_waiting:
                proposed = propose(done, running)
                if proposed is None:
                    break
                enqueue(study, proposed, "search")
            before = _distinct(done)
            _step(space, study, evaluate, done, is_shared)
            running, done = _look(study, space, rows, is_shared)
            meter.advance(_distinct(done) - before, f"best {max(trial.value for trial in done):.4f}" if done else "")
    for _ in range(steps):
        missing = _missing(rows, done)
        if not missing and is_shared and _distinct(done) < goal:
            missing = _left_over(study, space, done)
        if not missing:
            break
        if missing[0][0] not in origins(study, is_shared=False) - {"search"}:
            enqueue(study, missing[0][1], missing[0][0])
        _step(space, study, evaluate, done)
        done = finished_trials(study, space, rows)
    return done


def _clear_away(space: Space, study: optuna.Study) -> None:
    """Give up what an interrupted search left running or waiting in a private study; it is enqueued anew.

    TPE draws by the order of the trials and keeps away from those that run, so it would go on in another way.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        give_up(study, trial.number, TrialState.FAIL)
    while study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        give_up(study, ask(study, space), TrialState.FAIL)


def _look(
    study: optuna.Study, space: Space, rows: list[tuple[str, Point]], is_shared: bool
) -> tuple[list[Recipe], list[Trial]]:
    """What others are at, and what is done. In this order: what is finished in between stands in both, not in none."""
    running = [space.recipe(point) for point in running_points(study, space)] if is_shared else []
    return running, finished_trials(study, space, rows)


def _missing(rows: list[tuple[str, Point]], done: list[Trial]) -> list[tuple[str, Point]]:
    """The fixed rows that nobody has finished."""
    return [row for row in rows if row[0] not in {trial.origin for trial in done}]


def _left_over(study: optuna.Study, space: Space, done: list[Trial]) -> list[tuple[str, Point]]:
    """The points at which trials are running, maybe for ever, as rows; those of finished models are left out."""
    known = {trial.recipe.key() for trial in done}
    return [("search", p) for p in running_points(study, space) if space.recipe(p).key() not in known]


def _distinct(trials: list[Trial]) -> int:
    """The fixed rows, and the distinct models among the others that are none of them."""
    fixed = {trial.origin: trial.recipe.key() for trial in trials if trial.origin != "search"}
    return len(fixed) + len({trial.recipe.key() for trial in trials} - set(fixed.values()))


def _step(
    space: Space, study: optuna.Study, evaluate: Evaluate, done: list[Trial], leaves_to_others: bool = False
) -> None:
    """Ask for a point and record what becomes of it; `leaves_to_others` gives up one that an earlier trial is at."""
    trial = ask(study, space)
    if not space.has_model(trial.params):  # there is nothing to merge, and nothing to learn for the sampler
        give_up(study, trial, TrialState.PRUNED)
        return
    recipe = space.recipe(trial.params)
    origin = trial.user_attrs.get("origin", "search")
    earlier: list[Point] = []
    if leaves_to_others:  # looked at anew: others may have begun and finished that point since it was proposed
        earlier, done = earlier_points(study, space, trial.number), finished_trials(study, space, ())
    same = next((other for other in done if other.recipe.key() == recipe.key()), None)
    if not same and origin == "search" and recipe.key() in {space.recipe(point).key() for point in earlier}:
        give_up(study, trial, TrialState.FAIL)
        return
    try:
        result = replace(same, tokens=0, seconds=0.0) if same else evaluate(origin, recipe)
    except BaseException:
        give_up(study, trial, TrialState.FAIL)
        raise
    tell(study, trial, result)
