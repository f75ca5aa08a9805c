"""Models that mining and validation are given by name: a folder of this machine, or a hub id at a pinned revision.

A name goes in, a loaded model comes out. A revision of the hub that its local cache holds is taken from there, without
the network. Runs no code and no pickle of a model. What they compute is checked here too, since a figure that is no
number would pass every limit that it is compared with.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoConfig

from stm.chip import device
from stm.errors import DataError, ModelError, brief
from stm.hub_models import UnreachableError, find_model
from stm.models import RETRIEVER, load_model, quiet_libraries


def load_retriever(name: str, revision: str) -> SentenceTransformer:
    """A sentence-transformers or adapter folder, or a hub id of one; `ModelError` if it cannot be loaded."""
    return load_model(_find_folder(name, revision, *RETRIEVER))


def load_cross_encoder(name: str, revision: str) -> CrossEncoder:
    """A folder or hub id of a model with one output per pair of texts; `ModelError` if it is something else."""
    folder = str(_find_folder(name, revision, "config.json"))
    quiet_libraries()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        heads = config.architectures or []
        if not any(head.endswith("ForSequenceClassification") for head in heads):
            # The library would put a random head on it without a word.
            raise ModelError(f"{name} is no cross-encoder but {', '.join(heads) or 'a model without a head'}")
        if config.num_labels != 1:
            raise ModelError(f"{name} has {config.num_labels} outputs; a cross-encoder for retrieval has one")
        return CrossEncoder(
            folder, local_files_only=True, device=str(device()), trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load the cross-encoder {name}: {brief(error)}; name another one") from error


def check_finite(values: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    """Return `values`, a score or an embedding per input of the model `name`; `DataError` if one is NaN or infinite.

    A NaN is neither above nor below any limit, so guards that refuse what is too near would let everything through.
    """
    broken = ~np.isfinite(values)
    if broken.any():
        count = int(broken.reshape(len(values), -1).any(axis=1).sum())
        raise DataError(
            f"{name!r} gives NaN or infinity for {count} of {len(values)} inputs; the model or its weights are broken"
        )
    return values


def _find_folder(name: str, revision: str, *settings: str) -> Path:
    """The folder itself, or that of the hub's snapshot with weights and one of the files `settings`.

    `ModelError` says in one sentence why there is none.
    """
    if Path(name).exists():
        return Path(name)
    if not revision:
        raise ModelError(f"{name!r} is no folder here, and as a hub id it has no revision; pin a commit of it")
    try:
        return find_model(name, revision, *settings)
    except UnreachableError as error:
        raise ModelError(f"{error}; run again when it answers, or name a local folder") from error
