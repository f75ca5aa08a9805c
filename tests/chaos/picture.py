"""What a project holds, without the times: a text per file and per registered thing, so that two projects compare."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from stm.promote.registry import Registry
from tests.chaos.project import RESULTS

# Seconds and milliseconds, and how many answers of an LLM an interrupted run had left: what differs between equal runs.
TIME = re.compile(r"second|replayed")
# Of the page: what ran just now and how long it took, the seconds of an LLM and of a training.
PAGE_TIMES = (
    (re.compile(r'<section id="cost".*?</section>', re.DOTALL), ""),
    (re.compile(r"<dt>(?:seconds|of these replayed)</dt><dd>[^<]*</dd>"), ""),
    (re.compile(r"(<tr><th scope=\"row\">[^<]*</th>(?:<td>[^<]*</td>){3})<td>[^<]*</td>(?=<td>[^<]*</td>){2}"), r"\1"),
)
# Of a version: names that MLflow gives, the hour, and hashes over files that hold seconds.
OWN_TO_A_RUN = frozenset({"run", "decision.when", "dvc.lock", "git.revision", "git.dirty", "git.changed_files"})


def without_times(value: Any) -> Any:
    """A report without the keys that name seconds."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if not TIME.search(key)}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def file_picture(path: Path) -> str:
    """The hash of a file's bytes; of JSON and the page, of their content without times; of a .gitignore, as a set."""
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(without_times(json.loads(data)), sort_keys=True).encode()
    elif path.suffix == ".html":
        text = data.decode()
        for pattern, kept in PAGE_TIMES:
            text = pattern.sub(kept, text)
        data = text.encode()
    elif path.name == ".gitignore":
        data = "\n".join(sorted(set(data.decode().splitlines()))).encode()  # DVC's, in the order of the stages
    return hashlib.sha256(data).hexdigest()


def results_picture(folder: Path) -> dict[str, str]:
    """Every file in data/, models/ and reports/; scratch of killed writers counts as a file."""
    paths = sorted(path for name in RESULTS for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_picture(path) for path in paths}


def registry_picture(folder: Path) -> dict[str, str]:
    """Aliases, versions with tags, and every run with its params and metrics, by name."""
    registry = Registry.open(f"sqlite:///{folder}/mlruns/mlflow.db", "stm-retriever")
    found: dict[str, Any] = {"aliases": registry.aliases()}
    for version in registry.versions():
        tags = {key: value for key, value in version.tags.items() if key not in OWN_TO_A_RUN and not TIME.search(key)}
        found[f"version {version.number}"] = tags
    experiment = registry.client.get_experiment_by_name("stm")
    for run in registry.client.search_runs([experiment.experiment_id], max_results=1000):
        name = f"run {run.info.run_name}"
        while name in found:
            name += " again"
        metrics = {key: value for key, value in run.data.metrics.items() if not TIME.search(key)}
        params = {key: value for key, value in run.data.params.items() if not TIME.search(key)}
        found[name] = {"status": run.info.status, "metrics": metrics, "params": params}
    return {name: json.dumps(value, sort_keys=True) for name, value in found.items()}


def picture(folder: Path) -> dict[str, str]:
    """Results and registry."""
    return results_picture(folder) | registry_picture(folder)


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Names of what is missing, added or other, with what it is."""
    names = sorted(set(expected) | set(found))
    return [name for name in names if expected.get(name) != found.get(name)]
