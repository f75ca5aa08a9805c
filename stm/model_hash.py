"""The hash by which a model folder is known, and what makes a folder that of an adapter.

Does not load any model.
"""

from collections.abc import Callable
from pathlib import Path

from stm.files import read_json, sha256_text, sha256_tree

ADAPTER_CONFIG = "adapter_config.json"  # PEFT's name; a folder without it holds a whole model


def adapter_base(folder: Path) -> Path | None:
    """The folder that an adapter's folder names as its base, as it is written there; None for any other folder."""
    if not (folder / ADAPTER_CONFIG).exists():
        return None
    return Path(str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path", "")))


def hash_model(folder: Path, root: Path = Path(), hash_tree: Callable[[Path], str] = sha256_tree) -> str:
    """The hash of a model folder; for an adapter that of the adapter and of its base, whose path is from `root`.

    A base that is no folder, such as one of the hub, counts as nothing.
    """
    base = adapter_base(folder)
    if base is None:
        return hash_tree(folder)
    return sha256_text(hash_tree(folder), hash_tree(root / base) if (root / base).is_dir() else "")
