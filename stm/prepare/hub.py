"""Reads pairs from a data set of the Hugging Face hub at a pinned revision, or from a local copy of its layout.

An id or a path goes in, a frame of CANDIDATES comes out. Runs no code of the data set.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import polars as pl

from stm.errors import DataError, brief
from stm.files import sha256_tree
from stm.hub_data import folder_cache, require_commit
from stm.prepare.files import read_table, require_columns, select_columns


def _load(path: str, config: str, split: str, revision: str, columns: list[str]) -> Any:
    """One split. Of csv files it has the named columns alone, with words like NA, which `datasets` takes for nulls
    unless it is told not to.

    Only its reader of csv files can be told. Without the hub it gives what it has cached, which must have been so read.
    """
    datasets.disable_progress_bars()
    own = {"cache_dir": str(folder_cache(sha256_tree(path)))} if Path(path).exists() else {"revision": revision}
    options = {"split": split, **own}
    # Of the other columns one of numbers would break the reading in the middle of a file, where its first NA is.
    texts = {"usecols": columns, "keep_default_na": False, "na_values": [""]}
    try:
        return datasets.load_dataset(path, config or None, **options, **texts)
    except ValueError:
        loaded = datasets.load_dataset(path, config or None, **options)
    if loaded.info.builder_name == "csv":
        raise DataError("the hub did not answer, and what is cached of its csv files lacks words like NA")
    return loaded


def read_hub(
    path: str, names: Mapping[str, str], *, config: str = "", split: str = "train", revision: str = ""
) -> pl.DataFrame:
    """Pairs of one split of a data set; `names` maps anchor, positive, .. to its columns.

    A hub id without a revision, a data set that cannot be loaded and a missing column are `DataError`s.
    """
    frame = read_hub_columns(path, names.values(), config=config, split=split, revision=revision)
    return select_columns(frame, names, describe(path, split))


def describe(path: str, split: str) -> str:
    """The data set as error messages name it."""
    return f"the split {split!r} of the data set {path}"


def read_hub_columns(path: str, columns: Iterable[str], *, config: str, split: str, revision: str) -> pl.DataFrame:
    """The named columns of one split of a data set, all rows in order; raises like `read_hub`."""
    if not Path(path).exists() and not revision:
        raise DataError(
            f"the hub data set {path!r} has no `revision`; pin one (a commit of the data set), or give a local path"
        )
    where, wanted = describe(path, split), sorted(set(columns))
    if Path(path).is_file():
        table = read_table(path)
        require_columns(wanted, table.columns, path)
        return table.select(wanted)
    try:
        dataset = _load(path, config, split, revision, wanted)
    except Exception as error:  # of many unrelated kinds, for a missing data set, split or network
        cause = f" ({brief(error.__cause__)})" if isinstance(error.__cause__, Exception) else ""
        raise DataError(
            f"cannot load {where}: {brief(error)}{cause}; check path, config, columns, split, revision and the network"
        ) from error
    require_columns(wanted, dataset.column_names, where)
    if not Path(path).exists():
        require_commit(path, revision, [dataset])
    frame: pl.DataFrame = dataset.select_columns(wanted).to_polars()
    return frame
