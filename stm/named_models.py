"""Models that mining and validation are given by name: a folder of this machine, or a hub id at a pinned revision.

A name goes in, a loaded model comes out. Runs no code and no pickle of a model.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from stm.errors import ModelError
from stm.models import device, load_model, quiet_libraries

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer


def load_retriever(name: str, revision: str) -> "SentenceTransformer":
    """A sentence-transformers or adapter folder, or a hub id; `ModelError` if it cannot be loaded."""
    if Path(name).exists():
        return load_model(name)
    from sentence_transformers import SentenceTransformer

    _require_revision(name, revision)
    quiet_libraries()
    try:
        return SentenceTransformer(
            name, revision=revision, device=str(device()), trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("model", name, error) from error


def load_cross_encoder(name: str, revision: str) -> "CrossEncoder":
    """A folder or hub id of a model with one output per pair of texts; `ModelError` if it is something else."""
    from sentence_transformers import CrossEncoder
    from transformers import AutoConfig

    is_local = Path(name).exists()
    if not is_local:
        _require_revision(name, revision)
    quiet_libraries()
    pinned, options = None if is_local else revision, {"use_safetensors": True}
    try:
        config = AutoConfig.from_pretrained(name, revision=pinned, local_files_only=is_local, trust_remote_code=False)
        heads = config.architectures or []
        if not any(head.endswith("ForSequenceClassification") for head in heads):
            # The library would put a random head on it without a word.
            raise ModelError(f"{name} is no cross-encoder but {', '.join(heads) or 'a model without a head'}")
        if config.num_labels != 1:
            raise ModelError(f"{name} has {config.num_labels} outputs; a cross-encoder for retrieval has one")
        return CrossEncoder(
            name, revision=pinned, local_files_only=is_local, device=str(device()), trust_remote_code=False,
            model_kwargs=options,
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load("cross-encoder", name, error) from error


def _require_revision(name: str, revision: str) -> None:
    if not revision:
        raise ModelError(f"{name!r} is no folder here, and as a hub id it has no revision; pin a commit of it")


def _cannot_load(kind: str, name: str, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:300]
    return ModelError(f"cannot load the {kind} {name}: {reason}; check its name, its revision and the network")
