"""safetensors files as streams: headers read without loading weights, tensors rewritten one at a time.

Used to look at a base's shapes and to write a merged model whose peak memory is one tensor. Does not know what the
tensors mean.
"""

import json
import struct
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from stm.errors import ModelError
from stm.files import read_json

BLOCK = 1 << 22  # bytes copied at once
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HEADER_LIMIT = 100_000_000  # bytes; the limit of the format's reference implementation


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its raw header, and the shape of each tensor in the order of the data."""

    path: Path
    header: bytes
    shapes: dict[str, tuple[int, ...]]


def read_shard(path: Path) -> Shard:
    """Read the header of a safetensors file; `ModelError` if it is missing or broken."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > HEADER_LIMIT:
                raise ValueError("its header is too long")
            header = stream.read(length)
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        order = sorted(entries, key=lambda name: int(entries[name]["data_offsets"][0]))
        size = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        if path.stat().st_size != 8 + length + size:
            raise ValueError("its size does not fit its header")
        return Shard(path, header, {name: tuple(entries[name]["shape"]) for name in order})
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing; make the base model again with `dvc repro`") from error
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{path} is not a whole safetensors file ({error}); make the base model again") from error


def find_shards(folder: Path) -> list[Shard]:
    """All weight files of a model folder in name order, those that an index names included.

    `ModelError` names a missing shard, and refuses a folder without safetensors or with a broken index.
    """
    paths = set(folder.rglob("*.safetensors"))
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        try:
            paths |= {index.parent / name for name in read_json(index)["weight_map"].values()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} names no weights (weight_map); make the base model again") from error
    if not paths:
        raise ModelError(f"{folder} holds no safetensors weights; only those are read")
    return [read_shard(path) for path in sorted(paths)]


def rewrite_shard(shard: Shard, path: Path, change: Callable[[str, Tensor], Tensor], changed: Container[str]) -> None:
    """Write the shard to `path` with `change(name, tensor)` in place of the tensors in `changed`.

    Names, shapes, types, metadata and order stay. Files are read and written piece by piece, never mapped, so that
    the peak memory is one tensor.
    """
    entries = json.loads(shard.header)
    with shard.path.open("rb") as source, path.open("wb") as target:
        target.write(source.read(8 + len(shard.header)))
        for name, shape in shard.shapes.items():
            start, end = entries[name]["data_offsets"]
            if name not in changed:
                _copy(source, target, end - start)
                continue
            kind = entries[name]["dtype"]
            if kind not in DTYPES:
                raise ModelError(
                    f"{shard.path}: {name!r} has the type {kind}; deltas are added to {', '.join(DTYPES)} only"
                )
            tensor = torch.frombuffer(bytearray(source.read(end - start)), dtype=DTYPES[kind]).view(shape)
            result = change(name, tensor)
            if result.shape != tensor.shape or result.dtype != tensor.dtype:
                raise ModelError(f"{shard.path}: {name!r} would change from {tensor.dtype} {list(tensor.shape)}")
            target.write(result.contiguous().flatten().view(torch.uint8).numpy().data)


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        block = source.read(min(size, BLOCK))
        if not block:
            raise ModelError(f"{source.name} ended early; make the base model again")
        target.write(block)
        size -= len(block)
