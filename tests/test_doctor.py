"""The checks of `stm doctor`: each on a healthy and on a broken state."""

import hashlib
import http.server
import os
import socketserver
import sqlite3
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stm.cli import app
from stm.doctor import machine, services
from stm.doctor import project as project_checks
from stm.doctor.examine import examine
from stm.doctor.findings import Finding
from tests.closure import ROOT


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text("promote: {tracking_uri: 'sqlite:///mlruns/mlflow.db'}\n", encoding="utf-8")
    (tmp_path / ".dvc").mkdir()
    return tmp_path


@pytest.fixture
def endpoint() -> Iterator[str]:
    """A server on loopback that answers every request with 404, as an LLM endpoint without a key may."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_a_healthy_project_lacks_nothing_essential(project: Path) -> None:
    findings = by_name(examine(project))
    assert findings["python"].state == "ok"
    assert findings["torch"].found
    assert findings["write access"].state == findings["params.yaml"].state == "ok"
    assert findings["dvc project"].found == "nothing run yet"
    assert findings["dvc project"].next_step == "`make repro`"
    assert "made by the first run" in findings["registry"].found
    assert not any(finding.next_step for finding in findings.values() if finding.state == "ok")
    assert all(finding.next_step for finding in findings.values() if finding.state == "missing")


def test_a_compiler_is_looked_for_where_a_section_compiles(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "C++ compiler" not in by_name(examine(project))
    (project / "params.yaml").write_text("train: {compile: true}\nwarm_up: {compile: false}\n", encoding="utf-8")
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = by_name(examine(project))["C++ compiler"]
    assert (found.state, found.found) == ("missing", "no no-such-compiler")
    assert found.next_step.endswith("or set `compile: false` in train")
    monkeypatch.setenv("CXX", "sh")  # whatever is there
    assert by_name(examine(project))["C++ compiler"].state == "ok"


def test_an_empty_folder_says_where_to_go(tmp_path: Path) -> None:
    findings = by_name(examine(tmp_path))
    assert findings["params.yaml"].state == "missing"
    assert "project's root" in findings["params.yaml"].next_step
    assert findings["dvc project"].state == "missing"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n- b\n", "holds no sections"), ("a: [", "not valid YAML"), ("\x00", "not valid YAML"),
        ("day: 2024-13-01", "not valid YAML"), ("a: 1\na: 2\n", "the name 'a' stands twice"),
    ],
)  # fmt: skip
def test_broken_params_are_a_finding_and_no_crash(project: Path, content: str, said: str) -> None:
    (project / "params.yaml").write_text(content, encoding="utf-8")
    findings = by_name(examine(project))
    assert said in findings["params.yaml"].found
    assert findings["params.yaml"].state == "missing"
    assert "registry" not in findings, "which the params name"


def test_missing_packages_are_essential_where_params_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DATA_PACKAGES", ("no-such-package",))
    monkeypatch.setattr(machine, "MODEL_PACKAGE", "no-such-model")
    assert [finding.state for finding in machine.check_data({})] == ["note", "note"]
    used = {"prepare": {"kind": "embedded"}, "backbone": {"package": "no-such-model"}}
    assert [finding.state for finding in machine.check_data(used)] == ["missing", "missing"]
    named_alike = {"prepare": {"path": "my/embedded.jsonl"}, "synthesize": {"base_url": ""}, "synthesize_splits": []}
    assert [finding.state for finding in machine.check_data(named_alike)] == ["note", "note"]
    asked = {"synthesize": {"base_url": ""}, "synthesize_splits": ["qa"]}  # the LLM inside the package
    assert [finding.state for finding in machine.check_data(asked)] == ["note", "missing"]
    monkeypatch.setattr(machine, "_requirements", lambda: {"no-such-package"})
    (finding,) = machine.check_packages()
    assert finding.state == "missing"
    assert "make repro" in finding.next_step


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PYTHONS", ((99, 0), (99, 9)))
    assert machine.check_python().state == "missing"


def test_a_python_that_pinned_packages_have_no_wheels_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 9, "final", 0))
    assert machine.check_python().state == "ok"
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    assert machine.check_python().state == "missing"


def test_make_pip_and_doctor_ask_for_the_same_pythons() -> None:
    oldest, newest = machine.PYTHONS
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert asked == f">={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    assert f"{oldest} <= sys.version_info[:2] <= {newest})" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    assert machine.check_writable(tmp_path / "none").state == "missing"


def test_endpoints_are_tried_and_never_shown_with_a_password(endpoint: str) -> None:
    params = {
        "synthesize": {"base_url": endpoint},
        "mine": {"base_url": ""},
        "prompts": {"llm": {"base_url": "http://me:pw@127.0.0.1:9"}},
    }
    findings = list(services.check_endpoints(params))
    assert [(finding.name, finding.state) for finding in findings] == [
        ("prompts.llm.base_url", "missing"), ("synthesize.base_url", "ok"),
    ]  # fmt: skip
    assert "pw" not in findings[0].found
    assert "127.0.0.1:9" in findings[0].found


class NoHTTP(socketserver.StreamRequestHandler):
    """Answers as an ssh server does."""

    def handle(self) -> None:
        self.wfile.write(b"SSH-2.0-none\r\n")


def test_what_speaks_no_http_or_has_no_port_is_a_finding_and_no_crash() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), NoHTTP) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        (other,) = services.check_endpoints({"base_url": f"http://127.0.0.1:{server.server_address[1]}/v1"})
    (wrong,) = services.check_endpoints({"base_url": "http://127.0.0.1:abc/v1"})
    (secret,) = services.check_endpoints({"base_url": "http://me:secret@127.0.0.1/v1"})
    assert "secret" not in secret.found
    assert other.state == wrong.state == "missing"
    assert "SSH-2.0-none" in other.found
    assert "nonnumeric port: 'abc'" in wrong.found


@pytest.mark.parametrize("uri", [None, 5, ["sqlite:///x.db"], ""])
def test_a_tracking_uri_that_is_no_text_is_a_finding_and_no_crash(project: Path, uri: object) -> None:
    finding = services.check_registry(project, {"promote": {"tracking_uri": uri}})
    assert finding.state == "note"
    assert "tracking_uri" in finding.found
    assert "set promote.tracking_uri" in finding.next_step


def test_only_http_is_opened() -> None:
    (finding,) = services.check_endpoints({"base_url": "file:///etc/passwd"})
    assert finding.state == "missing"
    assert "not an http" in finding.found


def test_without_a_repository_dvc_runs_only_where_its_config_says_so(project: Path) -> None:
    (finding,) = project_checks.check_git(project)
    assert finding.state == "missing"
    assert "dvc config core.no_scm true" in finding.next_step
    (project / ".dvc" / "config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    (finding,) = project_checks.check_git(project)
    assert finding.state == "note"
    (project / ".dvc" / "config").write_text("[core\n", encoding="utf-8")
    (finding,) = project_checks.check_git(project)
    assert (finding.state, finding.next_step) == ("missing", "mend .dvc/config")


def test_a_repository_of_another_owner_is_shown_with_gits_own_words(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    (finding,) = project_checks.check_git(project)
    assert (finding.state, finding.found) == ("note", "no commit")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    (finding,) = project_checks.check_git(project)
    assert finding.state == "note"
    assert "detected dubious ownership" in finding.found
    assert "git config --global --add safe.directory" in finding.found


def test_the_git_state(project: Path) -> None:
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=project, check=True)
    (project / "reports").mkdir()
    (project / "reports" / "metrics.json").write_text("{}", encoding="utf-8")  # the pipeline's own, as for the gate
    (finding,) = project_checks.check_git(project)
    assert (finding.state, finding.next_step) == ("ok", "")
    assert finding.found.endswith(", all committed (dvc.lock, reports, data/files aside)")
    (project / "new.py").write_text("x", encoding="utf-8")
    (project / os.fsdecode(b"not utf-8: \xff.py")).write_text("x", encoding="utf-8")
    (finding,) = project_checks.check_git(project)
    assert finding.state == "note"
    assert finding.found.endswith(", not committed: new.py, not utf-8: \ufffd.py")
    (project / ".git" / "index").write_bytes(b"broken")
    (finding,) = project_checks.check_git(project)
    assert finding.state == "note"
    assert "index file" in finding.found


@pytest.mark.parametrize(
    ("lock", "state", "found", "step"),
    [
        ("schema: '2.0'\n", "note", "nothing run yet", "make repro"),
        ("stages:\n  a: {outs: [{path: params.yaml}, {path: models/a}]}\n  b: {cmd: x}\n", "note",
         "1 of 2 results in dvc.lock are not here, models/a for example", "dvc pull"),
        ("stages:\n  a: {outs: [{path: params.yaml}]}\n", "ok", "has results", ""),
        ("schema: '2.0'\nstages:\n  a: {cmd: x, outs: [{path: params.yaml}]}\n"
         "  gone@x: {cmd: x, outs: [{path: models/x}]}\n", "ok", "has results", ""),
        ("stages: [", "missing", "dvc.lock cannot be read", "git checkout dvc.lock"),
        ("stages: {a: {outs: [{}]}}", "missing", "dvc.lock cannot be read", "git checkout dvc.lock"),
    ],
)  # fmt: skip
def test_results_that_the_lock_file_names_are_looked_for(
    project: Path, lock: str, state: str, found: str, step: str
) -> None:
    (project / ".dvc" / "config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    (project / "dvc.yaml").write_text("stages: {a: {cmd: x}, b: {cmd: x}}", encoding="utf-8")
    (project / "dvc.lock").write_text(lock, encoding="utf-8")
    (finding,) = project_checks.check_dvc(project)
    assert finding.state == state
    assert found in finding.found
    assert step in finding.next_step


def test_the_python_of_stages_is_the_one_that_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert machine.check_path().state == "ok"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (machine.check_path().state, machine.check_path().found) == ("missing", "no `python` on PATH")
    shim = tmp_path / "python"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    assert machine.check_path().state == "ok"
    shim.write_text("#!/bin/sh\necho /elsewhere\n", encoding="utf-8")
    finding = machine.check_path()
    assert finding.state == "missing"
    assert f"{shim} (/elsewhere), not that of " in finding.found
    assert "activate" in finding.next_step


def test_every_library_of_the_project_is_looked_for() -> None:
    names = {finding.name for finding in machine.check_packages()}
    assert {"bm25s", "psutil", "jinja2", "xllamacpp", "ruamel.yaml.clib", "openai", "torch"} <= names
    assert "pytest" not in names


def test_a_library_that_the_doctor_uses_itself_may_be_missing(project: Path) -> None:
    lines = "import sys; from pathlib import Path; sys.modules.update(psutil=None, yaml=None)"
    script = f"{lines}; from stm.doctor.examine import examine; print(*examine(Path('.')), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=project, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "params.yaml" in done.stdout


def test_the_registry_is_not_looked_for_without_its_libraries(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stm.promote.registry", None)
    finding = services.check_registry(project, {})
    assert finding.state == "note"
    assert "not looked for" in finding.found


@pytest.mark.parametrize(
    ("params", "state"),
    [
        ({"search_prompts": {"endpoint": {}}, "search_prompts_splits": []}, "note"),
        ({"search_prompts": {"endpoint": {}}, "search_prompts_splits": ["qa"]}, "missing"),
        ({"mine": {"judge": {"llm": False, "endpoint": {}}}, "splits": ["qa"]}, "note"),
        ({"mine": {"judge": {"llm": True, "endpoint": {}}}, "splits": ["qa"]}, "missing"),
    ],
)
def test_an_endpoint_is_essential_where_a_stage_asks_it(params: dict[str, Any], state: str) -> None:
    (section,) = (row for row in params.values() if isinstance(row, dict))
    section.get("judge", section)["endpoint"]["base_url"] = "http://127.0.0.1:9/v1"
    (finding,) = services.check_endpoints(params)
    assert finding.state == state
    assert ("no stage asks it" in finding.found) is (state == "note")


def test_keys_of_ones_own_do_not_stop_the_doctor() -> None:
    params: dict[Any, Any] = {2026: {"base_url": "http://127.0.0.1:9/v1"}, "my.notes": {"base_url": "http://[::1]:9"}}
    assert {finding.name for finding in services.check_endpoints(params)} == {"2026.base_url", "my.notes.base_url"}


def test_the_cache_is_the_one_that_dvc_uses_and_its_files_are_counted(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    users = tmp_path_factory.mktemp("users")
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(users))
    run = partial(CliRunner().invoke, app, ["doctor", "--cache"])
    result = run()
    assert result.exit_code == 0
    assert "note: .dvc/cache holds no files" in " ".join(result.output.split())
    (users / "config").write_text(f"[cache]\n    dir = {users / 'kept'}\n", encoding="utf-8")
    digest = hashlib.md5(b"whole").hexdigest()
    path = users / "kept" / "files" / "md5" / digest[:2] / digest[2:]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"whole")
    assert "1 files in" in run().output
    path.write_bytes(b"whol3")
    result = run()
    assert result.exit_code == 1
    assert path.name in result.output
    (users / "config").write_text("[cache\n", encoding="utf-8")
    assert "DVC's settings cannot be read" in run().output


def test_the_registry_found_missing_damaged_and_out_of_reach(
    project: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"promote": {"tracking_uri": "sqlite:///mlflow.db?timeout=30"}}
    assert services.check_registry(project, params).state == "ok"
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("CREATE TABLE model_versions (version INTEGER)")
        database.execute("CREATE TABLE experiments (name TEXT, artifact_location TEXT)")
    assert "0 versions" in services.check_registry(project, params).found
    (project / "mlflow.db").write_bytes(b"no database, but long enough to look at" * 50)
    assert services.check_registry(project, params).state == "note"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", endpoint)
    assert services.check_registry(project, params).found.endswith("answers")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:9")
    finding = services.check_registry(project, params)
    assert finding.state == "note"
    assert "secret" not in finding.found


def test_a_registry_whose_files_are_elsewhere_is_found(project: Path) -> None:
    (project / "mlruns").mkdir()
    location = (project / "mlruns" / "artifacts").as_uri()
    with sqlite3.connect(project / "mlruns" / "mlflow.db") as database:
        database.execute("CREATE TABLE model_versions (version INTEGER)")
        database.execute("CREATE TABLE experiments (name TEXT, artifact_location TEXT)")
        database.execute("INSERT INTO experiments VALUES ('stm', ?)", [location])
    section = {"tracking_uri": "sqlite:///mlruns/mlflow.db", "experiment": "stm", "artifact_folder": "mlruns/artifacts"}
    assert services.check_registry(project, {"promote": section}).state == "ok"
    moved = project.rename(project.with_name("moved"))
    finding = services.check_registry(moved, {"promote": section})
    assert finding.state == "missing"
    assert f"keeps its files in {project}/mlruns/artifacts, and not in {moved}/mlruns/artifacts" in finding.found
    assert "delete mlruns/ in it and run `stm promote`" in finding.next_step
    del section["artifact_folder"]
    assert services.check_registry(moved, {"promote": section}).state == "ok"


def test_conflicts_that_a_merge_left_in_the_lock_are_named(project: Path) -> None:
    (project / "dvc.lock").write_text(
        "<<<<<<< HEAD\nstages: {}\n=======\nstages: {a: {}\n>>>>>>> b\n", encoding="utf-8"
    )
    (finding,) = [found for found in project_checks.check_dvc(project) if found.state == "missing"]
    assert "git checkout --theirs dvc.lock reports data/files" in finding.next_step
