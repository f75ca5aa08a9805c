"""Retrieval tasks in BEIR layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv, and a task.json of provenance.

Reads, checks, reduces and writes tasks; knows nothing of models or scores.
"""

import codecs
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from stm.errors import DataError
from stm.files import atomic_directory, parse_object, read_json, write_json, write_jsonl, write_text
from stm.progress import Meter

Domain = Literal["medical", "general"]
SCOPES = ("all", *get_args(Domain))  # of averages over tasks
Qrels = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Passage:
    """A passage; `title` may be empty."""

    title: str
    text: str

    def full_text(self) -> str:
        """Title and text as one string, joined as mteb 2 joins them."""
        return f"{self.title} {self.text}".strip()


@dataclass(frozen=True)
class Task:
    """Queries, a corpus and `qrels[query_id][passage_id] = relevance`."""

    name: str
    domain: Domain
    corpus: Mapping[str, Passage]
    queries: Mapping[str, str]
    qrels: Qrels
    notes: Mapping[str, Any] = field(default_factory=dict)  # provenance: source, full sizes, caps

    @property
    def ignores_identical_ids(self) -> bool:
        """Whether the passage whose id is the query's own does not count (ArguAna's rule); the notes say so."""
        return bool(self.notes.get("ignore_identical_ids", False))

    def relevant(self, query_id: str) -> list[str]:
        """The passages that answer a query: those judged above 0, in the order of the qrels."""
        return [passage_id for passage_id, score in self.qrels.get(query_id, {}).items() if score > 0]

    def check(self) -> "Task":
        """Return self, or raise `DataError` for a task without qrels or with qrels that name nothing."""
        if not any(self.qrels.values()):
            raise DataError(
                f"task {self.name!r} has no qrels that name an answer; a qrels/<split>.tsv needs a score above 0"
            )
        for query_id, judged in self.qrels.items():
            if query_id not in self.queries:
                raise DataError(
                    f"task {self.name!r}: the qrels name the query {query_id!r}, which queries.jsonl lacks; "
                    "add it there, or delete its lines of the qrels"
                )
            for passage_id in judged:
                if passage_id not in self.corpus:
                    raise DataError(
                        f"task {self.name!r}: the qrels of query {query_id!r} name the passage {passage_id!r}, "
                        "which corpus.jsonl lacks; add it there, or delete that line of the qrels"
                    )
        return self


def cap_task(task: Task, max_queries: int, max_passages: int, seed: int) -> Task:
    """Return the task with at most that many queries and passages (0: no limit), chosen by `seed`.

    All judged passages of the kept queries stay, so that `max_passages` is exceeded where they alone are more. The rest
    of the corpus is filled at random from the remaining passages. Original sizes go into `notes`.
    """
    rng = random.Random(f"{seed}:{task.name}")
    judged = sorted(query_id for query_id in task.qrels if task.relevant(query_id))
    kept = judged if not max_queries or len(judged) <= max_queries else sorted(rng.sample(judged, max_queries))
    qrels = {query_id: dict(task.qrels[query_id]) for query_id in kept}
    needed = {passage_id for passages in qrels.values() for passage_id in passages}
    others = sorted(set(task.corpus) - needed)
    room = max(0, max_passages - len(needed)) if max_passages else len(others)
    chosen = needed | set(others if room >= len(others) else rng.sample(others, room))
    notes = {**task.notes, "full_queries": len(task.queries), "full_passages": len(task.corpus)}
    corpus = {passage_id: task.corpus[passage_id] for passage_id in sorted(chosen)}
    queries = {query_id: task.queries[query_id] for query_id in kept}
    return Task(task.name, task.domain, corpus, queries, qrels, notes)


def choose_tasks(
    tasks: Sequence[Task], names: Collection[str], max_queries: int, max_passages: int, seed: int
) -> list[Task]:
    """Return the named tasks (no names: all), each reduced by `cap_task`; `DataError` for a name that is not there."""
    known = [task.name for task in tasks]
    if unknown := sorted(set(names) - set(known)):
        raise DataError(f"there is no dev task {unknown[0]!r}; there are {', '.join(known)}")
    return [cap_task(task, max_queries, max_passages, seed) for task in tasks if not names or task.name in names]


def write_task(task: Task, folder: Path | str, split: str) -> None:
    """Write the task as a BEIR folder, whole or not at all."""
    task.check()
    with atomic_directory(folder) as scratch:
        rows = ({"_id": key, "title": p.title, "text": p.text} for key, p in task.corpus.items())
        write_jsonl(scratch / "corpus.jsonl", rows)
        write_jsonl(scratch / "queries.jsonl", ({"_id": key, "text": text} for key, text in task.queries.items()))
        lines = ["query-id\tcorpus-id\tscore"]
        lines += [f"{q}\t{p}\t{score}" for q, judged in task.qrels.items() for p, score in judged.items()]
        write_text(scratch / "qrels" / f"{split}.tsv", "\n".join(lines) + "\n")
        write_json(scratch / "task.json", {"name": task.name, "domain": task.domain, "notes": dict(task.notes)})


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; a BEIR folder needs it") from error
    seen: set[str] = set()
    about = f"bytes of {path.parent.name}/{path.name}"
    with stream, Meter(about, path.stat().st_size) as meter:
        for number, line in enumerate(stream, 1):
            meter.advance(len(line))
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            row = parse_object(line, f"{path}, line {number}")
            if "_id" not in row:
                raise DataError(f"{path}, line {number}: expected a JSON object with an '_id'")
            key = str(row["_id"])
            if key in seen:
                raise DataError(f"{path}, line {number}: the id {key!r} appears twice; ids must be unique")
            seen.add(key)
            if not isinstance(row.get("text"), str):
                raise DataError(f"{path}, line {number}: 'text' is missing or not a string")
            yield key, row


def _parse_judgement(line: str) -> tuple[str, str, int] | None:
    """Query id, passage id and score of a line of qrels; None for any other line."""
    try:
        query_id, passage_id, score = line.split("\t")
        return query_id, passage_id, int(score)
    except ValueError:
        return None


def _is_trec(line: str) -> bool:
    """Whether this is a line of TREC's qrels: query id, iteration, passage id, score, with blanks between them."""
    fields = line.split()
    return len(fields) == 4 and all(field.lstrip("+-").isdigit() for field in (fields[1], fields[3]))


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        found = sorted(p.stem for p in path.parent.glob("*.tsv"))
        raise DataError(f"cannot read {path}: {error.strerror}; splits there: {found or 'none'}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8; save the file as UTF-8") from error
    if _is_trec(lines[0]):
        raise DataError(
            f"{path} has the four columns of TREC; a BEIR folder wants three, with a header, as this writes them: "
            f'awk \'BEGIN {{print "query-id\\tcorpus-id\\tscore"}} {{print $1 "\\t" $3 "\\t" $4}}\' FILE > {path}'
        )
    if lines[0].split("\t")[-1].strip().replace(".", "", 1).lstrip("+-").isdigit():
        raise DataError(f"{path} has no header; its first line must name the columns query-id, corpus-id and score")
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        judgement = _parse_judgement(line)
        if judgement is None:
            raise DataError(
                f"{path}, line {number}: expected query-id, corpus-id and a whole-number score, with tabs between them"
            )
        query_id, passage_id, score = judgement
        if qrels.setdefault(query_id, {}).setdefault(passage_id, score) != score:
            raise DataError(f"{path}, line {number}: {passage_id!r} is judged twice for {query_id!r}, with two scores")
    return qrels


def _read_meta(path: Path) -> dict[str, Any]:
    """What a task.json says; nothing where there is none."""
    meta = read_json(path) if path.exists() else {}
    if not isinstance(meta, dict) or not isinstance(meta.get("notes") or {}, dict):
        raise DataError(f"{path}: expected a JSON object, and one as its 'notes'; correct it, or delete it")
    return meta


def read_task(
    folder: Path | str,
    split: str,
    name: str = "",
    domain: Domain | None = None,
    hold: Callable[[Iterator[tuple[str, Passage]]], Mapping[str, Passage]] = dict,
) -> Task:
    """Read a BEIR folder; only queries that the split's qrels judge are kept.

    `name` and `domain` default to those in `task.json`, then to the folder's name and "general". `hold` keeps the
    stream of passages, by default in memory.
    """
    folder = Path(folder)
    meta = _read_meta(folder / "task.json")
    corpus = hold(
        (key, Passage(str(row.get("title") or ""), row["text"])) for key, row in _read_jsonl(folder / "corpus.jsonl")
    )
    qrels = _read_qrels(folder / "qrels" / f"{split}.tsv")
    queries = {key: row["text"] for key, row in _read_jsonl(folder / "queries.jsonl") if key in qrels}
    chosen: Domain = domain or meta.get("domain", "general")
    return Task(name or meta.get("name", folder.name), chosen, corpus, queries, qrels, meta.get("notes") or {}).check()


def task_folders(root: Path | str) -> list[Path]:
    """The task folders under `root` in name order; none at all is a `DataError`."""
    folders = sorted(p for p in Path(root).glob("*") if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(
            f"{root} holds no tasks; `dvc repro prepare` makes those that prepare.tasks in params.yaml names"
        )
    return folders


def read_tasks(root: Path | str, split: str) -> list[Task]:
    """Read every task folder under `root`."""
    return [read_task(folder, split) for folder in task_folders(root)]
