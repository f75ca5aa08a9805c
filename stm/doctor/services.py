"""The checks of `stm doctor` on what the project talks to: LLM endpoints and the model registry.

Each gives findings and never raises; nothing is sent but a request without a key.
"""

import http.client
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stm.doctor.findings import INSTALL, Finding
from stm.errors import redact

WAIT_SECONDS = 3.0
LOCAL_REGISTRY = "sqlite:///mlruns/mlflow.db"


def check_endpoints(params: Mapping[str, Any]) -> Iterator[Finding]:
    """Every LLM endpoint that the params name answers; any HTTP answer counts, since keys are not sent."""
    step = "start the server, mend the URL, or empty it to use the embedded model"
    for key, url in sorted(_base_urls(params, "")):
        if not url:
            continue
        problem, shown = _unreachable(url.rstrip("/") + "/models"), redact(url)
        if not problem:
            yield Finding(key, "ok", f"{shown} answers")
        elif _asks(key, params):
            yield Finding(key, "missing", f"{shown}: {problem}", step)
        else:
            yield Finding(key, "note", f"{shown}: {problem}; no stage asks it so far", step)


def asks_embedded_llm(params: Mapping[str, Any]) -> bool:
    """Whether a stage asks the LLM inside a package, which an empty URL stands for."""
    return any(not url and _asks(key, params) for key, url in _base_urls(params, ""))


def _asks(key: str, params: Mapping[str, Any]) -> bool:
    """Whether a stage asks the endpoint: that of a judge where it is turned on, that of a stage where it has splits."""
    section = key.split(".")[0]
    values = params.get(section)
    judge = values.get("judge") if isinstance(values, dict) else None
    if section == "mine" and isinstance(judge, dict):
        return judge.get("llm") is True
    return bool(params.get(f"{section}_splits", True))


def _base_urls(value: Any, path: str) -> Iterator[tuple[str, str]]:
    for key, item in value.items() if isinstance(value, dict) else ():
        where = f"{path}.{key}" if path else str(key)
        if key == "base_url" and isinstance(item, str):
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
    try:
        from stm.promote.registry import local_database, resolve_uri  # here, for it needs libraries
    except ImportError as error:
        return Finding("registry", "note", f"not looked for: {error}", INSTALL)
    section = params.get("promote")
    section = section if isinstance(section, dict) else {}
    given = section.get("tracking_uri")
    uri = resolve_uri(given or "")
    if not isinstance(uri, str) or not uri:
        found = f"promote.tracking_uri is {given!r}, no text" if given else "no tracking_uri in params.yaml"
        return Finding("registry", "note", found, f"set promote.tracking_uri, for example to {LOCAL_REGISTRY}")
    if (database := local_database(uri)) is not None:
        path = root / database
        if path.exists():
            return _check_database(path, root, section)
        return Finding("registry", "ok", f"{uri} (made by the first run, or by `stm promote`)")
    if uri.startswith(("http://", "https://")):
        problem, shown = _unreachable(uri.rstrip("/") + "/health"), redact(uri)
        if not problem:
            return Finding("registry", "ok", f"{shown} answers")
        step = "start the MLflow server or mend MLFLOW_TRACKING_URI; until then the results stay in files"
        return Finding("registry", "note", f"{shown}: {problem}", step)
    return Finding("registry", "ok", redact(uri))


def _check_database(path: Path, root: Path, section: Mapping[str, Any]) -> Finding:
    from stm.promote.publish import MISPLACED, misplaced
    from stm.root import project_root

    folder, name = section.get("artifact_folder"), str(section.get("experiment"))
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            count = database.execute("SELECT count(*) FROM model_versions").fetchone()[0]
            found = database.execute("SELECT artifact_location FROM experiments WHERE name = ?", [name]).fetchone()
    except sqlite3.Error as error:
        return Finding("registry", "note", f"{path}: {error}", "move the file away; `stm promote` publishes anew")
    if found and isinstance(folder, str) and (reason := misplaced(str(found[0]), project_root(root) / folder, path)):
        return Finding("registry", "missing", f"{path}: {reason}", MISPLACED)
    return Finding("registry", "ok", f"{path}, {count} versions")
