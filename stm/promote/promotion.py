"""The whole promotion: publish, register, measure, judge, decide, and only then move an alias.

Everything up to the alias can be interrupted or repeated without a consumer noticing; the alias moves in one step.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from stm.errors import DataError, RegistryError
from stm.params.promote import WITHDRAWN, PromoteParams
from stm.progress import say
from stm.promote.candidate import Candidate, read_candidate
from stm.promote.decision import Outcome, decide
from stm.promote.evidence import Evaluation, read_evaluation
from stm.promote.gates import Measured, Verdict, judge
from stm.promote.history import Actor, Entry, Kind, OvertakenError, crown, read_history, settle, withdrawn
from stm.promote.lineage import refuse_secrets
from stm.promote.plan import Publication, plan_publication
from stm.promote.publish import ensure_experiment, find_experiment, publish
from stm.promote.registry import (
    CHALLENGER,
    CHAMPION,
    Registry,
    Version,
    explained,
    local_database,
    no_leftovers,
    quiet_mlflow,
    resolve_uri,
)
from stm.promote.versions import CONTENT, RoundTrip, find_version, may_retag, measure, measure_unregistered, register
from stm.root import project_root

CARD = Path("reports/model_card.md")
LOCK = Path(".stm/promotion.lock")
RUN = "run"  # tag: the parent run that published the version's evidence


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold the project's promotion lock; `RegistryError` if another process has it.

    In DVC's copy of the project for an experiment it is waited for: DVC deletes the copy where a stage fails.
    """
    project = project_root(root)
    path, wait = project / LOCK, 0 if project != root else fcntl.LOCK_NB
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | wait)
        except OSError as error:
            raise RegistryError(
                "another promotion or rollback is running in this project; run again when it is done"
            ) from error
        yield


@no_leftovers()
def promote(params: PromoteParams, actor: Actor, *, root: Path = Path(), force: str = "") -> Outcome:
    """Publish the reports and the merged model, judge it, and move the alias that it deserves.

    `force` is the reason for making it the champion in spite of its gates. Doing it twice adds nothing.
    """
    with only_one(root):
        candidate = read_candidate(root, params)
        publication = plan_publication(root, candidate.folder, params.max_trials)
        refuse_secrets([*publication.files, *_small_files(candidate.folder)])
        registry = Registry.open(params.tracking_uri, params.registered_model, create=True)
        champion = registry.by_alias(CHAMPION)
        version, trip = _publish(registry, params, candidate, publication, root)
        outcome = _decide(registry, params, candidate, champion, version.number, trip, force)
        if may_retag(version, candidate.tags()):
            registry.tag(version.number, outcome.gate_tags(), version.tags)
        else:
            say(
                f"version {version.number} keeps the record of what it was registered with: these results are others, "
                "or hold uncommitted changes"
            )
        _move(registry, outcome, version, actor)
    return outcome


def _small_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".safetensors"]


def _publish(
    registry: Registry, params: PromoteParams, candidate: Candidate, publication: Publication, root: Path
) -> tuple[Version, RoundTrip]:
    experiment = ensure_experiment(registry, params.experiment, params.artifact_folder)
    run_id = publish(registry, experiment, publication, root)
    tags = {**candidate.tags(), RUN: run_id}
    version = register(
        registry, experiment, run_id, publication.digest, candidate.folder, candidate.content, tags, root / CARD
    )
    return version, measure(f"models:/{registry.name}/{version.number}", candidate.folder)


@no_leftovers()
def preview(params: PromoteParams, *, root: Path = Path(), force: str = "") -> Outcome:
    """Judge as `promote` does, and change nothing anywhere."""
    candidate = read_candidate(root, params)
    uri = resolve_uri(params.tracking_uri)
    database = local_database(uri)
    if database is not None and not database.exists():
        quiet_mlflow()
        return _decide(None, params, candidate, None, 0, measure_unregistered(candidate.folder), force, dry_run=True)
    registry = Registry.open(params.tracking_uri, params.registered_model)
    find_experiment(registry, params.experiment, params.artifact_folder)
    if version := find_version(registry, candidate.content):
        number, trip = version.number, measure(f"models:/{registry.name}/{version.number}", candidate.folder)
    else:
        number, trip = 0, measure_unregistered(candidate.folder)
    return _decide(registry, params, candidate, registry.by_alias(CHAMPION), number, trip, force, dry_run=True)


def _decide(
    registry: Registry | None, params: PromoteParams, candidate: Candidate, champion: Version | None, number: int,
    trip: RoundTrip, force: str, *, dry_run: bool = False,
) -> Outcome:  # fmt: skip
    rival = champion if champion and champion.number != number else None
    rival_evaluation = _evaluation_of(registry, rival, params.model) if registry and rival else None
    verdicts = judge(
        params.gates, candidate.evaluation, candidate.others, rival_evaluation, _measured(candidate, trip),
        resamples=params.resamples, seed=params.seed,
    )  # fmt: skip
    rollback = withdrawn(read_history(registry), number) if registry else None
    if rollback:
        detail = f"{rollback.who} rolled this version back on {rollback.when} ({rollback.why})"
        verdicts.append(Verdict(WITHDRAWN, False, True, detail))
    previous = champion.number if champion else 0
    return decide(verdicts, number, previous, candidate.content, force=force, dry_run=dry_run)


def _measured(candidate: Candidate, trip: RoundTrip) -> Measured:
    lineage = candidate.lineage
    changed = lineage.changed_files if lineage.revision else None
    return Measured(candidate.contamination, trip.max_difference, trip.megabytes, trip.query_milliseconds, changed)


def _evaluation_of(registry: Registry, version: Version, model: str) -> Evaluation:
    """The champion's evaluation, from the run that published it; without tasks, comparable to nothing, if lost or of
    other files.
    """
    import mlflow

    name = f"champion (version {version.number})"
    try:
        with explained(registry.uri):
            path = mlflow.artifacts.download_artifacts(
                run_id=version.tags.get(RUN, version.run_id), artifact_path=f"reports/evaluation/{model}.json"
            )
        found = read_evaluation(Path(path))
        is_its_own = found.content == version.tags.get(CONTENT)
        return Evaluation(name, "champion", found.tasks if is_its_own else {})
    except (RegistryError, DataError, OSError):
        return Evaluation(name, "champion", {})


def _move(registry: Registry, outcome: Outcome, version: Version, actor: Actor) -> None:
    """Move the alias that the outcome names, and then write the decision into the version's tags.

    In this order, so that no tag tells of a move that a cut has prevented; what a cut has left out after the move is
    made up for. If another promotion was faster, the tags say so.
    """
    tags = outcome.decision_tags(actor.who, actor.when)
    if outcome.decision == "held":
        registry.point(CHALLENGER, outcome.version)
    elif outcome.decision == "unchanged":
        tags = _missing_tags(outcome, version, settle(registry, version))
    else:
        kind: Kind = "force" if outcome.decision == "forced" else "promote"
        reason = outcome.reason or "all required gates passed"
        try:
            crown(registry, outcome.version, kind, actor, reason, outcome.previous)
        except OvertakenError as error:
            tags |= {"decision": "overtaken", "decision.line": str(error)}
            registry.tag(outcome.version, tags, version.tags)
            raise
    registry.tag(outcome.version, tags, version.tags)


def _missing_tags(outcome: Outcome, version: Version, entry: Entry | None) -> dict[str, str]:
    """The decision that made this version the champion by that entry, as tags with the verdicts of today; none where
    they are there, or no decision made it so.
    """
    if entry is None or entry.kind not in ("promote", "force"):
        return {}
    then = replace(outcome, decision="promoted", previous=entry.previous)
    if entry.kind == "force":
        then = replace(then, decision="forced", reason=entry.why)
    tags = then.decision_tags(entry.who, entry.when)
    is_noted = all(version.tags.get(name) == tags[name] for name in ("decision", "decision.who", "decision.when"))
    return {} if is_noted else tags
