"""DVC through a real S3-speaking server on loopback: pushed from one clone, pulled in another, nothing rebuilt."""

import contextlib
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing-id",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}
PIPELINE = """\
stages:
  make:
    cmd: python make.py
    deps: [make.py, seed.txt]
    outs: [models/merged]
  measure:
    cmd: python make.py measure
    deps: [make.py, models/merged]
    metrics:
      - metrics.json: {cache: false}
"""
# Every run of a stage leaves a line in a file outside of the pipeline's knowledge.
SCRIPT = """\
import os, pathlib, sys
with open(os.environ["RUNS"], "a") as runs:
    runs.write("run\\n")
if sys.argv[1:]:
    pathlib.Path("metrics.json").write_text('{"size": 1}')
else:
    folder = pathlib.Path("models/merged")
    folder.mkdir(parents=True)
    (folder / "weights").write_text(pathlib.Path("seed.txt").read_text())
"""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A moto server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as stream:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=stream, stderr=stream)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(url, server, log)
        urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT"), timeout=30).close()
        yield url
    finally:
        server.terminate()
        server.wait(30)


def wait_until_up(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(300):
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/moto-api/", timeout=5):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the S3 server ended with code {server.wait(0.2)}: {log.read_text()[-500:]}")
    pytest.fail("the S3 server did not start in time")


@pytest.fixture(scope="module")
def origin(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose results have been pushed, run cache included."""
    root = tmp_path_factory.mktemp("origin")
    run(root, "git", "init", "-q")
    dvc(root, "init", "-q")
    for name, value in (("core.analytics", "false"), ("core.check_update", "false")):
        dvc(root, "config", name, value)
    dvc(root, "remote", "add", "-d", "team", "s3://bucket/stm")
    dvc(root, "remote", "modify", "team", "endpointurl", endpoint)
    for name, text in (
        ("dvc.yaml", PIPELINE),
        ("make.py", SCRIPT),
        ("seed.txt", "one"),
        (".gitignore", "/models\n/runs\n"),
    ):
        (root / name).write_text(text, encoding="utf-8")
    dvc(root, "repro", "-q")
    dvc(root, "push", "--run-cache")
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", "results")
    return root


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **KEYS, "RUNS": str(root / "runs"), "GIT_CONFIG_COUNT": "0"}
    for side in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{side}_NAME": "A", f"GIT_{side}_EMAIL": "a@example.org"}
    return subprocess.run(command, cwd=root, env=environment, check=False, capture_output=True, text=True)


def dvc(root: Path, *arguments: str) -> str:
    done = run(root, sys.executable, "-m", "dvc", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def clone(origin: Path, target: Path) -> Path:
    run(target.parent, "git", "clone", "-q", str(origin), str(target))
    return target


def count_runs(root: Path) -> int:
    path = root / "runs"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


def test_another_clone_pulls_everything_and_rebuilds_nothing(origin: Path, tmp_path: Path) -> None:
    other = clone(origin, tmp_path / "other")
    assert not (other / "models").exists()
    dvc(other, "pull", "--run-cache")
    assert (other / "models" / "merged" / "weights").read_bytes() == b"one"
    assert "up to date" in dvc(other, "repro")
    assert "up to date" in dvc(other, "status")
    assert (count_runs(origin), count_runs(other)) == (2, 0)


def test_the_run_cache_spares_a_run_even_where_the_lock_file_is_lost(origin: Path, tmp_path: Path) -> None:
    other = clone(origin, tmp_path / "other")
    (other / "dvc.lock").unlink()
    dvc(other, "fetch", "--run-cache")
    dvc(other, "repro", "--pull", "make")
    assert (other / "models" / "merged" / "weights").read_bytes() == b"one"
    assert count_runs(other) == 0


def test_a_remote_that_is_gone_is_an_error_and_loses_nothing(origin: Path, tmp_path: Path) -> None:
    other = clone(origin, tmp_path / "other")
    dvc(other, "remote", "modify", "--local", "team", "endpointurl", "http://127.0.0.1:9")
    dvc(other, "config", "--local", "remote.team.read_timeout", "2")
    done = run(other, sys.executable, "-m", "dvc", "pull")
    assert done.returncode != 0
    assert not (other / "models" / "merged").exists()
    dvc(other, "repro")
    assert (other / "models" / "merged" / "weights").read_bytes() == b"one"
