"""One search's memory: an Optuna study that survives an interruption and can be shared by processes.

Opens the study of a space, refuses one of another space, and turns its trials into values. Does not evaluate
anything.
"""

import contextlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from stm.stage import is_disk_full
from stm.errors import ParamsError, redact
from stm.merge.dev import Scores
from stm.merge.recipe import Recipe
from stm.merge.space import Point, Space

WAITS = (0.1, 0.5, 1.0)  # seconds before another try to open a storage, which somebody else may just be creating


@dataclass(frozen=True)
class Trial:
    """One candidate; `origin` is "uniform", "single:<expert>", "without:<expert>", "fixed", "search", "learned" or
    "interaction".
    """

    origin: str
    recipe: Recipe
    scores: Scores
    tokens: int
    seconds: float

    @property
    def value(self) -> float:
        """What the search maximises: mean nDCG@10 over tasks on the search half."""
        return self.scores.mean("search")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the trace."""
        return {
            "origin": self.origin,
            **self.recipe.as_dict(),
            "search": self.value,
            "holdout": self.scores.mean("holdout"),
            "tasks": self.scores.tasks(),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
        }


def storage_url(storage: str, key: str, folder: Path) -> str:
    """The URL of the named storage; an empty name gives a file of this search alone under `folder`."""
    if "://" in storage:
        return storage
    path = Path(storage) if storage else folder / f"{key[:16]}.db"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParamsError(f"cannot create the folder {path.parent} for the search storage: {error.strerror}") from error
    return f"sqlite:///{path}"


def open_study(
    space: Space, key: str, url: str | optuna.storages.BaseStorage, sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    """Open or create the study of this space; `key` is the hash of everything that a score depends on.

    A few tries are made, for of two processes that create one storage at once one fails. `ParamsError` if the storage
    holds a search of another space or of other inputs under this name, or cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shown = redact(str(url))
    for wait in (*WAITS, None):
        try:
            study = _create_study(space, key, url, sampler)
            break
        except ModuleNotFoundError as error:
            raise ParamsError(
                f"the search storage {shown} needs the package {error.name}; install it, or take another storage"
            ) from error
        except Exception as error:  # SQLAlchemy raises a different class for every way in which a file is no database
            if is_disk_full(error):
                raise
            if wait is None:
                raise ParamsError(
                    f"cannot open the search storage {shown}: {type(error).__name__}; name another merge.search.storage"
                ) from error
            time.sleep(wait)
    known = study.user_attrs
    if known["key"] != key:
        raise ParamsError(
            f"the search storage {shown} holds a search of {_difference(known['space'], space)}; "
            "name another merge.search.storage"
        )
    return study


def _create_study(
    space: Space, key: str, url: str | optuna.storages.BaseStorage, sampler: optuna.samplers.BaseSampler
) -> optuna.Study:
    """Load or create the study and, where nobody has yet, note whose it is."""
    study = optuna.create_study(
        storage=url, study_name=f"stm-merge-{space.method}", direction="maximize", load_if_exists=True, sampler=sampler
    )
    if "key" not in study.user_attrs:
        study.set_user_attr("space", space.describe())
        study.set_user_attr("key", key)
    return study


def _difference(known: Mapping[str, Any], space: Space) -> str:
    ours = json.loads(json.dumps(space.describe()))
    for name in sorted(set(known) | set(ours)):
        if known.get(name) != ours.get(name):
            return f"another space ({name} {known.get(name)}, now {ours.get(name)})"
    return (
        "other experts, dev tasks or prompts, of another search.kind or search.seed, or by other code, libraries or "
        "precision"
    )


def finished_trials(study: optuna.Study, space: Space, rows: Sequence[tuple[str, Point]]) -> list[Trial]:
    """All complete trials: those of the fixed rows in the order of `rows`, then the others in their own.

    A row whose evaluation was interrupted comes later in the study than it would have.
    """
    trials = []
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        result = frozen.user_attrs["result"]
        scores, origin = Scores(result["per_query"]), frozen.user_attrs.get("origin", "search")
        trials.append(Trial(origin, space.recipe(frozen.params), scores, result["tokens"], result["seconds"]))
    places = {origin: place for place, (origin, _) in enumerate(rows)}
    return sorted(trials, key=lambda trial: places.get(trial.origin, len(places)))


def origins(study: optuna.Study, is_shared: bool) -> set[str]:
    """The origins of trials that are complete or still to come.

    Running trials of a private storage are left over from an interruption and do not count; in a shared one somebody
    else is at them.
    """
    states = [TrialState.COMPLETE, TrialState.WAITING] + ([TrialState.RUNNING] if is_shared else [])
    return {trial.user_attrs.get("origin", "") for trial in study.get_trials(deepcopy=False, states=tuple(states))}


def running_points(study: optuna.Study, space: Space) -> list[Point]:
    """The points of running trials: in a shared storage somebody else is at them, or has died there.

    A trial that somebody has just begun may not have its point yet.
    """
    return _points(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)), space)


def earlier_points(study: optuna.Study, space: Space, number: int) -> list[Point]:
    """The points that trials before that number are at or are still to come to: of two trials of one point the first
    stands.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
    return _points([trial for trial in trials if trial.number < number], space)


def _points(trials: Sequence[FrozenTrial], space: Space) -> list[Point]:
    """The points of trials, where they are known and have a model; an enqueued one is fixed before it is asked for."""
    points = [{**trial.system_attrs.get("fixed_params", {}), **trial.params} for trial in trials]
    return [point for point in points if set(space.intervals()) <= set(point) and space.has_model(point)]


def enqueue(study: optuna.Study, point: Point, origin: str) -> None:
    """Make `point` the next one that the study asks for."""
    study.enqueue_trial(point, user_attrs={"origin": origin})


def ask(study: optuna.Study, space: Space) -> optuna.Trial:
    """The next enqueued point, or one of the sampler's.

    Two processes can take one enqueued point in the same moment, and one may be through with it before the other has
    asked for its weights; then the next point is taken.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fixed row such as 1/3 may lie between the steps of the grid
        while True:
            with contextlib.suppress(UpdateFinishedTrialError):
                return study.ask(dict(space.distributions()))


def tell(study: optuna.Study, trial: optuna.Trial, result: Trial) -> None:
    """Record a finished candidate; its result goes first, so that a complete trial always has it.

    Two processes can be at one fixed row, which both score alike: what the first one told stands.
    """
    cost = {"tokens": result.tokens, "seconds": result.seconds}
    try:
        trial.set_user_attr("result", {"per_query": result.scores.per_query, **cost})
        study.tell(trial, result.value, skip_if_finished=True)
    except UpdateFinishedTrialError:
        return


def give_up(study: optuna.Study, trial: optuna.Trial | int, state: TrialState) -> None:
    """Record that a candidate, or the trial of that number, has no result: `PRUNED` if it has no model, `FAIL` if its
    evaluation broke off.
    """
    with contextlib.suppress(UpdateFinishedTrialError):
        study.tell(trial, state=state, skip_if_finished=True)
