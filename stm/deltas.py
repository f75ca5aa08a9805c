"""What a PEFT adapter folder adds to its base: one weight delta per tensor.

Reads `adapter_config.json` and `adapter_model.safetensors` and gives `delta = scale * B @ A` in fp32, with
`scale = alpha / rank` (`alpha / sqrt(rank)` for rslora). Adapters whose effect is not such a delta are refused. Does
not know which base they will be added to.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stm.errors import ModelError
from stm.model_hash import ADAPTER_CONFIG
from stm.rounding import add_delta

WEIGHTS_FILE = "adapter_model.safetensors"
# Fields of LoraConfig that make an adapter more than `scale * B @ A` on the weights, and what to say of them.
UNSUPPORTED = {
    "use_dora": "DoRA rescales the base weights",
    "modules_to_save": "whole modules were trained beside the adapter",
    "trainable_token_indices": "single token embeddings were trained beside the adapter",
    "lora_bias": "the B factors have a bias",
    "layer_replication": "layers of the base are replicated",
    "alora_invocation_tokens": "it is active on some tokens only",
    "use_qalora": "QALoRA pools the inputs",
    "use_bdlora": "its factors are block-diagonal",
    "arrow_config": "Arrow routes every token by itself",
    "velora_config": "VeLoRA changes the forward pass",
    "monteclora_config": "its factors are random variables",
    "kasa_config": "KaSA changes the base weights",
    "target_parameters": "bare parameters are targeted, not linear layers",
}
# Initialisations that subtract something from the base weights: the saved factors alone do not give the trained model.
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_FACTOR = re.compile(r"^base_model\.model\.(?P<module>.+)\.(?P<factor>lora_(?:embedding_)?[AB])(?:\.weight)?$")


@dataclass(frozen=True)
class Factors:
    """Factors `a` [rank, in] and `b` [out, rank] of one tensor; its delta is `scale * b @ a`, or that transposed."""

    a: Tensor
    b: Tensor
    scale: float
    is_transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the delta."""
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.is_transposed else (rows, columns)

    def to(self, device: torch.device) -> "Factors":
        """The same factors on that device."""
        return replace(self, a=self.a.to(device), b=self.b.to(device))


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter: its folder, the base named in its config, its factors by the base's tensor name in name
    order.
    """

    folder: Path
    base: str
    factors: Mapping[str, Factors]

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of the base that it changes, such as `layers.0.mlp.up_proj.weight`, sorted."""
        return tuple(self.factors)

    def to(self, device: torch.device) -> "Adapter":
        """The same adapter with its factors, and so its deltas, on that device."""
        return replace(self, factors={name: factors.to(device) for name, factors in self.factors.items()})

    def delta(self, name: str) -> Tensor:
        """The fp32 difference that it makes to the base's tensor `name`, in that tensor's shape."""
        factors = self.factors[name]
        delta = (factors.b.float() @ factors.a.float()) * factors.scale
        return delta.T.contiguous() if factors.is_transposed else delta


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}; a PEFT adapter folder needs it") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}); train the expert again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelError(f"{path} does not describe a LoRA adapter; only peft_type LORA can be merged")
    return config


def _check_config(config: Mapping[str, Any], folder: Path) -> None:
    for key, reason in UNSUPPORTED.items():
        if config.get(key):
            raise ModelError(f"the adapter {folder} uses {key}: {reason}; no weight delta says that, train plain LoRA")
    if config.get("bias", "none") != "none":
        raise ModelError(f"the adapter {folder} trained biases (bias={config['bias']!r}); train it with bias='none'")
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(BASE_CHANGING_INITS):
        raise ModelError(
            f"the adapter {folder} was initialised by {init!r}, which changes the base weights; "
            "save it with path_initial_model_for_weight_conversion or train it with the default"
        )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path} does not exist; adapters are read from safetensors only") from error
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error}); train the expert again") from error


def _lookup(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that ends the module's name, as peft.utils.other.get_pattern_key finds it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _group(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, dict[str, Tensor]]:
    path = folder / WEIGHTS_FILE
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(tensors.items()):
        if key.endswith(".base_layer.weight"):
            continue  # PEFT saves the frozen embedding of the base beside the factors of an adapted one
        found = _FACTOR.match(key)
        if not found:
            what = "DoRA magnitudes" if "magnitude" in key else "a tensor that is no LoRA factor"
            raise ModelError(f"{path} holds {what}, {key!r}; only lora_A and lora_B can be merged")
        if tensor.ndim != 2:
            raise ModelError(f"{path}: {key!r} has {tensor.ndim} dimensions; only linear layers can be merged")
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{path}: {key!r} holds NaN or infinity; train the expert with a lower rate")
        groups.setdefault(found["module"], {})[found["factor"]] = tensor
    return groups


def _factors(module: str, pair: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> Factors:
    is_embedding = "lora_embedding_A" in pair or "lora_embedding_B" in pair
    names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A", "lora_B")
    if sorted(pair) != sorted(names):
        raise ModelError(f"{folder / WEIGHTS_FILE}: {module!r} has {sorted(pair)}; expected {sorted(names)}")
    a, b = pair[names[0]], pair[names[1]]
    rank = int(_lookup(config.get("rank_pattern"), module, config.get("r", a.shape[0])))
    if not rank == a.shape[0] == b.shape[1]:
        raise ModelError(
            f"the adapter {folder}: {module!r} has factors of shape {list(a.shape)} and {list(b.shape)}, "
            f"its config says rank {rank}; the two files do not belong together"
        )
    alpha = float(_lookup(config.get("alpha_pattern"), module, config.get("lora_alpha", rank)))
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Factors(a, b, scale, is_embedding or bool(config.get("fan_in_fan_out")))


def read_adapter(folder: Path | str) -> Adapter:
    """Read a PEFT LoRA adapter folder.

    `ModelError` if a file is missing or broken, if the adapter is not a plain weight delta (DoRA, biases, whole
    modules, ...), if its files disagree, or if a tensor holds NaN (the message names it).
    """
    folder = Path(folder)
    config = _read_config(folder)
    _check_config(config, folder)
    groups = _group(_read_tensors(folder), folder)
    if not groups:
        raise ModelError(f"{folder / WEIGHTS_FILE} holds no factors; train the expert again")
    factors = {f"{module}.weight": _factors(module, pair, config, folder) for module, pair in groups.items()}
    return Adapter(folder, str(config.get("base_model_name_or_path") or ""), dict(sorted(factors.items())))


def _prefix(name: str, available: Sequence[str]) -> str | None:
    found = [other[: len(other) - len(name)] for other in available if other == name or other.endswith("." + name)]
    return min(found, key=len) if found else None


def match_names(adapter: Adapter, available: Iterable[str]) -> dict[str, str]:
    """Map each tensor name of the adapter to the name in `available` (keys of a state dict or of safetensors files).

    One prefix on either side may differ (`model.` of a causal language model, `0.model.` of a sentence-transformers
    module). `ModelError` names the first tensor that the base lacks.
    """
    refusal = "the adapter {} changes {!r}, which the base lacks; it is of another base"
    pool = sorted(available)
    known = set(pool)
    for strip in ("", "model."):
        if not all(name.startswith(strip) for name in adapter.names):
            continue
        prefix = _prefix(adapter.names[0].removeprefix(strip), pool)
        if prefix is None:
            continue
        names = {name: prefix + name.removeprefix(strip) for name in adapter.names}
        missing = [name for name in adapter.names if names[name] not in known]
        if missing:
            raise ModelError(refusal.format(adapter.folder, missing[0]))
        return names
    raise ModelError(refusal.format(adapter.folder, adapter.names[0]))


def check_shape(adapter: Adapter, name: str, shape: Sequence[int]) -> None:
    """`ModelError` unless the delta of `name` has the base tensor's `shape`."""
    if tuple(shape) != adapter.factors[name].shape:
        raise ModelError(
            f"the adapter {adapter.folder} changes {name!r} with shape {list(adapter.factors[name].shape)}, "
            f"the base has {list(shape)}; it is of another base or vocabulary"
        )


@torch.no_grad()
def add_adapter(model: nn.Module, adapter: Adapter, kind: torch.dtype = torch.float32) -> None:
    """Add the adapter's deltas to the weights of `model`, in place, as `add_delta` does for the type `kind` of the
    saved base; an error changes nothing.
    """
    parameters = dict(model.named_parameters())
    names = match_names(adapter, parameters)
    for name, target in names.items():
        check_shape(adapter, name, parameters[target].shape)
    for name, target in names.items():
        parameter = parameters[target]
        parameter.copy_(add_delta(parameter, adapter.delta(name).to(parameter.device), kind, name))
