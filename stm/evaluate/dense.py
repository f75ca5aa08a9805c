"""Opens a model folder for evaluation: the model, its encoder, and the embedding store in front of it.

The one module of the package that loads weights. Does not know the tasks.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from stm.encode import Encoder
from stm.evaluate.models import DenseModel, TextEncoder
from stm.evaluate.store import EmbeddingStore, StoredEncoder
from stm.files import sha256_text
from stm.models import compute_dtype, load_model

PASSAGE_PROMPTS = ("document", "passage", "corpus")  # names, in the order in which sentence-transformers looks


def own_prompts(prompts: Mapping[str, str | None]) -> dict[str, str]:
    """Return the prompts "query" and "document" that sentence-transformers itself would use for the two sides."""
    passage = next((prompts[name] for name in PASSAGE_PROMPTS if name in prompts), "")
    return {"query": prompts.get("query") or "", "document": passage or ""}


def open_model(
    name: str,
    path: Path | str,
    model_hash: str,
    batch_tokens: int,
    store_megabytes: int,
    prompts: Mapping[str, str | None] | None = None,
) -> DenseModel:
    """Load the model folder at `path` and return it as a model for mteb.

    Its own prompts are used where `prompts` ("query", "document") is None. With a store (`store_megabytes` > 0) texts
    that these weights have encoded before, in this precision and with these libraries, are not encoded again. Raises
    `ModelError` if the folder is no model.
    """
    model = load_model(path)
    encoder = Encoder(model, batch_tokens)
    inner: TextEncoder = encoder
    if store_megabytes:
        libraries = [f"{library}={version(library)}" for library in ("torch", "transformers", "sentence-transformers")]
        key = sha256_text(model_hash, str(model.device.type), str(compute_dtype()), *libraries)
        inner = StoredEncoder(encoder, EmbeddingStore(key, store_megabytes))
    given = {side: text for side, text in (prompts or {}).items() if text is not None}
    return DenseModel(inner, {**own_prompts(model.prompts), **given}, name, model_hash)
