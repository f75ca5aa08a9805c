"""Finds a model of the Hugging Face hub at a pinned commit: in the hub's local cache, or by fetching it there.

An id and a commit go in, the folder of that snapshot comes out. Only settings, tokenizer files and safetensors are
fetched, never pickles or code. Does not load the model.
"""

import os
import socket
from pathlib import Path
from urllib.parse import urlparse

import huggingface_hub.constants
from huggingface_hub import errors, snapshot_download

from stm.errors import ModelError, STMError, brief
from stm.models import missing_files

FETCHED = ["*.json", "*.txt", "*.model", "*.safetensors"]
LEFT = ["onnx/*", "openvino/*"]  # copies of the weights for other runtimes
PROBE_SECONDS = 5.0


class UnreachableError(STMError):
    """The hub does not answer, and its local cache lacks what is asked for."""


def is_hub_reachable(seconds: float = PROBE_SECONDS) -> bool:
    """Say whether the hub's host accepts a connection; a proxy in the environment is taken at its word."""
    if any(proxy in os.environ for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlparse(huggingface_hub.constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=seconds):
            return True
    except OSError:
        return False


def find_model(model_id: str, revision: str, *settings: str) -> Path:
    """Return the folder of the model `owner/name` at a commit, with weights and one of the files `settings`.

    A commit never changes, so the cache comes first. Raises `UnreachableError` if it is not in the cache, or not all of
    it, and the hub is out of reach; `ModelError` if the hub refuses, or the id is none.
    """
    try:
        folder = _snapshot(model_id, revision, is_offline=True)
    except errors.HFValidationError as error:
        raise ModelError(f"{model_id!r} is neither a folder here nor a hub id: {brief(error)}") from error
    except OSError:  # not cached, or not all of it
        lacking = model_id
    else:
        missing = missing_files(folder, *settings)
        if not missing:
            return folder
        lacking = f"{missing} of {model_id}"
    if not is_hub_reachable():
        raise UnreachableError(f"the hub does not answer and its cache lacks {lacking} at {revision[:12]}")
    try:
        folder = _snapshot(model_id, revision, is_offline=False)
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ModelError(
            f"the hub has no model {model_id!r} at {revision!r} for this user: {brief(error)}; "
            "check id and revision in params.yaml, and HF_TOKEN for a gated model"
        ) from error
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]  # a proxy that refuses is no OSError
        raise UnreachableError(f"{model_id} at {revision[:12]} cannot be fetched: {brief(error)}") from error
    if missing := missing_files(folder, *settings):  # where the hub falls silent the client gives what its cache has
        raise UnreachableError(f"{model_id} at {revision[:12]} has no {missing}, or the hub stopped answering")
    return folder


def _snapshot(model_id: str, revision: str, is_offline: bool) -> Path:
    return Path(
        snapshot_download(
            model_id, revision=revision, allow_patterns=FETCHED, ignore_patterns=LEFT, local_files_only=is_offline
        )
    )
