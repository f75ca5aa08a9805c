"""The checks of `stm doctor`: each on a healthy and on a broken state."""

import http.server
import socketserver
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stm import doctor
from stm.doctor import Finding, examine


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
    monkeypatch.setattr(doctor, "DATA_PACKAGES", ("no-such-package",))
    monkeypatch.setattr(doctor, "MODEL_PACKAGE", "no-such-model")
    assert [finding.state for finding in doctor.check_data({})] == ["note", "note"]
    used = {"prepare": {"kind": "embedded"}, "backbone": {"package": "no-such-model"}}
    assert [finding.state for finding in doctor.check_data(used)] == ["missing", "missing"]
    monkeypatch.setattr(doctor, "PACKAGES", {"nothing": "no_such_module"})
    (finding,) = doctor.check_packages()
    assert finding.state == "missing"
    assert "make repro" in finding.next_step


def test_an_old_python_little_memory_and_a_full_disk(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MINIMUM_PYTHON", (99, 0))
    monkeypatch.setattr(doctor, "NEEDED_MEMORY", 10**18)
    monkeypatch.setattr(doctor, "NEEDED_DISK", 10**18)
    assert doctor.check_python().state == doctor.check_disk(project).state == "missing"
    assert doctor.check_memory().state == "note"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    assert doctor.check_writable(tmp_path / "none").state == "missing"


def test_endpoints_are_tried_and_never_shown_with_a_password(endpoint: str) -> None:
    params = {
        "synthesize": {"base_url": endpoint},
        "mine": {"base_url": ""},
        "prompts": {"llm": {"base_url": "http://me:pw@127.0.0.1:9"}},
    }
    findings = list(doctor.check_endpoints(params))
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
        (other,) = doctor.check_endpoints({"base_url": f"http://127.0.0.1:{server.server_address[1]}/v1"})
    (wrong,) = doctor.check_endpoints({"base_url": "http://127.0.0.1:abc/v1"})
    (secret,) = doctor.check_endpoints({"base_url": "http://me:secret@127.0.0.1/v1"})
    assert "secret" not in secret.found
    assert other.state == wrong.state == "missing"
    assert "SSH-2.0-none" in other.found
    assert "nonnumeric port: 'abc'" in wrong.found


@pytest.mark.parametrize("uri", [None, 5, ["sqlite:///x.db"], ""])
def test_a_tracking_uri_that_is_no_text_is_a_finding_and_no_crash(project: Path, uri: object) -> None:
    finding = doctor.check_registry(project, {"promote": {"tracking_uri": uri}})
    assert finding.state == "note"
    assert "tracking_uri" in finding.found
    assert "set promote.tracking_uri" in finding.next_step


def test_only_http_is_opened() -> None:
    (finding,) = doctor.check_endpoints({"base_url": "file:///etc/passwd"})
    assert finding.state == "missing"
    assert "not an http" in finding.found


def test_the_git_state(project: Path) -> None:
    assert next(iter(doctor.check_git(project))).state == "note"
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=project, check=True)
    (finding,) = doctor.check_git(project)
    assert finding.state == "ok"
    assert "0 changed files" in finding.found
    (project / "new.py").write_text("x", encoding="utf-8")
    (finding,) = doctor.check_git(project)
    assert finding.state == "note"
    assert "1 changed files" in finding.found
    (project / ".git" / "index").write_bytes(b"broken")
    (finding,) = doctor.check_git(project)
    assert (finding.state, finding.next_step) == ("note", "run it and mend what it says")


def test_the_registry_found_missing_damaged_and_out_of_reach(
    project: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"promote": {"tracking_uri": "sqlite:///mlflow.db?timeout=30"}}
    assert doctor.check_registry(project, params).state == "ok"
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("CREATE TABLE model_versions (version INTEGER)")
    assert "0 versions" in doctor.check_registry(project, params).found
    (project / "mlflow.db").write_bytes(b"no database, but long enough to look at" * 50)
    assert doctor.check_registry(project, params).state == "note"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", endpoint)
    assert doctor.check_registry(project, params).found.endswith("answers")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@127.0.0.1:9")
    finding = doctor.check_registry(project, params)
    assert finding.state == "note"
    assert "secret" not in finding.found
