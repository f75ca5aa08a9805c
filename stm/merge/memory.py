"""What an evaluator remembers: embeddings of mixes, scores on rungs, and what both cost.

Kept in memory and, where a folder is given, on disk, so that an interrupted search goes on with the knowledge that it
had and ends as if nothing had happened. Does not know what a key stands for.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stm.files import atomic_file, sha256_text
from stm.text_encoder import Floats

LIMIT = 2 * 10**9  # bytes of embeddings that are remembered; later ones leave their cost only


@dataclass(frozen=True)
class Memory:
    """One result: the arrays (queries and passages of a mix, or the score on a rung), tokens encoded, seconds."""

    arrays: tuple[Floats, ...]
    tokens: int
    seconds: float


class Memories:
    """All results of one search by key."""

    def __init__(self, folder: Path | None = None) -> None:
        """Take over what `folder` holds; without one nothing outlives the process."""
        self._folder, self._bytes = folder, 0
        self._memories: dict[str, Memory] = {}
        for path in sorted(folder.glob("*.npz")) if folder else ():
            found = _read(path)
            if found is not None:
                self._hold(path.stem, found)

    def find(self, *key: str) -> Memory | None:
        """The result of that key, if its arrays are remembered."""
        found = self._memories.get(sha256_text(*key))
        return found if found and found.arrays else None

    def keep(self, memory: Memory, *key: str) -> None:
        """Remember a result, and without its arrays once the limit is reached."""
        name, size = sha256_text(*key), sum(array.nbytes for array in memory.arrays)
        if self._bytes + size > LIMIT:
            before = self._memories.get(name, Memory((), 0, 0.0))
            memory = Memory((), before.tokens + memory.tokens, before.seconds + memory.seconds)
        self._hold(name, memory)
        if self._folder:
            with atomic_file(self._folder / f"{name}.npz") as scratch, scratch.open("wb") as stream:
                cost = np.array([memory.tokens, memory.seconds], dtype=np.float64)
                np.savez(stream, *memory.arrays, cost=cost)

    def __iter__(self) -> Iterator[Memory]:
        return iter(self._memories.values())

    def _hold(self, name: str, memory: Memory) -> None:
        self._memories[name] = memory
        self._bytes += sum(array.nbytes for array in memory.arrays)


def _read(path: Path) -> Memory | None:
    """A result on disk; None for a file that a full disk or a power cut has left broken."""
    try:
        with np.load(path, allow_pickle=False) as found:
            tokens, seconds = found["cost"]
            arrays = tuple(found[f"arr_{index}"] for index in range(len(found.files) - 1))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Memory(arrays, int(tokens), float(seconds))
