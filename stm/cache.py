"""Looks whether the files in DVC's cache still hold the bytes that their names promise.

DVC trusts its cache: a file whose bytes have changed on the disk is checked out and taken for a result. Reads only.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from dvc.config import Config, ConfigError

from stm.errors import DataError
from stm.progress import track

MENDING = (
    "delete them there, then `dvc fetch && dvc checkout --force`; where no remote has them, `dvc commit --force` if "
    "the working tree is whole, else delete what they belong to and run `dvc repro`"
)


def cache_folder(root: Path) -> Path:
    """The folder of the project's cache, as DVC's settings of the project, the user and the system name it."""
    if not (root / ".dvc").is_dir():
        raise DataError(f"{root.resolve()} has no .dvc folder; run in a clone of the project")
    try:
        return Path(Config(root / ".dvc")["cache"].get("dir") or root / ".dvc" / "cache")
    except ConfigError as error:
        raise DataError(f"DVC's settings cannot be read: {error}") from error


@dataclass(frozen=True)
class CacheState:
    """What a look at a cache found: how many files hold content, and which of them do not hold what their name says.

    `leftovers` are copies that were interrupted, under names of their own (dvc-objects 5, `tmp_fname`). Nothing ever
    refers to them, but they can be as large as a model.
    """

    count: int
    damaged: list[Path]
    leftovers: list[Path]


def examine_cache(cache: Path) -> CacheState:
    """Compare the MD5 of every file of a cache with the one that its path spells; all lists are sorted."""
    found = sorted(path for path in (cache / "files" / "md5").glob("??/*") if path.is_file())
    leftovers = [path for path in found if path.name.startswith(".") and path.suffix == ".tmp"]
    files = sorted(set(found) - set(leftovers))
    damaged = []
    for path in track(files, "cache", len(files)):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if digest != path.parent.name + path.name.removesuffix(".dir"):
            damaged.append(path)
    return CacheState(len(files), damaged, leftovers)
