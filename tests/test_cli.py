"""The command line: help, output, exit codes, errors in one sentence."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc_objects.fs.utils import tmp_fname
from rich.console import Console
from typer.testing import CliRunner, Result

from stm.stage import guard
from stages import promote as stage
from stm.cli import _table, app
from stm.files import write_json
from stm.tasks import Passage, Task, write_task
from tests.closure import ROOT
from tests.registry_project import evaluation, pico, promote_params, write_project

COMMANDS = ("search", "doctor", "promote", "rollback", "models", "reproduce")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STM_ACTOR", "Grace")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished project as the current folder, nothing published."""
    write_project(tmp_path)
    section = promote_params(tmp_path).model_dump(mode="json")
    sections = {"promote": section, "evaluate": {"batch_tokens": 0, "store_megabytes": 5}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output
    assert command in run("--help").output


def test_help_imports_no_heavy_library() -> None:
    code = "import sys, stm.cli; print({'torch', 'mlflow', 'dvc', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_life_of_a_champion(project: Path) -> None:
    dry = run("promote", "--dry-run")
    assert dry.exit_code == 0
    assert "would be the champion" in dry.output
    assert "there is no champion" not in run("models").output

    first = run("promote")
    assert first.exit_code == 0
    assert "version 1 is the champion: all required gates passed" in first.output

    shutil.rmtree(project / "models" / "merged")
    shutil.copytree(pico(1), project / "models" / "merged")
    write_json(project / "reports" / "evaluation" / "merged.json", evaluation("merged", "merged", 0.43, model=pico(1)))
    assert guard(stage.main) == 0  # held back, and still a success
    report = json.loads((project / "reports" / "promotion.json").read_text(encoding="utf-8"))
    assert (report["decision"], report["version"], report["champion"]) == ("held", 2, 1)
    assert report["gates"]["champion"]["passed"] is False
    assert report["gates"]["base"]["passed"] is True

    forced = run("promote", "--force", "--reason", "the test says so")
    assert "version 2 is the champion (before: version 1) by force (the test says so)" in forced.output
    listing = run("models").output
    assert "champion" in listing
    assert "0.430" in listing
    assert "forced" in listing

    back = run("rollback", "--reason", "complaints / 🫀")
    assert back.stdout.strip() == "version 1 is the champion again (before: version 2)"
    history = run("models", "--history").output
    assert [word for word in ("promote", "force", "rollback") if word in history] == ["promote", "force", "rollback"]
    assert "complaints / 🫀" in history
    assert "Grace" in history

    hits = run("search", "heart", "--champion", "--corpus", str(_corpus(project)), "--k", "1", "--json")
    assert hits.exit_code == 0
    assert json.loads(hits.stdout)["position"] == 1


def _corpus(project: Path) -> Path:
    path = project / "corpus.txt"
    path.write_text("The heart pumps blood.\nThe retina [red]sees[/red].\n", encoding="utf-8")
    return path


def test_a_narrow_terminal_breaks_words_and_cuts_none() -> None:
    console = Console(width=40, highlight=False)
    table = _table("found", "next step")
    table.add_row("/a/long/path/" * 4, "`git worktree remove --force .stm/reproduce/3`")
    with console.capture() as shown:
        console.print(table)
    assert "…" not in shown.get()
    assert sum(character == "/" for character in shown.get()) == 4 * 4 + 2


def test_searching_prints_text_as_it_is(project: Path) -> None:
    result = run("search", "eye", "--corpus", str(_corpus(project)))
    assert result.exit_code == 0
    assert "The retina [red]sees[/red]." in result.output
    corpus = {"p1": Passage("Retina", "A layer of the eye.")}
    write_task(Task("med", "medical", corpus, {"q": "eye"}, {"q": {"p1": 1}}), project / "data/tasks/test/med", "test")
    assert "Retina" in run("search", "eye").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models"], "there is no registry yet"), (["rollback"], "there is no registry yet"),
        (["search", "x", "--champion"], "there is no registry yet"), (["search", "x"], "holds no corpus"),
        (["search", "x", "--corpus", "none.txt"], "cannot read none.txt: No such file"),
        (["promote", "--force"], "--force and --reason go together"),
        (["promote", "--reason", "x"], "--force and --reason go together"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence_and_exit_code_1(
    project: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(project / "mlruns")
    result = run(*arguments)
    text = result.output + capsys.readouterr().err
    assert result.exit_code == 1
    assert message in text
    assert "Traceback" not in text


def test_outside_of_a_project_the_next_step_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("models")
    assert result.exit_code == 1
    assert "run from the project's root" in result.output


def test_a_second_profile_is_not_said_to_be_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(ROOT / "params.yaml", "params.yaml")
    Path("profiles").mkdir()
    for name, value in (("one", 5), ("two", 6)):
        Path(f"profiles/{name}.yaml").write_text(f"prepare: {{max_pairs: {value}}}", encoding="utf-8")
        result = run("use", name)
        assert result.exit_code == 0
        assert f"taken over profile '{name}'; what {name} does not set is as before" in result.output
        assert "the former file is .stm/params.yaml.before" in result.output
    assert "max_pairs: 5" in Path(".stm/params.yaml.before").read_text(encoding="utf-8")
    assert "has all of profile 'two' already" in run("use", "two").output


def test_the_doctor_exits_with_1_if_something_essential_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("doctor")
    assert result.exit_code == 1
    assert "missing: params.yaml" in result.output


def test_the_doctor_names_damaged_files_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no .dvc folder" in run("doctor", "--cache").output
    content = {"plain": b"whole", "listed": b'[{"md5": "x", "relpath": "y"}]'}
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[cache]\n    dir = ../kept\n", encoding="utf-8")
    paths = {}
    for (name, data), ending in zip(content.items(), ("", ".dir"), strict=True):
        digest = hashlib.md5(data).hexdigest()
        paths[name] = tmp_path / "kept" / "files" / "md5" / digest[:2] / (digest[2:] + ending)
        paths[name].parent.mkdir(parents=True)
        paths[name].write_bytes(data)
    assert run("doctor", "--cache").exit_code == 0
    paths["plain"].write_bytes(b"whol3")
    result = run("doctor", "--cache")
    assert result.exit_code == 1
    assert paths["plain"].name in result.output
    assert paths["listed"].name not in result.output
    assert "dvc fetch && dvc checkout" in result.output


def test_the_doctor_tells_an_interrupted_copy_from_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    copy = tmp_path / ".dvc" / "cache" / "files" / "md5" / "66" / tmp_fname()
    copy.parent.mkdir(parents=True)
    copy.write_bytes(bytes(2_500_000))
    result = run("doctor", "--cache")
    assert result.exit_code == 0
    assert "left copies that nothing refers to (2.5 MB)" in result.output
    assert copy.name in result.output
    assert "holds no files" in result.output


def test_without_a_champion_the_history_says_so(project: Path) -> None:
    assert "there has been no champion yet" in run("models", "--history").output
