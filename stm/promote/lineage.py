"""Where a model came from: git revision, pipeline lock, data and backbone hashes, merge recipe, library versions.

Reads the project's folder and git; returns plain values for tags. Knows nothing of MLflow, and of DVC no more than its
lock file.
"""

import json
import os
import platform
import re
import subprocess
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from stm.errors import DataError, RegistryError
from stm.files import sha256_text

# Whose versions shape a result.
LIBRARIES = (
    "dvc", "mergekit", "mlflow", "mteb", "numpy", "optuna", "peft", "polars", "sentence-transformers", "tokenizers",
    "torch", "transformers",
)  # fmt: skip
# Written by the pipeline itself while it runs, so a change there is no change of code or params.
OUTPUTS = ("dvc.lock", "reports", "data/files")
SECRET_NAME = re.compile(r"(^|_)(API)?(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)", re.IGNORECASE)
SHORTEST_SECRET = 8
NAMED_FILES = 3


@dataclass(frozen=True)
class Lineage:
    """An empty string, or None, stands for what could not be known, such as the revision outside of git."""

    revision: str
    changed_files: tuple[str, ...] | None
    lock: str
    data: str
    backbone: str
    libraries: Mapping[str, str]
    stages: Mapping[str, Any]  # of dvc.lock, without promote

    def tags(self) -> dict[str, str]:
        """The lineage as MLflow tags."""
        return {
            "git.revision": self.revision or "unknown",
            "git.dirty": "unknown" if self.changed_files is None else str(bool(self.changed_files)).lower(),
            "git.changed_files": json.dumps((self.changed_files or ())[:50], ensure_ascii=False),
            "dvc.lock": self.lock or "unknown",
            "data": self.data or "unknown",
            "backbone": self.backbone or "unknown",
            "libraries": json.dumps(dict(self.libraries), sort_keys=True),
        }

    def is_outdated(self, stage: str, dep: str) -> bool:
        """Whether `dep` was made anew, by dvc.lock, since the stage read it; False where that does not name both."""
        read, made = _hashes(self.stages.get(stage, {}), "deps").get(dep), _outs(self.stages).get(dep)
        return None not in (read, made) and read != made


def lock_remedy(path: Path) -> str:
    """What to do about a dvc.lock that cannot be read."""
    if path.is_file() and "<<<<<<< " in path.read_text(encoding="utf-8", errors="replace"):
        return (
            "a merge left its conflicts in it: resolve those of params.yaml, then `git checkout --theirs dvc.lock "
            "reports data/files && dvc pull && dvc repro`, and commit"
        )
    return f"restore it with `git checkout {path.name}`"


def read_lineage(root: Path) -> Lineage:
    """Collect the lineage of the project in `root` as it stands."""
    path = root / "dvc.lock"
    try:
        stages = _locked_stages(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise DataError(f"{path} is not a DVC lock file; {lock_remedy(path)}") from error
    outs = _outs(stages)
    data = sorted(f"{path}:{digest}" for path, digest in outs.items() if path.startswith("data/"))
    return Lineage(
        revision=run_git(root, "rev-parse", "--verify", "HEAD").strip(),
        changed_files=changed_files(root),
        lock=_hash_stages(stages),
        data=sha256_text(*data) if data else "",
        backbone=outs.get("models/backbone", ""),
        libraries={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        stages=stages,
    )


def _locked_stages(text: str) -> dict[str, Any]:
    """The stages of a dvc.lock without promote, whose entry changes by running it."""
    lock = yaml.safe_load(text) or {}
    return {name: stage for name, stage in lock.get("stages", {}).items() if name != "promote"}


def _outs(stages: Mapping[str, Any]) -> dict[str, str]:
    return {path: digest for stage in stages.values() for path, digest in _hashes(stage, "outs").items()}


def _hashes(stage: Mapping[str, Any], kind: str) -> dict[str, str]:
    return {str(item.get("path")): str(item.get("md5")) for item in stage.get(kind, [])}


def locked_outs(text: str, stages: Container[str]) -> dict[str, str]:
    """The MD5 of every output of these stages that a dvc.lock's text names, by path; DVC leaves the entries of rows
    there that params.yaml has no more.
    """
    return _outs({name: stage for name, stage in _locked_stages(text).items() if name in stages})


def _hash_stages(stages: dict[str, Any]) -> str:
    return sha256_text(json.dumps(stages, sort_keys=True)) if stages else ""


def hash_lock(text: str) -> str:
    """The hash of a dvc.lock's text as lineage records it; empty for what is no lock file."""
    try:
        return _hash_stages(_locked_stages(text))
    except (yaml.YAMLError, AttributeError):
        return ""


def try_git(root: Path, *arguments: str) -> str | None:
    """The command's output; None where it failed, or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, timeout=60, check=False,
            encoding="utf-8", errors="replace",  # the name of a file may be of any bytes
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def run_git(root: Path, *arguments: str) -> str:
    """The command's output; empty where there is no git, no repository or no commit."""
    return try_git(root, *arguments) or ""


def changed_files(root: Path) -> tuple[str, ...] | None:
    """The files below `root` that git has not committed as they are, the pipeline's own `OUTPUTS` aside, as paths from
    the repository's top; None where git does not say.
    """
    excluded = [f":(exclude){name}" for name in OUTPUTS]
    listing = try_git(root, "status", "--porcelain=v1", "-z", "--no-renames", "--", ".", *excluded)
    return None if listing is None else tuple(sorted(entry[3:] for entry in listing.split("\0") if entry))


def name_files(files: Sequence[str]) -> str:
    """The first few names, and how many more there are, on one line."""
    named = ", ".join(name if name.isprintable() else repr(name) for name in files[:NAMED_FILES])
    return f"{named} and {len(files) - NAMED_FILES} more" if len(files) > NAMED_FILES else named


def refuse_secrets(files: list[Path]) -> None:
    """Raise `RegistryError` if a text file holds the value of an environment variable that is named like a secret."""
    secrets = {
        name: value.encode()
        for name, value in os.environ.items()
        if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET and not os.path.exists(value)
    }
    for path in files if secrets else []:
        content = path.read_bytes()
        found = sorted(name for name, value in secrets.items() if value in content)
        if found:
            raise RegistryError(
                f"{path} holds the value of the environment variable {found[0]}; nothing was published. "
                "Take it out of params and reports, and consider the key as known to others"
            )
