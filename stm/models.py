"""Model folders in, sentence-transformers models out: full folders, or adapter folders applied to their base.

Also how a model is made to compute in a precision. Does not know what is encoded with it.
"""

import logging
import os
import re
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from stm.chip import device
from stm.deltas import add_adapter, read_adapter
from stm.errors import ModelError, brief
from stm.files import read_json
from stm.model_hash import ADAPTER_CONFIG
from stm.prompts import read_prompts

RETRIEVER = ("modules.json", ADAPTER_CONFIG)  # either makes a folder one that `load_model` loads
SHARD = re.compile(r"-of-(\d+)\.safetensors$")


class FusedRMSNorm(torch.nn.Module):
    """The norm of llama, qwen3, mistral and phi3 by the library's one kernel, where theirs is eight on a GPU.

    Equal up to the rounding of the product with the weight, which this one does in float32.
    """

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x / rms(x) * weight` over the last dimension."""
        x = x.to(self.weight.dtype)  # of two types there is no one kernel
        return torch.nn.functional.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


def compute_in(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Make the products of the model's transformers compute in this type, in place; float32 leaves all as it is.

    Mixed precision (arXiv 1710.03740): embeddings, norms, rotations and the sum that runs through the layers stay in
    float32. In bfloat16 that sum would lose whatever a layer adds that is below a 256th of it.
    """
    if dtype == torch.float32:
        return
    for transformer in [module for module in model.modules() if isinstance(module, PreTrainedModel)]:
        for module in transformer.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(dtype)
        for module in getattr(transformer, "layers", torch.nn.ModuleList()).modules():
            if type(module).__name__.endswith("RMSNorm"):  # rounded once for all products that take it
                module.register_forward_hook(lambda _, __, normed: normed.to(dtype))
        transformer.forward = torch.autocast(transformer.device.type, dtype)(transformer.forward)


def fuse_norms(model: torch.nn.Module) -> None:
    """Replace the model's norms of known form, in place: for encoding, and so for learned merge weights.

    Experts train without, until the gradients of this form have been seen on a GPU.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.__class__ = FusedRMSNorm


def quiet_libraries() -> None:
    """Silence the libraries' own bars and notices; the pipeline shows its own progress."""
    # A GPU waits for one core's tokens; on a CPU the model needs the cores itself.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", str(device().type == "cuda").lower())
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)


def missing_files(folder: Path, *settings: str) -> str:
    """What a folder lacks to be loaded: one of the files `settings`, or weights in all their shards; empty if nothing.

    The hub's cache may hold a part of a model without knowing it, such as the settings that somebody has looked up.
    """
    if not any((folder / name).is_file() for name in settings):
        return " or ".join(settings)
    weights = [path for path in (*folder.glob("*.safetensors"), *folder.glob("0_*/*.safetensors")) if path.is_file()]
    shards = [int(found[1]) for path in weights if (found := SHARD.search(path.name))]
    return "" if len(weights) >= max(shards, default=1) else "*.safetensors"


def check_whole(model: torch.nn.Module, where: object) -> None:
    """`ModelError` if transformers found no weights for a part of the model and drew them at random.

    A pooler is no such part: many encoders are saved without theirs, and embeddings do without.
    """
    bare = {
        name
        for transformer in model.modules()
        if isinstance(transformer, PreTrainedModel)
        for name, parameter in transformer.named_parameters()
        # transformers 5.23 marks what it loaded or tied.
        if not getattr(parameter, "_is_hf_initialized", False) and "pooler" not in name.split(".")
    }
    if bare:
        raise ModelError(
            f"{where} has no weights for {len(bare)} of its model's parameters, such as {min(bare)}; the folder must "
            "be whole, with the names that transformers gives: fetch or save it again"
        )


def _check_encodable(model: SentenceTransformer, where: object) -> None:
    """`ModelError` for a model that takes queries and passages by ways of their own, or texts not as token ids."""
    if any(isinstance(module, Router) for module in model.modules()):
        raise ModelError(
            f"{where} has one encoder for queries and another for passages (Router), of which only one would be used "
            "here; name a model with one for both"
        )
    if not isinstance(getattr(model[0], "tokenizer", None), PreTrainedTokenizerBase):
        raise ModelError(
            f"{where} begins with a {type(model[0]).__name__}, which has no tokenizer of transformers; only models "
            "with one are run here, so name such a model"
        )


def _load_folder(folder: Path) -> SentenceTransformer:
    if not (folder / "modules.json").exists():
        step = "run `dvc repro` to make it" if folder.parts[:1] == ("models",) else "name another model"
        raise ModelError(f"{folder} is no sentence-transformers folder: it has no modules.json; {step}")
    quiet_libraries()
    try:
        model = SentenceTransformer(
            str(folder), device=str(device()), trust_remote_code=False, local_files_only=True,
            model_kwargs={"dtype": torch.float32, "use_safetensors": True},
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"cannot load the model {folder}: {brief(error)}; the folder must be whole, and code "
            "of its own is never run: fetch or make it again"
        ) from error
    check_whole(model, folder)
    _check_encodable(model, folder)
    return model


def saved_type(folder: Path) -> torch.dtype:
    """The type that a model folder's config says its weights are saved in (`torch_dtype` up to transformers 4); float32
    where it says nothing.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    return getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")  # type: ignore[no-any-return]


def load_model(folder: Path | str) -> SentenceTransformer:
    """Load a sentence-transformers folder, or a PEFT adapter folder added to the base that its config names, in
    float32. Where the base is saved in bfloat16, so are the sums' numbers (`stm.rounding.add_delta`).

    An adapter's prompts replace the base's. `ModelError` if the folder is neither, or the base is missing or of another
    shape, or it is no model that this project can encode with.
    """
    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG).exists():
        return _load_folder(folder)
    adapter = read_adapter(folder)
    model = _load_folder(Path(adapter.base))
    add_adapter(model, adapter, kind=saved_type(Path(adapter.base)))
    model.prompts = read_prompts(folder).as_model_prompts()
    return model
