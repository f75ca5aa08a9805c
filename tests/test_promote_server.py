"""The same promotion against a real MLflow server with an SQLite store and an artifact proxy."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from stm.errors import RegistryError
from stm.promote.history import read_history
from stm.promote.promotion import promote
from stm.promote.registry import QUIET, Registry
from stm.search import champion_folder
from tests.registry_project import ACTOR, copy_store, promote_params, write_project

FEW = {"base": ("base", 0.1), "nlu-ft": ("expert", 0.4), "all": ("all_data", 0.42), "merged": ("merged", 0.5)}
STARTS_WITHIN_SECONDS = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + STARTS_WITHIN_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"the MLflow server ended with code {server.wait(0.2)}")
    pytest.fail("the MLflow server did not start in time")


@contextlib.contextmanager
def server(tmp_path: Path, url: str) -> Iterator[None]:
    """A server on loopback whose artifacts go through its proxy."""
    copy_store(tmp_path)
    store, artifacts = f"sqlite:///{tmp_path}/mlruns/mlflow.db", str(tmp_path / "proxied")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    command += ["--workers", "1", "--backend-store-uri", store, "--artifacts-destination", artifacts]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"} | QUIET
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # a dozen processes that nothing here needs
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=environment)
    try:
        wait_until_healthy(url, process)
        yield
    finally:
        process.terminate()
        process.wait(30)


def test_what_could_not_be_published_while_the_server_was_down_is_published_and_loads_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_project(tmp_path / "project", levels=FEW)
    shutil.rmtree(root / "reports" / "train")
    shutil.rmtree(root / "mlruns")
    monkeypatch.chdir(root)
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(RegistryError, match="safe in models/ and reports/") as caught:
        promote(promote_params(root), ACTOR)
    assert "once MLflow answers, `stm promote` publishes them" in str(caught.value)
    assert {
        path: path.read_bytes() for path in root.rglob("*") if path.is_file() and ".stm" not in path.parts
    } == before
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with server(tmp_path, url):
        publish_and_load(root, url, tmp_path / "proxied", temporary)


def publish_and_load(root: Path, url: str, proxied: Path, temporary: Path) -> None:
    params = promote_params(root)
    outcome = promote(params, ACTOR)
    assert outcome.line() == f"version {outcome.version} is the champion: all required gates passed"
    assert promote(params, ACTOR).decision == "unchanged"

    registry = Registry.open(params.tracking_uri, params.registered_model)
    assert registry.uri == url
    assert [entry.version for entry in read_history(registry)] == [outcome.version]
    downloaded = champion_folder(registry.require("champion"), registry.name)
    assert (downloaded / "modules.json").exists()
    assert not list(temporary.iterdir()), "MLflow leaves what it downloads"
    loaded = mlflow.sentence_transformers.load_model("models:/stm-retriever@champion")
    original = SentenceTransformer("models/merged")
    assert float(np.abs(loaded.encode(["heart"]) - original.encode(["heart"])).max()) == 0
    assert not (root / "mlruns" / "artifacts").exists()
    assert list(proxied.rglob("model.safetensors"))
