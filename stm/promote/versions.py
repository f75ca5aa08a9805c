"""Registers a sentence-transformers folder as a model version, once per content, and measures it after the round trip.

The files are those of MLflow's sentence-transformers flavor: safetensors and JSON, nothing pickled. Does not know gates
or aliases.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stm.errors import DataError, ModelError, RegistryError, brief
from stm.files import sha256_tree
from stm.promote.publish import KEY, PUBLICATION
from stm.promote.registry import Registry, Version, explained

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CONTENT = "model"  # tag: sha256 of the model folder
LOGGED_NAME = "retriever"
EXAMPLE = ["lay term for dyspnea"]
REQUIREMENTS = ("sentence-transformers", "transformers", "torch")
FORBIDDEN = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".py")
# Short, empty, long, not English, not letters: what a reload could treat differently.
PROBES = (
    "shortness of breath", "", "What is the retina?", "Zöliakie, maladie cœliaque, セリアック病",
    "🫀 <b>heart</b> & 'vessels' \"", "x", "\n\t tabs and lines \n",
    "A chronic inflammatory disease of the small intestine that is triggered by gluten. " * 40,
)  # fmt: skip
TIMED_QUERIES = 7


@dataclass(frozen=True)
class RoundTrip:
    """Figures of a model measured against its registered copy."""

    max_difference: float
    megabytes: float
    query_milliseconds: float


def check_folder(folder: Path) -> None:
    """Raise `ModelError` unless this is a sentence-transformers folder of safetensors without pickles or code."""
    if not (folder / "modules.json").exists():
        raise ModelError(f"{folder} is no sentence-transformers folder: it has no modules.json; run `dvc repro merge`")
    refused = sorted(path.name for path in folder.rglob("*") if path.suffix in FORBIDDEN)
    if refused:
        raise ModelError(
            f"{folder} holds {refused[0]}, which could run code when loaded; only safetensors and JSON are registered"
        )


def load_folder(folder: Path) -> "SentenceTransformer":
    """Load a model folder on the CPU in the precision of its file, as any consumer does."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    return SentenceTransformer(
        str(folder), device="cpu", trust_remote_code=False, local_files_only=True,
        model_kwargs={"use_safetensors": True},
    )  # fmt: skip


def load_registered(uri: str) -> "SentenceTransformer":
    """Load an MLflow model on the CPU, as any consumer does; `RegistryError` if it cannot be loaded."""
    import mlflow
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    try:
        return mlflow.sentence_transformers.load_model(uri).to("cpu")
    except Exception as error:  # whatever the store or the loader raises, the model is not fit for use
        raise RegistryError(f"{uri} cannot be loaded: {brief(error).rstrip('.')}; the champion stays") from error


def find_version(registry: Registry, content: str) -> Version | None:
    """The first version that holds a model of this content, or None: two promotions at once agree on it."""
    found = [version for version in registry.versions() if version.tags.get(CONTENT) == content]
    return min(found, key=lambda version: version.number, default=None)


def may_retag(version: Version, tags: Mapping[str, str]) -> bool:
    """Whether a later promotion's tags may replace the version's: those of the same results, of which no less is known.

    The same model can come out of other results, as of a colleague's tasks or of uncommitted changes. They are not
    what this version was judged by.
    """
    known = version.tags
    if known.get("dvc.lock", "unknown") not in ("unknown", tags.get("dvc.lock")):
        return False
    return tags.get("git.dirty") == "false" or known.get("git.dirty") != "false"


def register(
    registry: Registry,
    experiment: str,
    run_id: str,
    publication: str,
    folder: Path,
    content: str,
    tags: Mapping[str, str],
    card: Path,
) -> Version:
    """Return the version of the model folder of this content; it is logged and registered unless it is there already.
    The tags of one that is there are replaced as `may_retag` says.

    `DataError` if the folder holds something else by then, so that nothing is registered but what was judged. A logged
    model whose registration broke off is taken up, a half-logged one is deleted and logged again. The file `card`, if
    it exists, is the README of the registered copy; the content is that of the folder without it.
    """
    version = find_version(registry, content)
    if version is None:
        check_folder(folder)
        with explained(registry.uri):
            model_id = _find_logged(registry, experiment, content) or _log(
                registry, run_id, publication, folder, content, card
            )
            if registry.model() is None:
                registry.client.create_registered_model(registry.name, description="Retrievers merged by this project.")
            _check_content(folder, content)
            created = registry.client.create_model_version(
                registry.name, f"models:/{model_id}", run_id=run_id, tags={**tags, CONTENT: content}, model_id=model_id
            )
        return find_version(registry, content) or registry.version(int(created.version))
    if may_retag(version, tags):
        registry.tag(version.number, tags, version.tags)
    return registry.version(version.number)


def _check_content(folder: Path, content: str, copy: Path | None = None) -> None:
    """Raise `DataError` if the folder, or its copy, does not hold what was judged."""
    if sha256_tree(copy or folder) != content:
        raise DataError(f"{folder} changed while it was published; let what writes there end and run again")


def _find_logged(registry: Registry, experiment: str, content: str) -> str | None:
    """A completely logged model of this content; incomplete ones are deleted on the way."""
    found = registry.client.search_logged_models([experiment], filter_string=f"tags.`{CONTENT}` = '{content}'")
    for logged in found:
        if str(logged.status.value) == "READY":
            return str(logged.model_id)
        registry.client.delete_logged_model(logged.model_id)
    return None


def _log(registry: Registry, parent: str, publication: str, folder: Path, content: str, card: Path) -> str:
    import mlflow

    model = load_folder(folder)
    _save_as_it_is(model, folder, content, card)
    tags = {PUBLICATION: publication, KEY: "model", "stm.kind": "model", "mlflow.parentRunId": parent}
    experiment = registry.client.get_run(parent).info.experiment_id
    filters = f"tags.`{PUBLICATION}` = '{publication}' AND tags.`{KEY}` = 'model'"
    before = registry.client.search_runs([experiment], filters)
    run = before[0] if before else registry.client.create_run(experiment, tags=tags, run_name="model")
    with mlflow.start_run(run_id=run.info.run_id):
        logged = mlflow.sentence_transformers.log_model(
            model, name=LOGGED_NAME, signature=_signature(model), input_example=EXAMPLE,
            pip_requirements=_requirements(), tags={CONTENT: content},
        )  # fmt: skip
    return str(logged.model_id)


def _save_as_it_is(model: "SentenceTransformer", folder: Path, content: str, card: Path) -> None:
    """Let saving the model copy its folder, with that card as README: what is uploaded is what was judged.

    MLflow has the model save itself anew. That would drop what only the folder holds (notices, keys for other programs)
    and write weights that nobody but the owner can read.
    """

    def save(path: str) -> None:
        shutil.copytree(folder, path, copy_function=shutil.copyfile)
        _check_content(folder, content, Path(path))
        if card.exists():
            shutil.copyfile(card, Path(path) / "README.md")

    vars(model)["save"] = save


def _signature(model: "SentenceTransformer") -> object:
    """Texts in, float32 vectors out; a server that MLflow starts takes the name of a prompt as well.

    Inferring it would encode, which leaves padding in the saved tokenizer.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    width = model.get_embedding_dimension() or -1
    return ModelSignature(
        Schema([ColSpec("string")]), Schema([TensorSpec(np.dtype("float32"), (-1, width))]),
        ParamSchema([ParamSpec("prompt_name", "string", None)]),
    )  # fmt: skip


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS]


def measure(uri: str, folder: Path) -> RoundTrip:
    """Load an MLflow model as any consumer does and compare its vectors with those of its folder."""
    original = load_folder(folder)
    expected, seconds = _encode_probes(original), _time_query(original)
    del original  # one model in memory at a time
    vectors = _encode_probes(load_registered(uri))
    same = vectors.shape == expected.shape and bool(np.isfinite(vectors).all())
    difference = float(np.abs(vectors - expected).max()) if same else 1.0
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return RoundTrip(difference, round(size / 1e6, 3), round(1000 * seconds, 2))


def measure_unregistered(folder: Path) -> RoundTrip:
    """The same round trip through a temporary MLflow model, without any registry."""
    import mlflow

    check_folder(folder)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "model"
        model = load_folder(folder)
        mlflow.sentence_transformers.save_model(
            model, str(target), signature=_signature(model), pip_requirements=_requirements()
        )
        return measure(str(target), folder)


def _encode_probes(model: "SentenceTransformer") -> npt.NDArray[np.float32]:
    """Vectors [probes + short probes, D]: all probes as passages, and those but the long one as queries."""
    passages = model.encode_document(list(PROBES), show_progress_bar=False)
    queries = model.encode_query(list(PROBES[:-1]), show_progress_bar=False)
    return np.concatenate([passages, queries]).astype(np.float32)


def _time_query(model: "SentenceTransformer") -> float:
    """Median seconds of encoding one short query."""
    times = []
    for _ in range(TIMED_QUERIES):
        started = time.perf_counter()
        model.encode_query([PROBES[0]], show_progress_bar=False)
        times.append(time.perf_counter() - started)
    return statistics.median(times)
