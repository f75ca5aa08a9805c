"""DVC's copy of a project for an experiment, which it deletes: answers and registry are those of the project."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from stm.doctor import services
from stm.llm.answers import Answer, request_key
from stm.llm.store import STORE_FILE, AnswerStore
from stm.promote import publish
from stm.promote.promotion import LOCK, only_one, preview, promote
from stm.promote.registry import CHAMPION, Registry, resolve_uri
from stm.root import project_root
from tests.registry_project import ACTOR, copy_store, promote_params, write_project

RELATIVE = {"tracking_uri": "sqlite:///mlruns/mlflow.db", "artifact_folder": "mlruns/artifacts"}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: DVC's copy, for an experiment, of the project that is `tmp_path`."""
    folder = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "tmp1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_the_project_is_found_from_a_copy_and_is_itself_elsewhere(copy: Path, tmp_path: Path) -> None:
    assert project_root() == project_root(copy) == project_root(copy / "part") == tmp_path
    os.chdir(tmp_path)
    assert project_root() == Path()
    assert project_root(tmp_path) == tmp_path


@pytest.mark.usefixtures("copy")
def test_answers_of_an_experiment_are_kept_in_the_project(tmp_path: Path) -> None:
    with AnswerStore() as store:
        store.put("{}", Answer("paid for", "stop", 1, 1))
    os.chdir(tmp_path)
    assert not list((tmp_path / ".dvc").rglob("llm.sqlite"))
    with AnswerStore(STORE_FILE) as store:
        assert [answer.text for answer in store.get([request_key("{}")]).values()] == ["paid for"]


@pytest.mark.usefixtures("copy")
def test_a_relative_store_is_that_of_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_uri("sqlite:///a/b.db?timeout=3") == f"sqlite:///{tmp_path}/a/b.db?timeout=3"
    for other in (f"sqlite:///{tmp_path}/a.db", "http://127.0.0.1:5000"):
        assert resolve_uri(other) == other
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///c.db")
    assert resolve_uri("sqlite:///a.db") == f"sqlite:///{tmp_path}/c.db"


def test_an_experiment_publishes_into_the_folder_of_the_project(copy: Path, tmp_path: Path) -> None:
    copy_store(tmp_path)
    for folder, params in ((copy, promote_params(tmp_path, **RELATIVE)), (tmp_path, promote_params(tmp_path))):
        os.chdir(folder)
        registry = Registry.open(params.tracking_uri, params.registered_model)
        publish.ensure_experiment(registry, params.experiment, params.artifact_folder)
        os.environ["MLFLOW_TRACKING_URI"] = ""
        assert services.check_registry(Path(), {"promote": params.model_dump()}).state == "ok"
    experiment = registry.client.get_experiment_by_name("stm")
    assert experiment.artifact_location == (tmp_path / "mlruns" / "artifacts").as_uri()
    assert not list(copy.iterdir())


def test_the_gates_judge_an_experiment_against_the_champion_of_the_project(copy: Path, tmp_path: Path) -> None:
    write_project(tmp_path)
    assert promote(promote_params(tmp_path), ACTOR, root=tmp_path).decision == "promoted"
    os.environ["MLFLOW_TRACKING_URI"] = ""
    write_project(copy)
    params = promote_params(tmp_path, **RELATIVE)
    assert preview(params).decision == promote(params, ACTOR).decision == "unchanged"
    assert Registry.open(params.tracking_uri, params.registered_model).aliases() == {CHAMPION: 1}


def test_an_experiment_waits_for_another_promotion_of_the_project(copy: Path, tmp_path: Path) -> None:
    order: list[str] = []

    def wait() -> None:
        with only_one(copy):
            order.append("experiment")

    with only_one(tmp_path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        order.append("project")
    waiting.join(10)
    assert order == ["project", "experiment"]
    with (tmp_path / LOCK).open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
