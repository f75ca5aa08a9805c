"""Which commit of the hub a loaded data set is of, and where a local copy of one is cached.

Where the hub does not answer, `datasets` (5.2, `load.CachedDatasetModuleFactory`) takes whatever commit of a data set
it has cached last, whatever revision it was asked for, and says so in a log line alone.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import datasets
from datasets.naming import camelcase_to_snakecase

from stm.errors import DataError
from stm.params.base import COMMIT


def folder_cache(content: str) -> Path:
    """The cache for a folder whose bytes have that hash: by itself `datasets` takes a folder of the same name, and one
    that was written anew, for what it has cached.
    """
    return Path(datasets.config.HF_DATASETS_CACHE) / "folders" / content


def require_commit(path: str, revision: str, loaded: Iterable[datasets.Dataset]) -> None:
    """Raise `DataError` if one of the loaded tables comes from the cache of another commit than `revision`.

    A cached data set lies in a folder that is called by its commit. Local copies, data made in memory and revisions
    that are no commit pass.
    """
    _require(path, revision, (Path(file["filename"]).parent for table in loaded for file in table.cache_files))


def require_cached_commit(path: str, revision: str) -> None:
    """Raise `DataError` if, offline, the cache could have given another commit than `revision`.

    For data whose tables are gone by the time they can be looked at: the newest commit of every cached configuration
    must be the one asked for.
    """
    if datasets.config.HF_HUB_OFFLINE:
        owner, _, name = path.rpartition("/")
        root = Path(datasets.config.HF_DATASETS_CACHE) / f"{owner}___{camelcase_to_snakecase(name)}"
        newest = {folder.parts[-3]: folder for folder in sorted(root.glob("*/*/*/"), key=lambda it: it.stat().st_mtime)}
        _require(path, revision, newest.values())


def _require(path: str, revision: str, folders: Iterable[Path]) -> None:
    for folder in folders if re.fullmatch(COMMIT, revision) else ():
        if re.fullmatch(COMMIT, folder.name) and folder.name != revision:
            raise DataError(
                f"the hub did not answer, and its cache has {path} at {folder.name[:12]}, not at {revision[:12]} "
                "as asked for; run again with the hub in reach, or name a local copy"
            )
