"""From report files to the MLflow runs that show them: one parent, nested runs for experts, prompts, trials, scores.

Pure but for reading JSON: any report becomes params (words), metrics (numbers) and histories (lists of rows with
numbers). Does not know MLflow; names are made fit for it here.
"""

import hashlib
import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from stm.files import read_json, sha256_text, sha256_tree
from stm.params.base import PARAMS_FILE
from stm.params.rows import known_reports

# Parts of reports that belong to the artifact alone: they are large and hold a row per query or text.
BULKY = frozenset({"per_query", "same_answers", "top", "samples", "pool", "not_run"})
OWN_REPORT = "promotion.json"
MAX_KEYS = 400
MAX_WORDS = 2000


@dataclass(frozen=True)
class Metric:
    """One value of a metric at a step."""

    key: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class RunPlan:
    """One run: `key` names it within the publication, and nested runs name their parent's key in `parent`."""

    key: str
    name: str
    kind: str
    parent: str | None
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    datasets: Mapping[str, str] = field(default_factory=dict)  # name -> hash


@dataclass(frozen=True)
class Publication:
    """All runs of one state of the project, parents before children; equal reports, params and model give an equal
    `digest`.
    """

    digest: str
    runs: Sequence[RunPlan]
    files: Sequence[Path]


def plan_publication(root: Path, model: Path, max_trials: int) -> Publication:
    """Plan the runs for the reports under `root`/reports and the model folder, without those of rows that are no longer
    in params.yaml.
    """
    reports = _own_reports(root)
    extra = [root / name for name in (PARAMS_FILE, "dvc.lock", "reports/index.html", "reports/model_card.md")]
    parts = [f"{path.relative_to(root).as_posix()}:{sha256_tree(path)}" for path in reports]
    settings = _settings(root / PARAMS_FILE)
    digest = sha256_text(sha256_tree(model), json.dumps(settings, sort_keys=True), *parts)
    figures = [root / "reports" / name for name in ("metrics.json", "statistics.json")]
    values = [value for path in figures if path.exists() for value in describe(read_json(path))[1]]
    runs = [RunPlan("/", "pipeline", "pipeline", None, settings, values)]
    for kind, pattern in (("expert", "train/*"), ("prompts", "search_prompts/*"), ("evaluation", "evaluation/*")):
        runs += [_nested(kind, path) for path in sorted((root / "reports").glob(f"{pattern}.json")) if path in reports]
    for stage in ("warm_up", "train_all", "select", "merge"):
        path = root / "reports" / f"{stage}.json"
        if path.exists():
            runs.append(_nested("merge" if stage == "merge" else "stage", path))
            runs += _trials(path, max_trials) if stage == "merge" else []
    return Publication(digest, runs, [*reports, *(path for path in extra if path.exists())])


def _own_reports(root: Path) -> list[Path]:
    """The reports of this run: DVC leaves those of a row that was taken out where they are."""
    known, found = known_reports(root / PARAMS_FILE), []
    for path in sorted((root / "reports").rglob("*.json")):
        # <kind>/<row>.json, and the results of mteb's runner in evaluation/mteb/<row>/
        kind, *rest = path.relative_to(root / "reports").with_suffix("").parts
        row = rest[1] if rest[:1] == ["mteb"] and len(rest) > 1 else rest[0] if rest else ""
        if path.name != OWN_REPORT and (kind not in known or row in known[kind]):
            found.append(path)
    return found


def _settings(path: Path) -> dict[str, str]:
    """All params of the project as words, by dotted name."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {fit_name(key): _words(value) for key, value in islice(_leaves(settings), MAX_KEYS)}


def _nested(kind: str, path: Path) -> RunPlan:
    data = read_json(path)
    params, metrics = describe({key: value for key, value in data.items() if key != "trials"})
    tasks = data.get("tasks") if kind == "evaluation" else None
    datasets = {name: str(task.get("data", "")) for name, task in tasks.items()} if isinstance(tasks, dict) else {}
    return RunPlan(f"{kind}/{path.stem}", f"{kind} {path.stem}", kind, "/", params, metrics, datasets)


def _trials(path: Path, limit: int) -> Iterator[RunPlan]:
    trials = [trial for trial in read_json(path).get("trials", []) if isinstance(trial, dict)]
    ranked = sorted(range(len(trials)), key=lambda index: (-float(trials[index].get("search") or 0), index))
    for index in sorted(ranked[:limit]):
        params, metrics = describe(trials[index])
        yield RunPlan(f"trial/{index}", f"merge trial {index}", "trial", f"merge/{path.stem}", params, metrics)


def describe(report: Any) -> tuple[dict[str, str], list[Metric]]:
    """Split a report into params and metrics with dotted names; rows of a history become steps."""
    params: dict[str, str] = {}
    metrics: list[Metric] = []
    histories: list[tuple[str, list[dict[str, Any]]]] = []
    for key, value in _leaves(report, BULKY):
        if _is_history(value):
            histories.append((key, value))
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            if len(params) < MAX_KEYS:
                params[fit_name(key)] = _words(value)
        else:
            metrics.append(Metric(fit_name(key), float(value)))
    for key, rows in histories:
        for index, row in enumerate(rows):
            numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
            step = int(row.get("step", index))
            metrics += [
                Metric(fit_name(f"{key}.{name}"), float(value), step) for name, value in sorted(numbers.items())
            ]
    return params, metrics


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    return text if len(text) <= MAX_WORDS else text[: MAX_WORDS - 1] + "…"


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _leaves(value: Any, left_out: Container[str] = (), path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested mappings that is none itself, by dotted name; nothing of the keys `left_out`."""
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            if key not in left_out:
                yield from _leaves(value[key], left_out, f"{path}.{key}" if path else str(key))
    elif path:
        yield path, value


def fit_name(name: str) -> str:
    """A name that MLflow takes as a key: characters beside letters, digits and `_-. /` give way to a hash.

    The hash keeps two names apart that would look the same without their quotes or emoji.
    """
    fitted = re.sub(r"[^A-Za-z0-9_\-./ ]", "_", name)
    fitted = "/".join(part.strip(". ") or "_" for part in fitted.split("/"))[:200]
    return fitted if fitted == name else f"{fitted}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
