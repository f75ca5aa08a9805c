"""Tries a retriever: a query and a corpus in, the best passages out.

Does not know where the model came from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stm.errors import DataError, RegistryError
from stm.files import atomic_directory, parse_object, sha256_tree
from stm.metrics import rank
from stm.params.base import PARAMS_FILE
from stm.progress import say
from stm.prompts import own_prompts
from stm.tasks import Passage, read_task

if TYPE_CHECKING:
    from stm.promote.registry import Version

MODELS = Path(".stm/models")
TASKS = Path("data/tasks/test")
Corpus = Mapping[str, Passage]


@dataclass(frozen=True)
class Hit:
    """One found passage; `score` is the cosine of query and passage."""

    position: int
    score: float
    passage_id: str
    title: str
    text: str


def read_corpus(path: Path) -> dict[str, Passage]:
    """Read passages from a .jsonl file (text, and perhaps _id and title) or a text file, one passage a line."""
    if path.suffix in (".csv", ".tsv", ".parquet", ".gz"):
        raise DataError(f"cannot search {path}: a corpus is a .jsonl file with a text per line, or plain lines of text")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # texts may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"cannot read the corpus {path}: {reason}; give a .jsonl file or a text file") from error
    corpus: dict[str, Passage] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        key, passage = (
            _parse(line, number, path) if path.suffix == ".jsonl" else (str(number), Passage("", line.strip()))
        )
        if key in corpus:
            raise DataError(f"{path}, line {number}: the id {key!r} appears twice")
        corpus[key] = passage
    if not corpus:
        raise DataError(f"the corpus {path} holds no passages")
    return corpus


def _parse(line: str, number: int, path: Path) -> tuple[str, Passage]:
    row = parse_object(line.encode(), f"{path}, line {number}")
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError(f"{path}, line {number}: 'text' is missing or not a string")
    return str(row.get("_id", number)), Passage(str(row.get("title") or ""), text)


def read_embedded(name: str = "", tasks: Path = TASKS) -> tuple[str, Corpus]:
    """Return a test task's name and corpus; by default the first medical one in name order."""
    folders = {path.name: path for path in sorted(tasks.glob("*")) if (path / "corpus.jsonl").exists()}
    if not folders and not Path(PARAMS_FILE).exists():
        raise DataError("there is no project in this folder; run from the project's root, or give --corpus FILE")
    if not folders:
        raise DataError(f"{tasks} holds no corpus; run `dvc repro prepare` or `dvc pull`, or give --corpus FILE")
    if name and name not in folders:
        raise DataError(f"there is no test task {name!r}; there are: {', '.join(folders)}")
    found = [read_task(path, "test") for key, path in folders.items() if key == name or not name]
    chosen = next((task for task in found if task.domain == "medical"), found[0])
    return chosen.name, chosen.corpus


def champion_folder(version: "Version", registered_model: str) -> Path:
    """The model folder of a registered version; a remote one is downloaded once into .stm/models."""
    import mlflow
    from mlflow.sentence_transformers import SENTENCE_TRANSFORMERS_DATA_PATH

    from stm.promote.versions import check_folder

    target = MODELS / (version.tags.get("model") or f"version-{version.number}")
    if not target.exists():
        try:
            with atomic_directory(target) as scratch:
                mlflow.artifacts.download_artifacts(
                    f"models:/{registered_model}/{version.number}", dst_path=str(scratch)
                )
        except Exception as error:  # the artifact store may be any of a dozen, each with errors of its own
            reason = " ".join(str(error).split())[:200]
            raise RegistryError(f"version {version.number} cannot be downloaded: {reason}") from error
    folder = target / str(SENTENCE_TRANSFORMERS_DATA_PATH)
    check_folder(folder)
    return folder


def search(model: Path, corpus: Corpus, query: str, k: int, megabytes: int) -> list[Hit]:
    """The best `k` passages for a query by exact search, the best first; `DataError` for an empty query.

    Passages that were encoded before, by the evaluation too, come from the embedding store of that size; 0: no store.
    """
    from stm.encode import Encoder
    from stm.evaluate.store import StoredEncoder, open_store
    from stm.models import load_model
    from stm.text_encoder import TextEncoder

    if not query.strip():
        raise DataError("the query is empty; give a few words in quotes")
    encoder = Encoder(load_model(model))
    stored: TextEncoder = StoredEncoder(encoder, open_store(sha256_tree(model), megabytes)) if megabytes else encoder
    say(f"searching {len(corpus)} passages with {model}")
    texts = [passage.full_text() for passage in corpus.values()]
    passages_PD = stored.encode(texts, own_prompts(encoder.model.prompts)["document"], "encode passages")
    found = rank(encoder.encode_queries([query]), passages_PD, ["query"], list(corpus), k)["query"]
    return [
        Hit(position, score, key, corpus[key].title, corpus[key].text)
        for position, (key, score) in enumerate(found.items(), 1)
    ]
