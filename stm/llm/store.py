"""Answers that were paid for, kept under the key of their request in one SQLite file.

Every answer is committed when it arrives, so a killed job loses none; Parquet export and import let a team or CI replay
without any endpoint. Does not know how answers are made.
"""

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from stm.errors import DataError, STMError
from stm.files import atomic_file
from stm.llm.answers import Answer, request_key

STORE_FILE = Path(".stm/llm.sqlite")
COLUMNS: pl.Schema = pl.Schema(
    {
        "key": pl.String,
        "request": pl.String,  # canonical JSON
        "text": pl.String,
        "finish_reason": pl.String,
        "tokens_in": pl.Int64,
        "tokens_out": pl.Int64,
    }
)
CREATE = """CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, request TEXT NOT NULL, text TEXT NOT NULL,
finish_reason TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL) WITHOUT ROWID"""
CREATE_BATCHES = """CREATE TABLE IF NOT EXISTS batches (tag TEXT PRIMARY KEY, base_url TEXT NOT NULL,
batch_id TEXT NOT NULL, keys TEXT NOT NULL)"""
INSERT = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)"
WAIT_SECONDS = 60.0  # several stages may write at once
BATCH = 500


@dataclass(frozen=True)
class BatchRecord:
    """A batch that was submitted and not collected; `batch_id` is empty if the endpoint's answer was never seen."""

    tag: str
    batch_id: str
    keys: tuple[str, ...]


class AnswerStore:
    """A durable map from request key to answer; a context manager, safe for threads and for several processes."""

    def __init__(self, path: Path | str = STORE_FILE) -> None:
        self.path = Path(path)
        self.used: set[str] = set()  # keys of all answers that this opening of the store gave or took
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            # In WAL mode NORMAL survives a killed process; only a power cut may lose the last moments.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(CREATE)
            self._db.execute(CREATE_BATCHES)
        except (OSError, sqlite3.Error) as error:
            raise STMError(f"cannot use the answer store {self.path}: {error}; mend or move the file away") from error

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """Return the answers that are there, as replays."""
        found: dict[str, Answer] = {}
        for start in range(0, len(keys), BATCH):
            batch = keys[start : start + BATCH]
            marks = ",".join("?" * len(batch))
            query = f"SELECT key, text, finish_reason, tokens_in, tokens_out FROM answers WHERE key IN ({marks})"
            with self._lock:
                rows = self._db.execute(query, batch).fetchall()
            self.used.update(row[0] for row in rows)
            found.update({row[0]: Answer(row[1], row[2], row[3], row[4], is_replayed=True) for row in rows})
        return found

    def put(self, canonical: str, answer: Answer) -> None:
        """Commit one answer; the first answer to a request stays."""
        row = (
            request_key(canonical),
            canonical,
            answer.text,
            answer.finish_reason,
            answer.tokens_in,
            answer.tokens_out,
        )
        try:
            with self._lock:
                self._db.execute(INSERT, row)
            self.used.add(row[0])
        except sqlite3.Error as error:
            raise STMError(
                f"cannot write to the answer store {self.path}: {error}; free disk space, run again"
            ) from error

    def open_batch(self, tag: str, base_url: str, keys: Sequence[str]) -> None:
        """Record a batch before it is submitted."""
        with self._lock:
            self._db.execute("INSERT INTO batches VALUES (?, ?, '', ?)", (tag, base_url, " ".join(keys)))

    def name_batch(self, tag: str, batch_id: str) -> None:
        """Record the name that the endpoint gave to a batch."""
        with self._lock:
            self._db.execute("UPDATE batches SET batch_id = ? WHERE tag = ?", (batch_id, tag))

    def close_batch(self, tag: str) -> None:
        """Forget a batch whose answers are stored."""
        with self._lock:
            self._db.execute("DELETE FROM batches WHERE tag = ?", (tag,))

    def batches(self, base_url: str) -> list[BatchRecord]:
        """Open batches of an endpoint, oldest first."""
        query = "SELECT tag, batch_id, keys FROM batches WHERE base_url = ? ORDER BY rowid"
        with self._lock:
            rows = self._db.execute(query, (base_url,)).fetchall()
        return [BatchRecord(tag, batch_id, tuple(keys.split())) for tag, batch_id, keys in rows]

    def export_parquet(self, path: Path | str, keys: Iterable[str] | None = None) -> int:
        """Write the answers (of `keys`, default all) sorted by key; return how many."""
        names = ", ".join(COLUMNS)
        with self._lock:
            if keys is None:
                rows = self._db.execute(f"SELECT {names} FROM answers ORDER BY key").fetchall()
            else:
                one = f"SELECT {names} FROM answers WHERE key = ?"
                hits = (self._db.execute(one, (key,)).fetchone() for key in sorted(set(keys)))
                rows = [row for row in hits if row]
        with atomic_file(path) as scratch:
            pl.DataFrame(rows, schema=COLUMNS, orient="row").write_parquet(scratch, compression="zstd")
        return len(rows)

    def import_parquet(self, path: Path | str) -> int:
        """Add the answers of an exported file; return how many rows it holds. `DataError` for another form."""
        try:
            frame = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"cannot read the answers in {path}: {error}; export them again") from error
        if dict(frame.schema) != dict(COLUMNS) or any(frame.null_count().row(0)):
            raise DataError(f"{path} holds no exported answers; expected the columns {list(COLUMNS)} without nulls")
        rows = frame.rows()
        for key, canonical, *_ in rows:
            if key != request_key(canonical):
                raise DataError(f"{path}: the key {key[:12]}... is not that of its request; export the answers again")
        with self._lock:
            self._db.execute("BEGIN")
            self._db.executemany(INSERT, rows)
            self._db.execute("COMMIT")
        return len(rows)
