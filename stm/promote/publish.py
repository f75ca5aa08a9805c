"""Carries a publication out in MLflow, once: what is there already is found by its digest and completed, never doubled.

Every run is closed as finished only when all of it has been written, children before their parent; an interrupted
publication goes on where it broke off. Does not know what the runs show.
"""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from stm.errors import RegistryError
from stm.progress import Meter
from stm.promote.plan import Publication, RunPlan
from stm.promote.registry import Registry, explained, local_database
from stm.root import project_root

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

PUBLICATION, KEY = "stm.publication", "stm.key"
MAX_RUNS = 20_000
METRICS_PER_CALL, PARAMS_PER_CALL = 800, 90
MISPLACED = (
    "after moving or copying the project, delete mlruns/ in it and run `stm promote`, which makes the registry anew; "
    "after changing promote.artifact_folder, set it back, or name another promote.experiment"
)


def misplaced(artifact_location: str, artifact_folder: Path, database: Path) -> str:
    """Say that the files of a local registry are not in this folder, which `MISPLACED` helps with; empty if they are.

    MLflow keeps the folder's absolute path. In a copy of a project it is the original's, which a publication would
    write into, and in a moved project it leads nowhere. A database beside which the folder does not lie stays where it
    is, and may be of several projects: each then has the files where the first of them put them.
    """
    parts, here = urlsplit(artifact_location), artifact_folder.resolve()
    there = Path(unquote(parts.path) if parts.scheme else artifact_location)
    is_shared = not here.is_relative_to(database.resolve().parent)
    is_here = parts.scheme not in ("", "file") or there.resolve() == here
    return "" if is_shared or is_here else f"this registry keeps its files in {there}, and not in {here}"


def find_experiment(registry: Registry, name: str, artifact_folder: str) -> "Experiment | None":
    """The experiment, if there is one; `RegistryError` for a local store whose files are elsewhere."""
    with explained(registry.uri):
        found = registry.client.get_experiment_by_name(name)
    database, root = local_database(registry.uri), project_root()
    if found and database and (reason := misplaced(found.artifact_location, root / artifact_folder, root / database)):
        raise RegistryError(f"{reason}: {MISPLACED}")
    return found


def ensure_experiment(registry: Registry, name: str, artifact_folder: str) -> str:
    """Return the experiment's id; it is made, with a local artifact folder where the store is a local database.

    `RegistryError` for a local store whose files are elsewhere, before anything is written.
    """
    client, found = registry.client, find_experiment(registry, name, artifact_folder)
    with explained(registry.uri):
        if found is not None:
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        local = local_database(registry.uri) is not None
        location = (project_root() / artifact_folder).resolve().as_uri() if local else None
        return str(client.create_experiment(name, artifact_location=location))


def publish(registry: Registry, experiment: str, publication: Publication, root: Path) -> str:
    """Write what is missing of the publication; return the id of its parent run."""
    client = registry.client
    with explained(registry.uri):
        found = client.search_runs([experiment], f"tags.`{PUBLICATION}` = '{publication.digest}'", max_results=MAX_RUNS)
        runs = {run.data.tags[KEY]: run for run in found}
        parent = publication.runs[0]
        if parent.key in runs and runs[parent.key].info.status == "FINISHED":
            return str(runs[parent.key].info.run_id)
        for plan in publication.runs:
            if plan.key not in runs:
                runs[plan.key] = _create(client, experiment, publication.digest, plan, runs)
        with Meter("publish", len(publication.runs)) as meter:
            for plan in reversed(publication.runs):  # the parent closes last
                if runs[plan.key].info.status != "FINISHED":
                    _fill(client, runs[plan.key], plan, publication.files if plan is parent else (), root)
                meter.advance(note=plan.name)
        return str(runs[parent.key].info.run_id)


def _create(client: "MlflowClient", experiment: str, digest: str, plan: RunPlan, runs: dict[str, "Run"]) -> "Run":
    tags = {PUBLICATION: digest, KEY: plan.key, "stm.kind": plan.kind, "mlflow.source.name": "stm promote"}
    if plan.parent is not None:
        tags["mlflow.parentRunId"] = runs[plan.parent].info.run_id
    return client.create_run(experiment, tags=tags, run_name=plan.name)


def _fill(client: "MlflowClient", run: "Run", plan: RunPlan, files: Sequence[Path], root: Path) -> None:
    from mlflow.entities import Metric, Param

    run_id, at = run.info.run_id, run.info.start_time  # one time for all, so that writing a value again changes nothing
    metrics = [Metric(metric.key, metric.value, at, metric.step) for metric in plan.metrics]
    params = [Param(key, value) for key, value in sorted(plan.params.items())]
    for start in range(0, len(metrics), METRICS_PER_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])
    for start in range(0, len(params), PARAMS_PER_CALL):
        client.log_batch(run_id, params=params[start : start + PARAMS_PER_CALL])
    if plan.datasets:
        _log_datasets(client, run_id, plan)
    if files:
        _log_files(client, run_id, files, root)
    client.set_terminated(run_id, "FINISHED")


def _log_datasets(client: "MlflowClient", run_id: str, plan: RunPlan) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tag = InputTag("mlflow.data.context", "test")
    inputs = [
        DatasetInput(Dataset(name[:500], digest[:36] or "unknown", "local", f"data/tasks/test/{name}"), [tag])
        for name, digest in sorted(plan.datasets.items())
    ]
    client.log_inputs(run_id, inputs)


def _log_files(client: "MlflowClient", run_id: str, files: Sequence[Path], root: Path) -> None:
    """One call for all files, in their places relative to the root."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in files:
            target = Path(scratch) / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        client.log_artifacts(run_id, scratch)
