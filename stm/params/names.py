"""Names in one section that stand for rows of another, checked before any work: a typo in `merge` must not show after
the training.

Params go in, a line per fault comes out.
"""

from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

from stm.params.all import Params
from stm.params.base import MERGED
from stm.params.evaluate import Role
from stm.params.experts import BASELINE
from stm.params.prepare import EmbeddedTask, EmbeddedTaskName
from stm.params.promote import CHAMPION
from stm.params.rows import LEXICAL

MADE = ("models/backbone", "models/warm_up", MERGED, "models/baselines/all")
MADE_IN = ("models/selected/", "models/experts/", "models/baselines/")  # folders that only stages write to
KEYED = ("models", "outside", "files")  # tables whose rows are params in dvc.yaml, as `models.${key}`


def unknown_names(params: Params) -> Iterator[str]:
    """A line per name that stands for nothing, with the names that there are."""
    models = [*params.models, *params.outside, LEXICAL]
    roles = get_args(Role)
    merge, dev = params.merge, params.prepare.tasks.dev
    experts = [*params.splits, *([BASELINE] if merge.with_baseline else [])]
    interaction = merge.interaction.experts if merge.interaction else []
    named: list[tuple[str, Collection[str], Collection[str]]] = [
        ("merge.weights", merge.weights, experts), ("merge.densities", merge.densities, experts),
        ("merge.interaction.experts", interaction, experts), ("merge.tasks", merge.tasks, dev),
        ("select.tasks", params.select.tasks, dev), ("search_prompts.tasks", params.search_prompts.tasks, dev),
        ("promote.model", [params.promote.model], params.models), ("report.subject", [params.report.subject], models),
    ]  # fmt: skip
    for where, names, known in named:
        for name in names:
            if name not in known:
                yield f"{where} names {name!r}; there are {', '.join(known)}"
    for gate, row in params.promote.gates.comparisons.items():
        for pattern in row.against:
            if pattern != CHAMPION and not any(fnmatchcase(name, pattern) for name in (*models, *roles)):
                yield (
                    f"promote.gates.comparisons.{gate}.against has {pattern!r}, which is no role, name or pattern of "
                    f"an evaluated model; there are {', '.join(sorted({*models, *roles, CHAMPION}))}"
                )
    yield from _dotted(params)
    yield from _promoted(params)
    yield from _unseen_experts(params)
    yield from _models(params)
    yield from _tasks(params)


def _dotted(params: Params) -> Iterator[str]:
    for table in KEYED:
        for name in getattr(params, table):
            if "." in name:
                yield (
                    f"{table} has a row {name!r}, but DVC takes a dot for a path into the row; call it "
                    f"{name.replace('.', '_')!r}"
                )


def _promoted(params: Params) -> Iterator[str]:
    merged = [name for name, row in params.models.items() if Path(row.path).as_posix() == MERGED]
    name = params.promote.model
    if name in params.models and name not in merged:
        step = f"name {' or '.join(merged)}" if merged else f"add a row `merged: {{path: {MERGED}, role: merged}}`"
        yield (
            f"promote.model is {name!r}, whose path is {params.models[name].path!r}, but only a row of models with the "
            f"path {MERGED} can be promoted; {step}"
        )


def _unseen_experts(params: Params) -> Iterator[str]:
    """Merged experts that a gate against the experts would not see beside others, so that it would pass too easily.

    Without any expert among the models such a gate holds the model back by itself.
    """
    gates = [name for name, row in params.promote.gates.comparisons.items() if "expert" in row.against]
    seen = {Path(row.path).as_posix() for row in params.models.values() if row.role == "expert"}
    for split in params.splits if gates and seen else ():
        path = f"models/selected/{split}"
        if path not in seen and split not in params.models:  # a row of that name is judged by its path
            yield (
                f"models has no row of the expert {path}, so that promote.gates.comparisons.{gates[0]} would not see "
                f"it; add `{split}: {{path: {path}, role: expert}}`"
            )


def _models(params: Params) -> Iterator[str]:
    selected, experts = (
        [f"models/{folder}/{name}" for name in names]
        for folder, names in (("selected", params.splits), ("experts", params.experts))
    )
    for name, row in params.models.items():
        path = Path(row.path).as_posix()
        if path in (*MADE, *selected, *experts):
            continue
        if path.startswith(MADE_IN):  # perhaps left by a former split
            yield f"models.{name}.path is {row.path!r}, which no stage makes; they make {', '.join((*MADE, *selected))}"
        elif not Path(path).exists():
            yield f"models.{name}.path: there is no {row.path}; correct the path or bring the folder"


def _tasks(params: Params) -> Iterator[str]:
    known = get_args(EmbeddedTaskName)
    for part, tasks in (("dev", params.prepare.tasks.dev), ("test", params.prepare.tasks.test)):
        for name, task in tasks.items():
            if isinstance(task, EmbeddedTask) and (task.name or name) not in known:
                yield (
                    f"prepare.tasks.{part}.{name} is no embedded task; call it one of {', '.join(known)}, or say which "
                    "as its `name`"
                )
