"""The table of source kinds: how each kind makes training pairs, and how each makes an evaluation task.

A row of params goes in, candidates or a task come out. Adding a kind is adding a model in stm/params/prepare.py and a
row here.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stm.errors import DataError
from stm.files import sha256_file, sha256_tree
from stm.params.prepare import (
    BeirSource,
    BeirTask,
    CorpusSource,
    EmbeddedSource,
    EmbeddedTask,
    FileSource,
    FileTask,
    HubSource,
)
from stm.prepare.beir import make_task, read_beir_pairs
from stm.prepare.candidates import Candidates, make_frame
from stm.prepare.embedded import Corpora
from stm.prepare.embedded_pairs import PAIRS
from stm.prepare.embedded_tasks import TASKS, build_task
from stm.prepare.files import read_pairs
from stm.prepare.hub import read_hub
from stm.prepare.mixture import select_rows
from stm.prepare.passages import read_passages
from stm.prepare.released import add_released
from stm.progress import say
from stm.tasks import Task, read_task

Load = Callable[[Any, Corpora], Candidates]
LoadTask = Callable[[Any, str, str, Corpora], Task]


def _columns(source: FileSource | FileTask | HubSource) -> dict[str, str]:
    roles = ("anchor", "positive", "negatives", "instruction", "concept")
    return {role: getattr(source, role) for role in roles if getattr(source, role)}


def load_embedded(source: EmbeddedSource, corpora: Corpora) -> Candidates:
    """Pairs of an embedded corpus."""
    row = PAIRS[source.name]
    pairs = list(row.build(corpora))
    names = ("anchor", "positive", "negatives", "concept")
    columns: dict[str, Any] = {name: [getattr(pair, name) for pair in pairs] for name in names}
    frame = make_frame({**columns, "instruction": [row.instruction] * len(pairs)}, source.name)
    return Candidates(source.label, frame, {"kind": source.kind})


def _read_file(source: FileSource | FileTask) -> Candidates:
    frame = read_pairs(source.path, source.kind, _columns(source), source.separator, source.quote)
    facts = {"kind": source.kind, "path": source.path, "sha256": sha256_file(source.path)}
    return Candidates(source.label, frame, facts)


def _complete(candidates: Candidates, source: FileSource | HubSource) -> Candidates:
    """The candidates with released negatives, reduced to the instructions that the source selects.

    Released negatives are aligned by row number, so they come before any row is left out.
    """
    frame, facts = candidates.frame, dict(candidates.facts)
    if source.released:
        frame, facts["released"] = add_released(frame, source.released)
    others: dict[str, int] = {}
    if source.only_instructions:
        facts["rows"] = frame.height
        frame, others = select_rows(frame, source)
    return Candidates(candidates.label, frame, facts, others)


def load_file(source: FileSource, _: Corpora) -> Candidates:
    """Pairs of a local file."""
    return _complete(_read_file(source), source)


def load_hub(source: HubSource, _: Corpora) -> Candidates:
    """Pairs of a hub data set."""
    options = {"config": source.config, "split": source.split, "revision": source.revision}
    frame = read_hub(source.path, _columns(source), **options)
    facts = {"kind": source.kind, "path": source.path, **options}
    return _complete(Candidates(source.label, frame, facts), source)


def load_corpus(source: CorpusSource, _: Corpora) -> Candidates:
    """A row per passage, whose query is a stand-in of the passage itself."""
    frame = read_passages(source.path, source.text, source.title, source.separator, source.quote)
    facts = {"kind": source.kind, "path": source.path, "sha256": sha256_file(source.path)}
    return Candidates(source.label, frame, facts)


def load_beir(source: BeirSource, _: Corpora) -> Candidates:
    """Pairs of a BEIR folder."""
    frame = read_beir_pairs(source.path, source.split, source.label)
    facts = {"kind": source.kind, "path": source.path, "split": source.split, "sha256": sha256_tree(source.path)}
    return Candidates(source.label, frame, facts)


SOURCES: dict[str, Load] = {
    "embedded": load_embedded,
    "jsonl": load_file,
    "csv": load_file,
    "parquet": load_file,
    "hub": load_hub,
    "beir": load_beir,
    "corpus": load_corpus,
}


def load_embedded_task(source: EmbeddedTask, name: str, part: str, corpora: Corpora) -> Task:
    """A task of the embedded corpora."""
    kind = source.name or name
    if kind not in TASKS:
        raise DataError(
            f"{name!r} is no embedded task; name one of {', '.join(TASKS)} as the task's `name` in params.yaml"
        )
    return build_task(corpora, name, kind, part)


def load_beir_task(source: BeirTask, name: str, part: str, _: Corpora) -> Task:
    """A task of a BEIR folder."""
    split = source.split or part
    say(f"prepare: reading the {part} task {name}")
    task = read_task(source.path, split, name, source.domain)
    facts = {"kind": source.kind, "path": source.path, "split": split, "sha256": sha256_tree(source.path)}
    ignores = source.ignore_identical_ids or task.ignores_identical_ids
    notes = {**facts, "open_corpus": source.open_corpus, "ignore_identical_ids": ignores}
    return replace(task, notes=notes)


def load_file_task(source: FileTask, name: str, part: str, _: Corpora) -> Task:
    """A task of the pairs of a local file."""
    say(f"prepare: reading the {part} task {name}")
    candidates = _read_file(source)
    return make_task(candidates.frame, name, source.domain, {**candidates.facts, "open_corpus": source.open_corpus})


TASK_SOURCES: dict[str, LoadTask] = {
    "embedded": load_embedded_task,
    "beir": load_beir_task,
    "jsonl": load_file_task,
    "csv": load_file_task,
    "parquet": load_file_task,
}


def load_source(source: Any, corpora: Corpora) -> Candidates:
    """The candidates of a source of any kind."""
    return SOURCES[source.kind](source, corpora)


def load_task(source: Any, name: str, part: str, corpora: Corpora) -> Task:
    """The full task of a source of any kind; `part` is "dev" or "test"."""
    return TASK_SOURCES[source.kind](source, name, part, corpora)
