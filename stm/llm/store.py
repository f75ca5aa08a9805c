"""Answers that were paid for, kept under the key of their request in one SQLite file.

Every answer is committed when it arrives, so a killed job loses none; Parquet export and import let a team or CI replay
without any endpoint. Does not know how answers are made.
"""

import contextlib
import dataclasses
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from stm.errors import DataError, STMError
from stm.files import atomic_file
from stm.llm.answers import Answer, request_key
from stm.root import project_root

STORE_FILE = Path(".stm/llm.sqlite")  # from the project's root
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
ARROW = pa.schema([(name, pa.int64() if kind == pl.Int64 else pa.string()) for name, kind in COLUMNS.items()])
ROW = """(key TEXT PRIMARY KEY NOT NULL, request TEXT NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL,
tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL)"""
CREATE = f"CREATE TABLE IF NOT EXISTS answers {ROW}"
# Answers that win over `answers` for this opening alone: other stages use the file at the same time.
CREATE_PREFERRED = f"CREATE TEMP TABLE preferred {ROW}"
CREATE_BATCHES = """CREATE TABLE IF NOT EXISTS open_batches (tag TEXT PRIMARY KEY, base_url TEXT NOT NULL,
batch_id TEXT NOT NULL, requests TEXT NOT NULL)"""
# What work of this opening used: on disk too, since a job may have millions of answers.
CREATE_USED = "CREATE TEMP TABLE used (key TEXT PRIMARY KEY) WITHOUT ROWID"
INSERT = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)"
INSERT_PREFERRED = "INSERT OR REPLACE INTO preferred VALUES (?, ?, ?, ?, ?, ?)"
INSERT_USED = "INSERT OR IGNORE INTO used VALUES (?)"
WAIT_SECONDS = 60.0  # several stages may write at once
BATCH = 500  # keys per query
ROW_GROUP = 10_000  # rows of an exported file, and keys of answers used, that are in memory at once


@dataclass(frozen=True)
class BatchRecord:
    """A batch that was submitted and not collected; `batch_id` is empty if the endpoint's answer was never seen."""

    tag: str
    batch_id: str
    requests: Mapping[str, str]  # canonical requests by key


class AnswerStore:
    """A durable map from request key to answer; a context manager, safe for threads and for several processes.

    Without a `path` it is the project's own.
    """

    def __init__(self, path: Path | str | None = None) -> None:
        self.path = project_root() / STORE_FILE if path is None else Path(path)
        self._lock = threading.Lock()
        self._just_used: list[tuple[str]] = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            # In WAL mode NORMAL survives a killed process; only a power cut may lose the last moments.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(CREATE)
            self._db.execute(CREATE_BATCHES)
            self._db.execute(CREATE_USED)
            self._db.execute(CREATE_PREFERRED)
        except (OSError, sqlite3.Error) as error:
            raise STMError(f"cannot use the answer store {self.path}: {error}; mend or move the file away") from error

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def __len__(self) -> int:
        with self._use():
            return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    @property
    def used(self) -> list[str]:
        """Sorted keys of all answers that were marked as used during this opening."""
        with self._use():
            self._flush_used()
            return [key for (key,) in self._db.execute("SELECT key FROM used ORDER BY key")]

    def mark_used(self, keys: Iterable[str]) -> None:
        """Remember the answers that work has used; others may be read, or come too late for a limit."""
        with self._use():
            self._just_used.extend((key,) for key in keys)
            if len(self._just_used) >= ROW_GROUP:
                self._flush_used()

    def _flush_used(self) -> None:
        """The lock is held by the caller."""
        with self._transaction():
            self._db.executemany(INSERT_USED, self._just_used)
        self._just_used.clear()

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """Return the answers that are there, as replays."""
        found: dict[str, Answer] = {}
        for start in range(0, len(keys), BATCH):
            batch = keys[start : start + BATCH]
            with self._use():
                found.update(self._select(batch))
        return found

    def _select(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers to at most `BATCH` keys; the lock is held by the caller."""
        marks, found = ",".join("?" * len(keys)), dict[str, Answer]()
        for table in ("answers", "preferred"):  # the later one wins
            query = f"SELECT key, text, finish_reason, tokens_in, tokens_out FROM {table} WHERE key IN ({marks})"
            for key, text, finish_reason, tokens_in, tokens_out in self._db.execute(query, keys):
                found[key] = Answer(text, finish_reason, tokens_in, tokens_out, is_replayed=True)
        return found

    def put(self, canonical: str, answer: Answer) -> Answer:
        """Commit one answer; the first answer to a request stays, and is returned.

        It is another one where two stages asked the same at the same time: what this one uses must be what it exports.
        """
        row = (
            request_key(canonical),
            canonical,
            answer.text,
            answer.finish_reason,
            answer.tokens_in,
            answer.tokens_out,
        )
        with self._use():
            is_first = self._db.execute(INSERT, row).rowcount == 1
            stays = answer if is_first else self._select(row[:1])[row[0]]
            return dataclasses.replace(stays, is_replayed=answer.is_replayed)

    def open_batch(self, tag: str, base_url: str, requests: Mapping[str, str]) -> None:
        """Record a batch, its canonical requests by key, before it is submitted."""
        with self._use():
            self._db.execute("INSERT INTO open_batches VALUES (?, ?, '', ?)", (tag, base_url, json.dumps(requests)))

    def name_batch(self, tag: str, batch_id: str) -> None:
        """Record the name that the endpoint gave to a batch."""
        with self._use():
            self._db.execute("UPDATE open_batches SET batch_id = ? WHERE tag = ?", (batch_id, tag))

    def close_batch(self, tag: str) -> None:
        """Forget a batch whose answers are stored."""
        with self._use():
            self._db.execute("DELETE FROM open_batches WHERE tag = ?", (tag,))

    def batches(self, base_url: str) -> list[BatchRecord]:
        """Open batches of an endpoint, oldest first."""
        query = "SELECT tag, batch_id, requests FROM open_batches WHERE base_url = ? ORDER BY rowid"
        with self._use():
            rows = self._db.execute(query, (base_url,)).fetchall()
        return [BatchRecord(tag, batch_id, json.loads(requests)) for tag, batch_id, requests in rows]

    @contextlib.contextmanager
    def _use(self) -> Iterator[None]:
        """One thread at a time; `STMError` where the file cannot be read or written."""
        try:
            with self._lock:
                yield
        except sqlite3.Error as error:
            raise STMError(
                f"cannot use the answer store {self.path}: {error}; run again when the disk has room and nobody locks "
                "the file, or move a damaged one away"
            ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing of what the block writes; the lock is held by the caller."""
        self._db.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def export_parquet(self, path: Path | str, keys: Iterable[str] | None = None) -> int:
        """Write the answers (of `keys`, default all) sorted by key; return how many."""
        names, count = ", ".join(COLUMNS), 0
        with self._use(), atomic_file(path) as scratch:
            join = "" if keys is None else "JOIN wanted USING (key)"
            if keys is not None:
                self._db.execute("CREATE TEMP TABLE wanted (key TEXT PRIMARY KEY) WITHOUT ROWID")
                with self._transaction():
                    self._db.executemany("INSERT OR IGNORE INTO wanted VALUES (?)", ((key,) for key in keys))
            select = (
                f"SELECT {names} FROM preferred {join} UNION ALL SELECT {names} FROM answers {join} "
                "WHERE key NOT IN (SELECT key FROM preferred) ORDER BY key"
            )
            try:
                found = self._db.execute(select)
                with pq.ParquetWriter(scratch, ARROW, compression="zstd") as writer:
                    while rows := found.fetchmany(ROW_GROUP):
                        columns = zip(zip(*rows, strict=True), ARROW.types, strict=True)
                        writer.write_table(pa.Table.from_arrays([pa.array(*c) for c in columns], schema=ARROW))
                        count += len(rows)
            finally:
                self._db.execute("DROP TABLE IF EXISTS wanted")
        return count

    def import_parquet(self, path: Path | str) -> int:
        """Add the answers of an exported file, all or none; return how many rows it holds.

        Answers that are there already stay. `DataError` for another form.
        """
        return self._import(path, INSERT)

    def prefer_parquet(self, path: Path | str) -> int:
        """Import an exported file whose answers win over those that are there, but for this opening alone."""
        return self._import(path, INSERT, INSERT_PREFERRED)

    def _import(self, path: Path | str, *statements: str) -> int:
        count = 0
        with self._use(), self._transaction():
            for frame in _read_answers(path):
                for key, canonical in frame.select("key", "request").iter_rows():
                    if key != request_key(canonical):
                        raise DataError(
                            f"{path}: the key {key[:12]}... is not that of its request; export the answers again"
                        )
                for statement in statements:
                    self._db.executemany(statement, frame.iter_rows())
                count += frame.height
        return count


@contextlib.contextmanager
def tracked_answers(path: Path) -> Iterator[AnswerStore]:
    """The project's store with the answers of the Parquet file `path` added, where there is one.

    The file's answers win over those that this machine has of its own, so that the work comes out as where the file was
    made. In the end `path` holds the answers that were used: with it another machine replays without any endpoint.
    """
    with AnswerStore() as store:
        if path.exists():
            store.prefer_parquet(path)
        yield store
        store.export_parquet(path, store.used)


def _read_answers(path: Path | str) -> Iterator[pl.DataFrame]:
    """The rows of an exported file, `ROW_GROUP` at a time; `DataError` for another form."""
    wrong = f"{path} holds no exported answers; expected the columns {list(COLUMNS)} without nulls"
    try:
        if dict(pl.read_parquet_schema(path)) != dict(COLUMNS):
            raise DataError(wrong)
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROW_GROUP):
                frame = pl.DataFrame(pa.Table.from_batches([batch]))
                if any(frame.null_count().row(0)):
                    raise DataError(wrong)
                yield frame.select(list(COLUMNS))
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise DataError(f"cannot read the answers in {path}: {error}; export them again") from error
