"""The whole promotion on a pico model: publishing once, gates and aliases, interruptions, secrets."""

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from stm.errors import DataError, ModelError, RegistryError
from stm.files import sha256_tree, write_json
from stm.promote import promotion, publish, versions
from stm.promote.decision import decide
from stm.promote.gates import Verdict
from stm.promote.history import Actor, OvertakenError, read_history, roll_back
from stm.promote.lineage import read_lineage
from stm.promote.plan import plan_publication
from stm.promote.promotion import only_one, preview, promote
from stm.promote.registry import Registry
from stm.promote.versions import FORBIDDEN, RoundTrip
from tests.registry_project import (
    ACTOR,
    LEVELS,
    copy_store,
    evaluation,
    pico,
    promote_params,
    write_project,
)

KEY = "sk-planted-0123456789abcdef"
FEW = {name: LEVELS[name] for name in ("base", "nlu-ft", "all", "merged")}
SAME = RoundTrip(0.0, 1.0, 1.0)
TEXTS = ["heart", "a long passage " * 50]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def no_reload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the round trip where it is not what is tested."""
    monkeypatch.setattr(promotion, "measure", lambda *_: SAME)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose merged model has become champion; tests that change anything copy it."""
    root = write_project(tmp_path_factory.mktemp("published"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("MLFLOW_TRACKING_URI", "unset")
        patch.delenv("MLFLOW_TRACKING_URI")
        assert promote(promote_params(root), ACTOR, root=root).decision == "promoted"
    return root


@pytest.fixture
def project(published: Path, tmp_path: Path) -> Path:
    """A project of few reports with another, better merged model, over a copy of the published one's store."""
    shutil.copytree(published / "mlruns", tmp_path / "mlruns", ignore=shutil.ignore_patterns("artifacts"))
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as database:
        location = (tmp_path / "mlruns" / "artifacts").as_uri()
        database.execute("UPDATE experiments SET artifact_location = ? WHERE name = 'stm'", [location])
    write_project(tmp_path, pico(1), FEW)
    for name in ("train", "search_prompts"):
        shutil.rmtree(tmp_path / "reports" / name)
    write_json(tmp_path / "reports" / "evaluation" / "merged.json", evaluation("merged", "merged", 0.6, model=pico(1)))
    return tmp_path


def open_registry(root: Path) -> Registry:
    return Registry.open(promote_params(root).tracking_uri, "stm-retriever")


def all_runs(root: Path) -> list[Any]:
    registry = open_registry(root)
    experiment = registry.client.get_experiment_by_name("stm")
    return list(registry.client.search_runs([experiment.experiment_id], max_results=1000))


def test_every_report_becomes_a_run_below_one_parent(published: Path) -> None:
    runs = {run.info.run_name: run for run in all_runs(published)}
    evaluations = {f"evaluation {name}" for name in LEVELS}
    rest = {
        "expert med_real-ft",
        "expert nlu-ft",
        "prompts nlu",
        "merge merge",
        "merge trial 2",
        "merge trial 3",
        "model",
    }
    assert set(runs) == {"pipeline", *evaluations, *rest}
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents.pop("pipeline") is None
    assert {parents.pop("merge trial 2"), parents.pop("merge trial 3")} == {runs["merge merge"].info.run_id}
    assert set(parents.values()) == {runs["pipeline"].info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["pipeline"].data.params["promote.seed"] == "7"


def test_histories_keep_their_steps_and_words_become_params(published: Path) -> None:
    client = open_registry(published).client
    runs = {run.info.run_name: run for run in all_runs(published)}
    history = client.get_metric_history(runs["expert nlu-ft"].info.run_id, "history.loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1.0 / step) for step in range(1, 6)]
    assert runs["prompts nlu"].data.params["instruction"] == 'Find "it" / 🫀'
    assert runs["evaluation merged"].data.metrics["tasks.med-a.ndcg_at_10"] == pytest.approx(0.5)
    assert {item.dataset.name for item in runs["evaluation merged"].inputs.dataset_inputs} == {"med-a", "gen-b"}
    names = [item.path for item in client.list_artifacts(runs["pipeline"].info.run_id, "reports/evaluation")]
    assert "reports/evaluation/merged.json" in names


def test_publishing_twice_adds_nothing(published: Path) -> None:
    before = {run.info.run_id for run in all_runs(published)}
    files = sorted(path for path in (published / "mlruns" / "artifacts").rglob("*"))
    outcome = promote(promote_params(published), ACTOR, root=published)
    assert (outcome.decision, outcome.version) == ("unchanged", 1)
    assert {run.info.run_id for run in all_runs(published)} == before
    assert sorted(path for path in (published / "mlruns" / "artifacts").rglob("*")) == files
    assert len(open_registry(published).versions()) == 1
    assert len(read_history(open_registry(published))) == 1


def test_the_version_tells_where_it_came_from(published: Path) -> None:
    version = open_registry(published).require("champion")
    tags = version.tags
    assert tags["merge.method"] == "ties"
    assert json.loads(tags["merge.weights"]) == {"med_real-ft": 0.7, "nlu-ft": 0.3}
    assert {"git.revision", "git.dirty", "dvc.lock", "data", "backbone", "run"} <= set(tags)
    assert "mlflow" in json.loads(tags["libraries"])
    assert "query" in json.loads(tags["prompts"])
    assert (tags["decision"], tags["decision.who"], tags["decision.when"]) == ("promoted", "Ada", ACTOR.when)
    gate = json.loads(tags["gate.base"])
    assert gate["passed"]
    assert gate["gain"] == pytest.approx(0.4, abs=1e-4)
    assert float(tags["ndcg_at_10.all"]) == pytest.approx(0.5)


def test_the_champion_loads_with_mlflow_alone_and_gives_the_same_vectors(published: Path) -> None:
    mlflow.set_tracking_uri(promote_params(published).tracking_uri)
    loaded = mlflow.sentence_transformers.load_model("models:/stm-retriever@champion")
    original = SentenceTransformer(str(published / "models" / "merged"))
    texts = ["heart", "", "🫀 zöliakie", "a long passage " * 50]
    assert float(np.abs(loaded.encode_query(texts) - original.encode_query(texts)).max()) == 0
    assert loaded.prompts == original.prompts
    info = mlflow.models.get_model_info("models:/stm-retriever@champion")
    assert info.signature is not None
    assert info.signature.outputs.inputs[0].shape == (-1, 32)


def test_the_registered_files_are_those_of_the_folder_and_hold_no_pickle_or_code(published: Path) -> None:
    (stored,) = (published / "mlruns" / "artifacts").rglob("model.sentence_transformer")
    original = published / "models" / "merged"
    for path in stored.rglob("*"):
        assert path.suffix not in FORBIDDEN
    for path in (path for path in original.rglob("*") if path.is_file()):
        assert (stored / path.relative_to(original)).read_bytes() == path.read_bytes(), path
    card = (published / "reports" / "model_card.md").read_text(encoding="utf-8")
    assert (stored / "README.md").read_text(encoding="utf-8") == card
    assert not (original / "README.md").exists()  # the folder itself, and so its content hash, stays as it was


def test_the_registered_files_can_be_read_by_whom_the_umask_lets(published: Path, tmp_path: Path) -> None:
    (tmp_path / "made").touch()
    expected = (tmp_path / "made").stat().st_mode
    (stored,) = (published / "mlruns" / "artifacts" / "models").iterdir()
    files = [path for path in stored.rglob("*") if path.is_file()]
    assert [path.name for path in files if path.stat().st_mode != expected] == []
    assert "model.safetensors" in {path.name for path in files}


def test_a_server_of_mlflow_encodes_queries_and_passages(published: Path) -> None:
    mlflow.set_tracking_uri(promote_params(published).tracking_uri)
    served = mlflow.pyfunc.load_model("models:/stm-retriever@champion")
    model = SentenceTransformer(str(published / "models" / "merged"))
    for params, expected in (({"prompt_name": "query"}, model.encode_query(TEXTS)), (None, model.encode(TEXTS))):
        assert np.array_equal(served.predict(TEXTS, params=params), expected)


def test_a_copied_project_does_not_publish_into_its_original(published: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(published, tmp_path / "copy")
    write_json(copy / "reports" / "select.json", {"new": 1})
    before = {path: path.stat().st_mtime_ns for path in published.rglob("*")}
    runs = len(all_runs(copy))
    with pytest.raises(RegistryError, match=r"keeps its files in .*published.*, and not in .*copy.*delete mlruns/"):
        promote(promote_params(copy), ACTOR, root=copy)
    with pytest.raises(RegistryError, match=r"keeps its files in .*published.*, and not in .*copy.*delete mlruns/"):
        preview(promote_params(copy), root=copy)
    assert {path: path.stat().st_mtime_ns for path in published.rglob("*")} == before
    assert len(all_runs(copy)) == runs


def test_no_written_file_holds_a_key_of_the_environment(published: Path) -> None:
    files = [path for path in published.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_key_in_a_report_stops_the_publication_and_is_not_repeated(project: Path) -> None:
    write_json(project / "reports" / "warm_up.json", {"note": f"Bearer {KEY}"})
    with pytest.raises(RegistryError, match="holds the value of the environment variable OPENAI_API_KEY") as caught:
        promote(promote_params(project), ACTOR, root=project)
    assert KEY not in str(caught.value)
    assert len(open_registry(project).versions()) == 1


@pytest.mark.usefixtures("no_reload")
def test_a_better_model_takes_the_alias_over_and_can_be_rolled_back(project: Path) -> None:
    outcome = promote(promote_params(project), ACTOR, root=project)
    assert (outcome.decision, outcome.version, outcome.previous) == ("promoted", 2, 1)
    compared = next(verdict for verdict in outcome.verdicts if verdict.name == "champion")
    assert compared.figures["opponent_name"] == "champion (version 1)"
    assert compared.figures["gain"] == pytest.approx(0.1)
    registry = open_registry(project)
    assert roll_back(registry, None, ACTOR, "complaints").version == 1
    again = promote(promote_params(project), ACTOR, root=project)
    assert again.decision == "held"
    assert "Ada rolled this version back" in again.line()
    assert registry.aliases() == {"champion": 1, "challenger": 2}


@pytest.mark.usefixtures("no_reload")
def test_a_rollback_to_a_version_without_its_weights_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = promote_params(project)
    assert promote(params, ACTOR, root=project).version == 2
    shutil.rmtree(project / "models" / "merged")
    write_project(project, pico(0), FEW)
    assert promote(params, ACTOR, root=project, force="the test says so").version == 1
    (weights,) = (project / "mlruns" / "artifacts").rglob("model.safetensors")
    weights.unlink()
    registry = open_registry(project)
    with pytest.raises(RegistryError, match=r"models:/stm-retriever/2 cannot be loaded: .*; the champion stays$"):
        roll_back(registry, None, ACTOR, "complaints")
    assert "loading version 2" in capsys.readouterr().err
    assert registry.aliases() == {"champion": 1}
    assert [entry.version for entry in read_history(registry)] == [1, 2, 1]


@pytest.mark.usefixtures("no_reload")
def test_a_worse_model_becomes_challenger_and_the_champion_stays(project: Path) -> None:
    write_json(project / "reports" / "evaluation" / "merged.json", evaluation("merged", "merged", 0.43, model=pico(1)))
    outcome = promote(promote_params(project), ACTOR, root=project)
    assert outcome.decision == "held"
    assert outcome.champion == 1
    assert (
        "version 2 is held back as challenger, version 1 stays champion; champion: 0.4300 against 0.5000"
        in outcome.line()
    )
    assert open_registry(project).aliases() == {"champion": 1, "challenger": 2}
    forced = promote(promote_params(project), ACTOR, root=project, force="the old one breaks the law")
    assert forced.decision == "forced"
    assert "the old one breaks the law" in forced.line()
    registry = open_registry(project)
    assert registry.aliases() == {"champion": 2}
    assert registry.version(2).tags["decision.reason"] == "the old one breaks the law"
    assert read_history(registry)[-1].kind == "force"
    roll_back(registry, None, ACTOR, "complaints")
    assert promote(promote_params(project), ACTOR, root=project).decision == "held"
    assert not registry.version(2).tags["decision.reason"], "held back it is no longer for the reason of the force"


@pytest.mark.usefixtures("no_reload")
def test_a_dirty_tree_is_recorded_and_refused_where_its_gate_is_required(project: Path) -> None:
    git = ["git", "-C", str(project), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    (project / ".gitignore").write_text("/mlruns\n/.stm\n/models\n", encoding="utf-8")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "clean"]):
        subprocess.run([*git, *command], check=True)
    odd = 'it\'s a "name" 🫀.py'
    odd_bytes = os.fsdecode(b"\xff.py")  # no UTF-8, and a name that git takes
    for name in (odd, "two\nlines.py", odd_bytes, "z.py"):
        (project / name).write_text("x = 1", encoding="utf-8")
    (project / "reports" / "extra.json").write_text("{}", encoding="utf-8")  # what the pipeline writes does not count
    gates = promote_params(project).gates.model_dump()
    outcome = promote(
        promote_params(project, gates={**gates, "changed_files": {"at_most": 0, "required": True}}), ACTOR, root=project
    )
    assert outcome.decision == "held"
    assert f"changed_files: 4 exceeds 0: {odd}, 'two\\nlines.py', z.py and 1 more" in outcome.line()
    tags = open_registry(project).version(2).tags
    named = [odd, "two\nlines.py", "z.py", "\ufffd.py"]
    assert (tags["git.dirty"], json.loads(tags["git.changed_files"])) == ("true", named)

    (project / ".git" / "index").write_bytes(b"broken")  # git knows the revision still, and no changes any more
    lineage = read_lineage(project)
    assert (lineage.revision, lineage.tags()["git.dirty"]) == (tags["git.revision"], "unknown")
    outcome = promote(
        promote_params(project, gates={**gates, "changed_files": {"at_most": 0, "required": True}}), ACTOR, root=project
    )
    assert "changed_files: not measured" in outcome.line()


@pytest.mark.usefixtures("no_reload")
def test_a_promotion_that_is_overtaken_says_so_on_its_version(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crown(*_: object) -> None:
        raise OvertakenError("another promotion made version 7 the champion meanwhile")

    monkeypatch.setattr(promotion, "crown", crown)
    with pytest.raises(OvertakenError):
        promote(promote_params(project), ACTOR, root=project)
    tags = open_registry(project).version(2).tags
    assert (tags["decision"], tags["decision.line"][:17]) == ("overtaken", "another promotion")


def test_other_params_are_another_publication(project: Path) -> None:
    before = plan_publication(project, project / "models/merged", 5)
    path = project / "params.yaml"
    path.write_text(path.read_text() + "\n# a comment\n")
    assert plan_publication(project, project / "models/merged", 5).digest == before.digest
    path.write_text(path.read_text() + "\nextra: {samples: 1, pool: [{kind: csv}]}\n")  # in reports these are left out
    after = plan_publication(project, project / "models/merged", 5)
    assert after.digest != before.digest
    assert after.runs[0].params["extra.samples"] == "1"
    assert after.runs[0].params["extra.pool"] == '[{"kind": "csv"}]'


def test_a_champion_measured_on_other_tasks_cannot_be_overtaken_silently(project: Path) -> None:
    for name, (role, level) in FEW.items():
        report = evaluation(name, role, level, ("med-new",), pico(1))
        write_json(project / "reports" / "evaluation" / f"{name}.json", report)
    outcome = promote(promote_params(project), ACTOR, root=project)
    assert outcome.decision == "held"
    assert "evaluated on other tasks" in outcome.line()


def test_scores_of_other_files_are_refused(project: Path) -> None:
    report = project / "reports" / "evaluation" / "merged.json"
    write_json(report, evaluation("merged", "merged", 0.6, model=pico(0)))
    with pytest.raises(DataError, match=r"merged\.json is of another model than .*else `dvc repro evaluate`"):
        promote(promote_params(project), ACTOR, root=project)
    other = {**evaluation("merged", "merged", 0.6, model=pico(1)), "prompts": {"query": "else: ", "document": ""}}
    write_json(report, other)
    with pytest.raises(DataError, match=r"was evaluated with the prompts .*else"):
        promote(promote_params(project), ACTOR, root=project)
    assert open_registry(project).aliases() == {"champion": 1}


@pytest.mark.usefixtures("no_reload")
def test_a_champion_whose_scores_are_of_another_model_cannot_be_overtaken(project: Path) -> None:
    assert promote(promote_params(project), ACTOR, root=project).decision == "promoted"
    registry = open_registry(project)
    registry.client.set_model_version_tag("stm-retriever", "2", "model", "0" * 64)
    shutil.rmtree(project / "models" / "merged")
    shutil.copytree(pico(2), project / "models" / "merged")
    path = project / "reports" / "evaluation" / "merged.json"
    write_json(path, evaluation("merged", "merged", 0.9, model=pico(2)))
    outcome = promote(promote_params(project), ACTOR, root=project)
    assert outcome.decision == "held"
    assert "there is no evaluation of champion (version 2) to compare with" in outcome.line()


def test_a_model_that_changes_on_reload_is_held(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "measure", lambda *_: RoundTrip(1e-7, 1.0, 1.0))
    outcome = promote(promote_params(project), ACTOR, root=project)
    assert outcome.decision == "held"
    assert "reload_difference: 1e-07 exceeds 0" in outcome.line()


def test_a_dry_run_judges_and_changes_nothing(project: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    outcome = preview(promote_params(project), root=project)
    assert outcome.decision == "promoted"
    assert outcome.line().startswith("the merged model would be the champion")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_dry_run_without_a_registry_makes_none(tmp_path: Path) -> None:
    write_project(tmp_path)
    shutil.rmtree(tmp_path / "mlruns")
    assert preview(promote_params(tmp_path), root=tmp_path).version == 0
    assert not (tmp_path / "mlruns").exists()


CLIENT_CALLS = (
    "log_artifacts", "create_model_version", "set_model_version_tag", "set_registered_model_tag",
    "set_registered_model_alias",
)  # fmt: skip


def _fail_once(original: Callable[..., Any], after: int = 0) -> Callable[..., Any]:
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    return wrapped


@pytest.mark.usefixtures("no_reload")
@pytest.mark.parametrize(
    ("call", "after"), [*((call, 0) for call in CLIENT_CALLS), ("create_run", 4), ("set_terminated", 3)]
)
def test_an_interruption_at_any_step_leaves_the_champion_and_is_completed_without_doubles(
    project: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    params = promote_params(project)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, call, _fail_once(getattr(mlflow.MlflowClient, call), after))
        with pytest.raises(KeyboardInterrupt):
            promote(params, ACTOR, root=project)
    registry = open_registry(project)
    assert registry.require("champion").number == 1
    assert [entry.version for entry in read_history(registry)] == [1]
    assert promote(params, ACTOR, root=project).decision == "promoted"
    assert [version.number for version in registry.versions()] == [2, 1]
    latest = registry.version(2).tags["run"]
    ours = {run.info.run_id: run for run in all_runs(project)}
    digest = ours[latest].data.tags[publish.PUBLICATION]
    names = sorted(run.info.run_name for run in ours.values() if run.data.tags[publish.PUBLICATION] == digest)
    trials = ["merge merge", "merge trial 2", "merge trial 3"]
    assert names == sorted(["pipeline", "model", *trials, *(f"evaluation {name}" for name in FEW)])
    assert [entry.version for entry in read_history(registry)] == [1, 2]


# The writes that follow the alias: the mark in the history, 3 tags of the champion, the challenger, 5 of the decision.
@pytest.mark.usefixtures("no_reload")
@pytest.mark.parametrize(
    ("call", "after"),
    [
        ("set_registered_model_tag", 0),
        ("delete_registered_model_alias", 0),
        *(("set_model_version_tag", after) for after in (0, 2, 3, 4, 7)),
    ],
)
def test_what_a_cut_after_the_alias_has_left_out_is_made_up_for_by_the_same_command(
    project: Path, monkeypatch: pytest.MonkeyPatch, call: str, after: int
) -> None:
    low = evaluation("merged", "merged", 0.3, model=pico(1))
    write_json(project / "reports" / "evaluation" / "merged.json", low)
    params, bob = promote_params(project), Actor("Bob", "later")
    assert promote(params, ACTOR, root=project).decision == "held"
    point = Registry.point
    with monkeypatch.context() as patch:

        def cut_next(self: Registry, alias: str, number: int) -> None:
            point(self, alias, number)
            patch.setattr(mlflow.MlflowClient, call, _fail_once(getattr(mlflow.MlflowClient, call), after))

        patch.setattr(Registry, "point", cut_next)
        with pytest.raises(KeyboardInterrupt):
            promote(params, bob, root=project, force="a trial")
    again = promote(params, Actor("Bob", "later still"), root=project, force="a trial")
    registry = open_registry(project)
    tags = registry.version(2).tags
    assert (again.decision, registry.aliases()) == ("unchanged", {"champion": 2})
    entries = [(entry.kind, entry.version, entry.done) for entry in read_history(registry)]
    assert entries == [("promote", 1, True), ("force", 2, True)]
    assert [tags[f"champion.{name}"] for name in ("by", "since", "why")] == ["Bob", "later", "a trial"]
    assert [tags[f"decision.{name}"] for name in ("who", "when", "reason")] == ["Bob", "later", "a trial"]
    assert tags["decision"] == "forced"
    assert "is the champion (before: version 1) by force (a trial)" in tags["decision.line"]


@pytest.mark.usefixtures("no_reload")
def test_no_tag_tells_of_a_move_that_a_cut_has_prevented(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", _fail_once(lambda *_: None))
        with pytest.raises(KeyboardInterrupt):
            promote(promote_params(project), ACTOR, root=project)
    tags = open_registry(project).version(2).tags
    assert "gate.base" in tags
    assert "decision" not in tags


@pytest.mark.usefixtures("no_reload")
def test_a_rollback_is_no_decision_of_the_gates(project: Path) -> None:
    assert promote(promote_params(project), ACTOR, root=project).version == 2
    registry = open_registry(project)
    roll_back(registry, None, Actor("Bob", "later"), "complaints")
    shutil.rmtree(project / "models" / "merged")
    write_project(project, pico(0), FEW)
    assert promote(promote_params(project), ACTOR, root=project).decision == "unchanged"
    tags = registry.version(1).tags
    assert (tags["decision"], tags["decision.who"], tags["champion.by"]) == ("promoted", "Ada", "Bob")


@pytest.mark.usefixtures("no_reload")
@pytest.mark.parametrize("step", ["publish", "load_folder", "_log"])
def test_a_model_that_changes_while_it_is_published_is_not_registered(
    project: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The merge stage swaps its folder in just before or after a step; what is registered is what was judged."""
    owner: Any = promotion if step == "publish" else versions
    original, merged = getattr(owner, step), project / "models" / "merged"

    def meanwhile(*args: Any) -> Any:
        found = original(*args)
        shutil.rmtree(merged)
        shutil.copytree(pico(2), merged)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, meanwhile)
        with pytest.raises(DataError, match=r"models/merged changed while it was published; .* run again"):
            promote(promote_params(project), ACTOR, root=project)
    assert [version.number for version in open_registry(project).versions()] == [1]
    write_json(project / "reports" / "evaluation" / "merged.json", evaluation("merged", "merged", 0.7, model=pico(2)))
    outcome = promote(promote_params(project), ACTOR, root=project)
    tags = open_registry(project).version(2).tags
    assert (outcome.decision, tags["model"]) == ("promoted", sha256_tree(pico(2)))
    assert float(tags["ndcg_at_10.all"]) == pytest.approx(0.7)


@pytest.mark.usefixtures("no_reload")
def test_a_half_logged_model_is_logged_again_and_a_logged_one_taken_up(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = promote_params(project)
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_model_artifacts", _fail_once(lambda *_: None))
        with pytest.raises(KeyboardInterrupt):
            promote(params, ACTOR, root=project)
    assert promote(params, ACTOR, root=project).version == 2
    registry = open_registry(project)
    experiment = registry.client.get_experiment_by_name("stm").experiment_id
    assert len(registry.client.search_logged_models([experiment])) == 2


def test_two_promotions_in_one_project_do_not_run_at_once(project: Path) -> None:
    with only_one(project), pytest.raises(RegistryError, match="another promotion or rollback is running"):
        promote(promote_params(project), ACTOR, root=project)


def test_missing_parts_are_named_before_anything_is_published(tmp_path: Path) -> None:
    write_project(tmp_path)
    with pytest.raises(DataError, match="has no model 'other'"):
        promote(promote_params(tmp_path, model="other"), ACTOR, root=tmp_path)
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(DataError, match="models/merged does not exist"):
        promote(promote_params(tmp_path), ACTOR, root=tmp_path)
    shutil.rmtree(tmp_path / "reports")
    with pytest.raises(DataError, match="holds no evaluation"):
        promote(promote_params(tmp_path), ACTOR, root=tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pkl", "modeling_custom.py"])
def test_folders_that_could_run_code_are_refused(tmp_path: Path, name: str) -> None:
    shutil.copytree(pico(), tmp_path / "model")
    (tmp_path / "model" / name).write_bytes(b"x")
    with pytest.raises(ModelError, match="could run code"):
        versions.check_folder(tmp_path / "model")
    with pytest.raises(ModelError, match=r"has no modules\.json"):
        versions.check_folder(tmp_path)


def test_a_deleted_experiment_is_restored(tmp_path: Path) -> None:
    copy_store(tmp_path)
    params = promote_params(tmp_path)
    registry = Registry.open(params.tracking_uri, "stm-retriever", create=True)
    ensure = partial(publish.ensure_experiment, registry, "stm 'x' / 🫀")
    first = ensure(str(tmp_path / "of 'x' / 🫀 #1"))
    registry.client.delete_experiment(first)
    with pytest.raises(RegistryError, match="set it back"):
        ensure(str(tmp_path / "mlruns/elsewhere"))
    assert registry.client.get_experiment(first).lifecycle_stage == "deleted"
    assert ensure(str(tmp_path / "of 'x' / 🫀 #1")) == first
    assert registry.client.get_experiment(first).lifecycle_stage == "active"


@pytest.mark.parametrize("location", ["s3://bucket/mlflow", "{}/a b", "{}/link/a b", "file://{}/a%20b"])
def test_files_in_their_folder_or_in_another_store_are_well_placed(tmp_path: Path, location: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert publish.misplaced(location.format(tmp_path), tmp_path / "a b", tmp_path / "x.db") == ""
    is_local = not location.startswith("s3")
    assert bool(publish.misplaced(location.format(tmp_path), tmp_path / "c", tmp_path / "x.db")) is is_local
    assert not publish.misplaced(location.format(tmp_path), tmp_path / "c", tmp_path / "shared/x.db")


def test_a_version_keeps_the_record_of_the_results_that_it_was_registered_with(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = project / "dvc.lock"
    lock.write_text("stages: {merge: {outs: [{path: models/merged, md5: a}]}}", encoding="utf-8")
    assert promote(promote_params(project), ACTOR, root=project).decision == "promoted"
    before = open_registry(project).require("champion").tags
    capsys.readouterr()
    lock.write_text("stages: {merge: {outs: [{path: models/merged, md5: b}]}}", encoding="utf-8")
    report = project / "reports" / "evaluation" / "merged.json"
    write_json(report, evaluation("merged", "merged", 0.7, model=pico(1)))
    assert promote(promote_params(project), ACTOR, root=project).decision == "unchanged"
    assert open_registry(project).require("champion").tags == before
    assert "keeps the record of what it was registered with" in capsys.readouterr().err


def test_the_file_of_the_decision_holds_no_time() -> None:
    slow = Verdict("query_milliseconds", True, False, "1.65 is within 200", {"value": 1.65, "at_most": 200})
    found = decide([slow], 1, 0, "m", force="", dry_run=False)
    assert found.as_json()["gates"]["query_milliseconds"] == {"passed": True, "required": False}
    assert "1.65" in found.gate_tags()["gate.query_milliseconds"]
