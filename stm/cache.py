"""Looks whether the files in DVC's cache still hold the bytes that their names promise.

DVC trusts its cache: a file whose bytes have changed on the disk is checked out and taken for a result. Reads only.
"""

import hashlib
from pathlib import Path

from stm.errors import DataError
from stm.progress import Meter

MENDING = (
    "delete them there, then `dvc fetch && dvc checkout --force`; where no remote has them, `dvc commit --force` if "
    "the working tree is whole, else delete what they belong to and run `dvc repro`"
)


def cache_folder(root: Path) -> Path:
    """The folder of the project's cache, as DVC's settings of the project, the user and the system name it."""
    from dvc.config import Config, ConfigError  # here, since it takes as long as the rest of the command line

    if not (root / ".dvc").is_dir():
        raise DataError(f"{root.resolve()} has no .dvc folder; run in a clone of the project")
    try:
        return Path(Config(root / ".dvc")["cache"].get("dir") or root / ".dvc" / "cache")
    except ConfigError as error:
        raise DataError(f"DVC's settings cannot be read: {error}") from error


def damaged_files(cache: Path) -> tuple[list[Path], int]:
    """Sorted files of a cache whose MD5 is not the one that their path spells, and how many there are in all."""
    files = sorted(path for path in (cache / "files" / "md5").glob("??/*") if path.is_file())
    damaged = []
    with Meter("cache", len(files)) as meter:
        for path in files:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if found != path.parent.name + path.name.removesuffix(".dir"):
                damaged.append(path)
            meter.advance()
    return damaged, len(files)
