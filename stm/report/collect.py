"""Reads what the stages left under reports/.

Returns plain data per stage; a stage that did not run is an empty mapping, and a file that is broken is an error that
names it. Does not interpret what it reads, of which the views take what is there.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stm.errors import DataError
from stm.files import read_json
from stm.progress import say

Section = Mapping[str, Any]


@dataclass(frozen=True)
class Reports:
    """The JSON of each stage; of stages that run per split, expert or model by that name."""

    evaluation: Mapping[str, Section]
    prepare: Section = field(default_factory=dict)
    mine: Mapping[str, Section] = field(default_factory=dict)
    synthesize: Mapping[str, Section] = field(default_factory=dict)
    warm_up: Section = field(default_factory=dict)
    train: Mapping[str, Section] = field(default_factory=dict)
    train_all: Section = field(default_factory=dict)
    search_prompts: Mapping[str, Section] = field(default_factory=dict)
    select: Section = field(default_factory=dict)
    merge: Section = field(default_factory=dict)
    fresh: frozenset[str] | None = None  # files written by the run that is going on; None: not known


def dig(data: Any, *keys: str, default: Any = None) -> Any:
    """Return the value under nested keys, or `default` where a step is missing or no mapping."""
    for key in keys:
        if not isinstance(data, Mapping) or key not in data:
            return default
        data = data[key]
    return data


def entries(data: Any, *keys: str) -> list[tuple[str, Any]]:
    """Return the entries of the mapping under nested keys, by name; none where a step is missing."""
    return sorted(dig(data, *keys, default={}).items())


def is_number(value: Any) -> bool:
    """Say whether a value is a number, as a truth is not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def numbers(data: Any) -> dict[str, float]:
    """Return the entries of a mapping that are numbers; anything else gives an empty mapping."""
    found = sorted(data.items()) if isinstance(data, Mapping) else ()
    return {str(key): float(value) for key, value in found if is_number(value)}


def _read(path: Path) -> Section:
    data = read_json(path)
    if not isinstance(data, dict):
        raise DataError(f"{path} holds no JSON object; delete it and run `dvc repro`")
    return data


def _one(path: Path) -> Section:
    return _read(path) if path.exists() else {}


Known = Mapping[str, Collection[str]]  # kind of report -> the names that there are; a kind that is missing knows all


def _paths(folder: Path, known: Known) -> list[Path]:
    """The reports of a kind, without those that a row left behind which is no longer in params.yaml."""
    paths = sorted(folder.glob("*.json"))
    kept = [path for path in paths if path.stem in known.get(folder.name, (path.stem,))]
    for path in paths:
        if path not in kept:
            say(f"report: {path} is left out: params.yaml names no {path.stem!r} any more")
    return kept


def _each(folder: Path, known: Known) -> dict[str, Section]:
    return {path.stem: _read(path) for path in _paths(folder, known)}


def _evaluations(folder: Path, known: Known) -> dict[str, Section]:
    found: dict[str, Section] = {}
    for path in _paths(folder, known):
        data = _read(path)
        name = data.get("model")
        if not isinstance(name, str) or not isinstance(data.get("tasks"), dict):
            raise DataError(f"{path} is no evaluation: it lacks 'model' or 'tasks'; run `dvc repro evaluate`")
        if name in found:
            raise DataError(f"{path}: a second evaluation of a model named {name!r}; give one of them another name")
        found[name] = data
    if not found:
        raise DataError(f"{folder} holds no evaluation, so there is nothing to report; run `dvc repro evaluate`")
    return found


def _fresh(root: Path, since: float | None) -> frozenset[str] | None:
    if since is None:
        return None
    files = (path for path in root.rglob("*.json") if path.stat().st_mtime >= since)
    return frozenset(path.relative_to(root).as_posix() for path in files)


def collect(root: Path | str, since: float | None = None, known: Known | None = None) -> Reports:
    """Read all stage reports under `root`; `DataError` without any evaluation, or for a file that is broken.

    `known` has the names of the rows by kind ("evaluation", "train", "mine", ..): DVC leaves the report of a row that
    was taken out of params.yaml where it is, and it is no part of this run. `since` is when the run began, in seconds
    since the epoch; it tells new results from those that were reused.
    """
    root = Path(root)
    known = known or {}
    return Reports(
        evaluation=_evaluations(root / "evaluation", known),
        prepare=_one(root / "prepare.json"),
        mine=_each(root / "mine", known),
        synthesize=_each(root / "synthesize", known),
        warm_up=_one(root / "warm_up.json"),
        train_all=_one(root / "train_all.json"),
        train=_each(root / "train", known),
        search_prompts=_each(root / "search_prompts", known),
        select=_one(root / "select.json"),
        merge=_one(root / "merge.json"),
        fresh=_fresh(root, since),
    )
