"""What a finished adapter was trained on, kept in its folder, and the search for one that need not be trained again.

Two experts have the same inputs where prompt search keeps the seed instruction: a training is a function of base, rows
and params, so the second would end in the same bytes. Does not know how these are hashed or trained on.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm.deltas import WEIGHTS_FILE
from stm.files import read_json, sha256_file, write_json
from stm.model_hash import ADAPTER_CONFIG

RECORD = "training.json"


@dataclass(frozen=True)
class Finished:
    """A finished training: its adapter folder and the history of its steps."""

    folder: Path
    history: list[dict[str, float]]


def record_training(folder: Path, origin: Mapping[str, Any], history: list[dict[str, float]]) -> None:
    """Write beside the adapter what it comes from, its history and the hash of its weights."""
    record = {"origin": dict(origin), "history": history, "weights": sha256_file(folder / WEIGHTS_FILE)}
    write_json(folder / RECORD, record)


def find_same(out: Path, origin: Mapping[str, Any]) -> Finished | None:
    """Return what is at `out`, or the first of its siblings by name, that was trained from `origin` and still has the
    recorded weights.

    `out` itself is whole where what came after it, such as folding it into the backbone, was interrupted.
    """
    wanted = json.loads(json.dumps(dict(origin)))
    for path in sorted(out.parent.glob(f"*/{RECORD}"), key=lambda path: (path.parent != out, path)):
        record = read_json(path)
        folder = path.parent
        if folder.name.startswith(".") or record.get("origin") != wanted:
            continue
        if (folder / WEIGHTS_FILE).exists() and sha256_file(folder / WEIGHTS_FILE) == record["weights"]:
            return Finished(folder, record["history"])
    return None


def copy_adapter(source: Path, target: Path) -> None:
    """Copy the adapter and its record, without prompts, into an existing folder."""
    for name in (RECORD, WEIGHTS_FILE, ADAPTER_CONFIG):
        shutil.copyfile(source / name, target / name)
