"""Tries a retriever: a query and a corpus in, the best passages out.

Does not know where the model came from.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from stm.errors import DataError, RegistryError, STMError, brief
from stm.files import atomic_directory, decode_line, parse_object, sha256_tree
from stm.metrics import rank
from stm.params.base import PARAMS_FILE
from stm.prepare.files import read_bytes, read_table, require_columns
from stm.progress import say
from stm.prompts import own_prompts
from stm.tasks import Passage, read_task

if TYPE_CHECKING:
    from stm.promote.registry import Version
    from stm.text_encoder import TextEncoder

MODELS = Path(".stm/models")
TASKS = Path("data/tasks/test")
Corpus = Mapping[str, Passage]
NAMED = "; name the column of the passages with --text-column, and save a csv with commas"


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a corpus. Only `text` must be there; a passage without `key` is named by its row."""

    text: str = "text"
    title: str = "title"
    key: str = "_id"

    def named(self) -> list[str]:
        """Those that have another name than usual, and so must be there as well."""
        usual = (Columns.text, Columns.title, Columns.key)
        return [name for name, known in zip((self.text, self.title, self.key), usual, strict=True) if name != known]


@dataclass(frozen=True)
class Hit:
    """One found passage; `score` is the cosine of query and passage."""

    position: int
    score: float
    passage_id: str
    title: str
    text: str


def read_corpus(path: Path, columns: Columns = Columns()) -> dict[str, Passage]:
    """Read passages from a .jsonl, .csv or .parquet file, from a BEIR folder or from a text file, one passage a line;
    any file may be gzipped. Passages without text are left out.
    """
    corpus: dict[str, Passage] = {}
    there: set[str] = set()
    empty = 0
    for where, row in _rows(path / "corpus.jsonl" if path.is_dir() else path, columns.text):
        there.update(row)
        text, keys = row[columns.text], (row.get(columns.key), row.get("id"), where.split()[-1])
        key = next(str(key) for key in keys if key not in (None, ""))
        if not (text or "").strip():
            empty += 1
            continue
        if key in corpus:
            raise DataError(f"{where}: the id {key!r} appears twice")
        corpus[key] = Passage(str(row.get(columns.title) or ""), text)
    if not corpus:
        raise DataError(f"the corpus {path} holds no passages")
    require_columns(columns.named(), sorted(there), str(path))
    if empty:
        say(f"{empty} rows of {path} have no text and are left out")
    return corpus


def _rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each row stands, its number last, and its fields, of which the one named `text` is a text or null."""
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix != ".gz"), "")
    if kind in (".csv", ".parquet"):
        table = read_table(path)
        require_columns([text], table.columns, str(path), NAMED)
        if table.schema[text].is_nested():
            raise DataError(f"{path}: the column {text!r} holds {table.schema[text]}, which is no text{NAMED}")
        table = table.with_columns(pl.col(text).cast(pl.String))
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(table.iter_rows(named=True), 1))
        return
    lines = enumerate(read_bytes(path).split(b"\n"), 1)  # texts may hold other ends of lines
    for where, line in ((f"{path}, line {number}", line.strip()) for number, line in lines if line.strip()):
        if kind != ".jsonl":
            yield where, {text: decode_line(line, where)}
            continue
        row = parse_object(line, where)
        require_columns([text], list(row), where, NAMED)
        if not isinstance(row[text], str | None):
            raise DataError(f"{where}: {text!r} is {row[text]!r}, which is no text")
        yield where, row


def read_task_corpus(name: str = "", tasks: Path = TASKS) -> Corpus:
    """Return a test task's corpus; by default that of the first medical one in name order."""
    folders = {path.name: path for path in sorted(tasks.glob("*")) if (path / "corpus.jsonl").exists()}
    if not folders and not PARAMS_FILE.exists():
        raise DataError("there is no project in this folder; run from the project's root, or give --corpus FILE")
    if not folders:
        raise DataError(f"{tasks} holds no corpus; run `dvc repro prepare` or `dvc pull`, or give --corpus FILE")
    if name and name not in folders:
        raise DataError(f"there is no test task {name!r}; there are: {', '.join(folders)}")
    found = [read_task(path, "test") for key, path in folders.items() if key == name or not name]
    return next((task for task in found if task.domain == "medical"), found[0]).corpus


def champion_folder(version: "Version", registered_model: str) -> Path:
    """The model folder of a registered version; a remote one is downloaded once into .stm/models."""
    import mlflow
    from mlflow.sentence_transformers import SENTENCE_TRANSFORMERS_DATA_PATH

    from stm.promote.versions import check_folder

    target = MODELS / (version.tags.get("model") or f"version-{version.number}")
    inner = str(SENTENCE_TRANSFORMERS_DATA_PATH)
    if not _is_whole(target / inner):
        try:
            with atomic_directory(target) as scratch:
                mlflow.artifacts.download_artifacts(
                    f"models:/{registered_model}/{version.number}", dst_path=str(scratch)
                )
                if not _is_whole(scratch / inner):  # MLflow downloads what is there and raises nothing
                    raise FileNotFoundError("its files are not in the artifact store, or not all of them")
        except Exception as error:  # the artifact store may be any of a dozen, each with errors of its own
            raise RegistryError(f"version {version.number} cannot be downloaded: {brief(error)}") from error
    folder = target / inner
    check_folder(folder)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether the folder holds a model with weights; a store may have lost some of its files."""
    return (folder / "modules.json").exists() and any(folder.rglob("*.safetensors"))


def _with_store(encoder: "TextEncoder", model: Path, megabytes: int) -> "TextEncoder":
    """The encoder with the model's embedding store; alone where that cannot be used, as in a folder to read only."""
    from stm.evaluate.store import StoredEncoder, open_store

    if not megabytes:
        return encoder
    store = open_store(sha256_tree(model), megabytes)
    try:
        store.read("", [])
    except STMError as error:
        say(f"note: searching without {error}")
        return encoder
    return StoredEncoder(encoder, store)


def search(model: Path, corpus: Corpus, query: str, k: int, megabytes: int) -> list[Hit]:
    """The best `k` passages for a query by exact search, the best first; `DataError` for an empty query.

    Passages that were encoded before, by the evaluation too, come from the embedding store of that size; 0: no store.
    """
    from stm.encode import Encoder
    from stm.models import load_model

    if not query.strip():
        raise DataError("the query is empty; give a few words in quotes")
    encoder = Encoder(load_model(model))
    stored = _with_store(encoder, model, megabytes)
    say(f"searching {len(corpus)} passages with {model}")
    texts = [passage.full_text() for passage in corpus.values()]
    passages_PD = stored.encode(texts, own_prompts(encoder.model.prompts)["document"], "encode passages")
    found = rank(encoder.encode_queries([query]), passages_PD, ["query"], list(corpus), k)["query"]
    return [
        Hit(position, score, key, corpus[key].title, corpus[key].text)
        for position, (key, score) in enumerate(found.items(), 1)
    ]
