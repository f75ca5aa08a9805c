"""Opens a model folder for evaluation: the model, its encoder, and the embedding store in front of it.

The one module of the package that loads weights. Does not know the tasks.
"""

from importlib.metadata import version
from pathlib import Path

from stm.encode import Encoder
from stm.evaluate.models import DenseModel, TextEncoder
from stm.evaluate.store import EmbeddingStore, StoredEncoder
from stm.files import sha256_text
from stm.models import load_model


def open_model(name: str, path: Path | str, model_hash: str, batch_tokens: int, store_megabytes: int) -> DenseModel:
    """Load the model folder at `path` and return it as a model for mteb, with its own prompts.

    With a store (`store_megabytes` > 0) texts that these weights have encoded before, in this precision and with
    these libraries, are not encoded again. Raises `ModelError` if the folder is no model.
    """
    model = load_model(path)
    encoder = Encoder(model, batch_tokens)
    inner: TextEncoder = encoder
    if store_megabytes:
        libraries = [f"{library}={version(library)}" for library in ("torch", "transformers", "sentence-transformers")]
        key = sha256_text(model_hash, str(encoder.device.type), str(encoder.dtype), *libraries)
        inner = StoredEncoder(encoder, EmbeddingStore(key, store_megabytes))
    return DenseModel(inner, model.prompts, name, model_hash)
