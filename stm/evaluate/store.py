"""A bounded store of embeddings on disk, so that no text is encoded twice by the same model with the same prompt.

One SQLite file per key of a model (its weights, precision and libraries); when the folder outgrows its bound, the
models that were used longest ago go first. The store is a cache outside the pipeline's outputs: deleting it costs
time only.
"""

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np

from stm.chip import compute_dtype, device
from stm.errors import STMError
from stm.files import hash_code, sha256_text
from stm.progress import say
from stm.text_encoder import Floats, TextEncoder

# What shapes a vector beside the weights.
ENCODING = ("ahead", "chip", "compiled", "deltas", "encode", "models", "packed", "pooled", "rounding")
LIBRARIES = ("tokenizers", "torch", "transformers", "sentence-transformers")
FOLDER = Path(".stm/embeddings")
LOOKUPS_AT_ONCE = 500  # SQLite allows some ten thousand variables; small statements keep memory flat


def _key(prompt: str, text: str) -> bytes:
    return hashlib.sha256(f"{len(prompt)}:{prompt}{text}".encode("utf-8", "surrogatepass")).digest()


class EmbeddingStore:
    """Embeddings of one model, identified by `model_key`, under `folder`."""

    def __init__(self, model_key: str, megabytes: int, folder: Path | str = FOLDER) -> None:
        self._folder, self._bytes = Path(folder), megabytes * 1_000_000
        self._path = self._folder / f"{model_key}.sqlite"
        self._is_too_small = False

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=60)) as connection, connection:
                connection.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB)")
                yield connection
        except (sqlite3.Error, OSError) as error:
            raise STMError(
                f"the embedding store {self._path} cannot be used ({error}); "
                "delete it, or set evaluate.store_megabytes to 0"
            ) from error

    def read(self, prompt: str, texts: Sequence[str]) -> dict[str, Floats]:
        """Return the stored vectors of those texts that have one."""
        keys = {_key(prompt, text): text for text in texts}
        found: dict[str, Floats] = {}
        wanted = list(keys)
        with self._connect() as connection:
            for start in range(0, len(wanted), LOOKUPS_AT_ONCE):
                part = wanted[start : start + LOOKUPS_AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = connection.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part)
                found.update({keys[key]: np.frombuffer(vector, dtype="<f4") for key, vector in rows})
        with suppress(FileNotFoundError):  # another process may just have evicted it
            os.utime(self._path)
        return found

    def write(self, prompt: str, texts: Sequence[str], vectors: Floats) -> None:
        """Store one vector per text, then drop the least recently used models while the folder is over its bound."""
        rows = [(_key(prompt, text), row.astype("<f4").tobytes()) for text, row in zip(texts, vectors, strict=True)]
        with self._connect() as connection:
            connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        self._evict()

    def _evict(self) -> None:
        files = []
        for path in self._folder.glob("*.sqlite"):
            with suppress(FileNotFoundError):
                files.append((path.stat().st_mtime_ns, path.name, path.stat().st_size, path))
        total = sum(size for _, _, size, _ in files)
        for _, _, size, path in sorted(files):
            if total <= self._bytes:
                return
            total -= size
            path.unlink(missing_ok=True)
            if path == self._path and size > self._bytes and not self._is_too_small:
                self._is_too_small = True
                say(
                    f"one model's embeddings take {size / 1e6:.0f} MB, more than evaluate.store_megabytes "
                    f"({self._bytes / 1e6:.0f}), and are not kept; raise it, or these texts are encoded again next time"
                )


def open_store(model_hash: str, megabytes: int, compiled: bool = False) -> EmbeddingStore:
    """The store of the model with that hash, encoded in this precision, with this code and these libraries."""
    form = f"{device().type} {compute_dtype()}{' compiled' * compiled}"
    return EmbeddingStore(sha256_text(model_hash, form, hash_code(ENCODING, LIBRARIES)), megabytes)


class StoredEncoder:
    """A text encoder that asks the store first; `encoded` and `reused` count distinct texts."""

    def __init__(self, encoder: TextEncoder, store: EmbeddingStore) -> None:
        self._encoder, self._store = encoder, store
        self.encoded = self.reused = 0

    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "encode") -> Floats:
        """Return float32 unit rows [N, D]; texts that are equal are encoded once."""
        distinct = list(dict.fromkeys(texts))
        found = self._store.read(prompt, distinct)
        new = [text for text in distinct if text not in found]
        self.encoded, self.reused = self.encoded + len(new), self.reused + len(found)
        vectors = self._encoder.encode(new, prompt, description)
        if new and np.isfinite(vectors).all():
            self._store.write(prompt, new, vectors)
        if len(new) == len(texts):
            return vectors
        rows = dict(zip(new, vectors, strict=True)) | found
        out = np.empty((len(texts), vectors.shape[1]), dtype=np.float32)
        for position, text in enumerate(texts):
            out[position] = rows[text]
        return out
