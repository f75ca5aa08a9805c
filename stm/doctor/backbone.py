"""How large the backbone is that the params name, as far as that can be known where nothing is loaded or fetched.

Params in, a number of parameters out. Of weights that lie here, only the headers are read.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from stm.errors import DataError, ParamsError
from stm.files import read_json
from stm.params.backbone import BackboneParams, FolderSource, HubSource, PackageSource
from stm.params.base import parse_section

INDEX = "model.safetensors.index.json"  # names the files of weights that come in several
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
HEAD = "lm_head."  # predicts tokens; the backbone is made without it


def measure_backbone(root: Path, params: Mapping[str, Any]) -> tuple[int, int | None]:
    """The bytes of a parameter as saved, and the number of parameters of a backbone from a folder or the hub.

    The number is None if the folder, or the hub's local cache, lacks any of it. It is 0 for a backbone out of a
    package, and where the section is wrong, which is for `dvc repro check` to say.
    """
    try:
        backbone = parse_section(params.get("backbone"), BackboneParams, "backbone")
    except ParamsError:
        return 0, 0
    saved = 2 if backbone.dtype == "bfloat16" else 4
    if isinstance(backbone.source, PackageSource):
        return saved, 0
    try:
        folder = find_source(root, backbone.source)
        return saved, sum(_count(path, backbone.layers) for path in _weights(folder))
    except (OSError, ValueError, KeyError, AttributeError, DataError, SafetensorError):
        return saved, None


def find_source(root: Path, source: FolderSource | HubSource) -> Path:
    """The folder of a source; `OSError` if the hub's local cache has none, `ValueError` for an impossible id."""
    if isinstance(source, FolderSource):
        return root / source.path
    config = try_to_load_from_cache(source.id, "config.json", revision=source.revision)
    if not isinstance(config, str):
        raise FileNotFoundError(source.id)
    return Path(config).parent


def _weights(folder: Path) -> list[Path]:
    if not (folder / INDEX).exists():
        return [folder / "model.safetensors"]
    return [folder / name for name in sorted(set(read_json(folder / INDEX)["weight_map"].values()))]


def _count(path: Path, layers: int) -> int:
    """The parameters of a file that the first `layers` layers (0: all) and what is around them have."""
    count = 0
    with safe_open(path, framework="np") as weights:
        for name in weights.keys():  # noqa: SIM118  # it is no mapping
            layer = LAYER.search(name)
            if not name.startswith(HEAD) and not (layers and layer and int(layer[1]) >= layers):
                count += math.prod(weights.get_slice(name).get_shape())
    return count
