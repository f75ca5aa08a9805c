"""Finds a model of the Hugging Face hub at a pinned commit: in the hub's local cache, or by fetching it there.

An id and a commit go in, the folder of that snapshot comes out. Only settings, tokenizer files and safetensors are
fetched, never pickles or code. Does not load the model.
"""

from pathlib import Path

from huggingface_hub import errors, snapshot_download

from stm.errors import ModelError, STMError
from stm.evaluate.hub import is_hub_reachable
from stm.models import RETRIEVER, missing_files

FETCHED = ["*.json", "*.txt", "*.model", "*.safetensors"]
LEFT = ["onnx/*", "openvino/*"]  # copies of the weights for other runtimes


class UnreachableError(STMError):
    """The hub does not answer, and its local cache lacks what is asked for."""


def _snapshot(model_id: str, revision: str, is_offline: bool) -> Path:
    return Path(
        snapshot_download(
            model_id, revision=revision, allow_patterns=FETCHED, ignore_patterns=LEFT, local_files_only=is_offline
        )
    )


def find_model(model_id: str, revision: str) -> Path:
    """Return the folder of the model `owner/name` at a commit; a commit never changes, so the cache comes first.

    Raises `UnreachableError` if it is not in the cache and the hub is out of reach, `ModelError` if the hub refuses.
    """
    try:
        folder = _snapshot(model_id, revision, is_offline=True)
    except OSError:  # not cached, or not all of it
        lacking = model_id
    else:
        missing = missing_files(folder, *RETRIEVER)
        if not missing:
            return folder
        lacking = f"{missing} of {model_id}"
    if not is_hub_reachable():
        raise UnreachableError(f"the hub does not answer and its cache lacks {lacking} at {revision[:12]}")
    try:
        return _snapshot(model_id, revision, is_offline=False)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ModelError(
            f"the hub has no model {model_id!r} at {revision!r} for this user: {_short(error)}; "
            "check id and revision in the table outside, and HF_TOKEN for a gated model"
        ) from error
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]  # a proxy that refuses is no OSError
        raise UnreachableError(f"{model_id} at {revision[:12]} cannot be fetched: {_short(error)}") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
