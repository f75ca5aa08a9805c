"""Answers that were paid for, kept under the key of their request in one SQLite file.

Every answer is committed when it arrives, so a killed job loses none; Parquet export and import let a team or CI replay
without any endpoint. What the endpoint refused in a job that came to its end is in the job's own file alone, so that a
replay ends as the job did and no other job is bound by it. Does not know how answers are made.
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

from stm.errors import STMError
from stm.files import atomic_file
from stm.llm.answer_file import ARROW, COLUMNS, REFUSED, ROW_GROUP, read_answers
from stm.llm.answers import Answer, Failure, Outcome, request_key
from stm.progress import say
from stm.root import project_root

STORE_FILE = Path(".stm/llm.sqlite")  # from the project's root
ROW = """(key TEXT PRIMARY KEY NOT NULL, request TEXT NOT NULL, text TEXT NOT NULL, finish_reason TEXT NOT NULL,
tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL)"""
CREATE = f"CREATE TABLE IF NOT EXISTS answers {ROW}"
# Answers and refusals that win over `answers` for this opening alone: other stages use the file at the same time.
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
        """Remember the answers and refusals that work has used; others may be read, or come too late for a limit."""
        with self._use():
            self._just_used.extend((key,) for key in keys)
            if len(self._just_used) >= ROW_GROUP:
                self._flush_used()

    def _flush_used(self) -> None:
        """The lock is held by the caller."""
        with self._transaction():
            self._db.executemany(INSERT_USED, self._just_used)
        self._just_used.clear()

    def get(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """Return the answers that are there, as replays, and the refusals of this opening."""
        found: dict[str, Outcome] = {}
        for start in range(0, len(keys), BATCH):
            batch = keys[start : start + BATCH]
            with self._use():
                found.update(self._select(batch))
        return found

    def _select(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """What is known of at most `BATCH` keys; the lock is held by the caller."""
        marks, found = ",".join("?" * len(keys)), dict[str, Outcome]()
        for table in ("answers", "preferred"):  # the later one wins
            query = f"SELECT key, text, finish_reason, tokens_in, tokens_out FROM {table} WHERE key IN ({marks})"
            for key, text, finish_reason, tokens_in, tokens_out in self._db.execute(query, keys):
                if finish_reason == REFUSED:
                    found[key] = Failure("rejected", text)
                else:
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
            known = answer if is_first else self._select(row[:1])[row[0]]
            stays = known if isinstance(known, Answer) else answer
            return dataclasses.replace(stays, is_replayed=answer.is_replayed)

    def keep_refusals(self, refused: Mapping[str, Failure]) -> None:
        """Keep what the endpoint refused, by canonical request, for this opening and its export alone."""
        rows = [(request_key(text), text, failure.detail, REFUSED, 0, 0) for text, failure in refused.items()]
        with self._use(), self._transaction():
            self._db.executemany(INSERT_PREFERRED, rows)

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
        """Add the answers of an exported file, all or none; return how many.

        Answers that are there already stay. `DataError` for another form.
        """
        return self._import(path, is_preferred=False)

    def prefer_parquet(self, path: Path | str) -> None:
        """Import an exported file whose answers and refusals win over what is there, but for this opening alone."""
        self._import(path, is_preferred=True)
        with self._use():
            query = "SELECT count(*) FROM preferred WHERE finish_reason = ?"
            refused = int(self._db.execute(query, (REFUSED,)).fetchone()[0])
        if refused:
            say(
                f"the endpoint refused {refused} of the requests in {path}, and they are not asked again; to ask them, "
                "delete that file, whose answers are in the store by now"
            )

    def _import(self, path: Path | str, *, is_preferred: bool) -> int:
        count = 0
        with self._use(), self._transaction():
            for frame in read_answers(path):
                answers = frame.filter(pl.col("finish_reason") != REFUSED)
                self._db.executemany(INSERT, answers.iter_rows())
                if is_preferred:
                    self._db.executemany(INSERT_PREFERRED, frame.iter_rows())
                count += answers.height
        return count


@contextlib.contextmanager
def tracked_answers(path: Path) -> Iterator[AnswerStore]:
    """The project's store with the answers of the Parquet file `path` added, where there is one.

    The file's answers and refusals win over what this machine has of its own, so that the work comes out as where the
    file was made. In the end `path` holds those that were used: with it another machine replays without any endpoint.
    """
    with AnswerStore() as store:
        if path.exists():
            store.prefer_parquet(path)
        yield store
        store.export_parquet(path, store.used)
