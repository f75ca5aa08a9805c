"""`stm answers export` and `import`: a second machine replays without any endpoint; bad files are one clear line."""

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stm.cli import app
from stm.llm.answers import Request
from stm.llm.client import complete_all
from stm.llm.store import AnswerStore
from stm.params.llm import Endpoint
from tests.closure import ROOT
from tests.fault_server import fault_server

REQUESTS = [Request([{"role": "user", "content": f"q{i}"}]) for i in range(5)]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["answers", *arguments])
    return result.exit_code, " ".join(result.output.split())


def test_another_machine_replays_what_was_paid_for_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for machine in ("here", "there"):
        (tmp_path / machine).mkdir()
        (tmp_path / machine / "params.yaml").write_text("{}", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    with fault_server() as server, AnswerStore() as store:
        endpoint = Endpoint(base_url=server.base_url, model="m")
        paid = [answer.text for answer in complete_all(REQUESTS, endpoint, store)]
    assert run("export", "../team.parquet")[0] == 0
    monkeypatch.chdir(tmp_path / "there")
    assert run("import", "../team.parquet") == (0, "../team.parquet: 5 answers, 5 of them new")
    assert run("import", "../team.parquet") == (0, "../team.parquet: 5 answers, 0 of them new")
    with AnswerStore() as store:  # the server is gone
        assert [answer.text for answer in complete_all(REQUESTS, endpoint, store)] == paid


def test_what_cannot_be_done_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("{}", encoding="utf-8")
    code, shown = run("export", "x.parquet")
    assert (code, Path("x.parquet").exists()) == (1, False)
    assert "error: no answers to export" in shown
    Path("broken.parquet").write_bytes(b"no parquet")
    code, shown = run("import", "broken.parquet")
    assert code == 1
    assert "cannot read the answers in broken.parquet" in shown


def test_a_folder_is_no_file_to_export_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("{}", encoding="utf-8")
    with AnswerStore():
        Path("folder").mkdir()
    code, shown = run("export", "folder")
    assert code == 1
    assert "error: cannot write folder: it is a folder; name a file" in shown
    assert list(Path("folder").iterdir()) == []


@pytest.mark.parametrize("command", ["export", "import"])
def test_outside_of_a_project_no_store_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown = run(command, "x.parquet")
    assert code == 1
    assert "cannot read params.yaml" in shown
    assert "run from the project's root" in shown
    assert list(tmp_path.iterdir()) == []


def test_make_clean_keeps_what_was_paid_for(tmp_path: Path) -> None:
    for name in (".stm/llm.sqlite", ".stm/llm.sqlite-wal", ".stm/params.yaml.before", ".stm/merge/x", ".venv/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for _ in range(2):
        subprocess.run(["make", "-f", ROOT / "Makefile", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".stm/llm.sqlite", ".stm/llm.sqlite-wal", ".stm/params.yaml.before"]
    (tmp_path / "other").mkdir()
    subprocess.run(["make", "-f", ROOT / "Makefile", "clean"], cwd=tmp_path / "other", check=True, capture_output=True)
