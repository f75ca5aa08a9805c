"""Opens a model folder for evaluation: the model, its encoder, and the embedding store in front of it.

The one module of the package that loads weights. Does not know the tasks.
"""

from collections.abc import Mapping
from pathlib import Path

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from stm.encode import Encoder
from stm.errors import ModelError
from stm.evaluate.models import DenseModel
from stm.evaluate.store import StoredEncoder, open_store
from stm.models import load_model
from stm.params.evaluate import EvaluateParams
from stm.prompts import own_prompts
from stm.text_encoder import TextEncoder


def open_model(
    name: str,
    path: Path | str,
    model_hash: str,
    params: EvaluateParams,
    prompts: Mapping[str, str | None] | None = None,
) -> DenseModel:
    """Load the model folder at `path` and return it as a model for mteb.

    Its own prompts are used where `prompts` ("query", "document") is None. With a store (`store_megabytes` > 0) texts
    that these weights have encoded before, in this precision, with this code and these libraries, are not encoded
    again. Raises `ModelError` if the folder is no model, or one that is compared in another way than by cosine, and
    `DataError` for a prompt that fills the model's length.
    """
    model = load_model(path)
    _check_comparable(model, path)
    encoder = Encoder(model, params.batch_tokens, params.compile)
    given = {side: text for side, text in (prompts or {}).items() if text is not None}
    used = {**own_prompts(model.prompts), **given}
    encoder.passes.check_prompts(used.values())
    inner: TextEncoder = encoder
    if params.store_megabytes:
        inner = StoredEncoder(encoder, open_store(model_hash, params.store_megabytes, params.compile))
    return DenseModel(inner, used, name, model_hash, encoder.passes.share_cut)


def _check_comparable(model: SentenceTransformer, path: Path | str) -> None:
    """`ModelError` for a model whose own scores cosine over all of its tokens would not be."""
    has_unit_rows = any(isinstance(module, Normalize) for module in model.modules())
    if model.similarity_fn_name not in (None, "cosine") and not (model.similarity_fn_name == "dot" and has_unit_rows):
        raise ModelError(f"{path} is made for the similarity {model.similarity_fn_name!r}; only cosine is scored here")
    if any(isinstance(module, Pooling) and not module.include_prompt for module in model.modules()):
        raise ModelError(f"{path} leaves its prompt out of the pooling (include_prompt: false), which is not done here")
