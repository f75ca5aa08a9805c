"""A training's state on disk, to go on from after an interruption: factors, optimizer moments, step, history.

Safetensors and JSON only. A checkpoint remembers what it was trained with, and is refused for anything else. Knows
nothing of how a step is computed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stm.errors import ModelError
from stm.files import atomic_directory, read_json, remove_directory, write_json

State = tuple[int, list[dict[str, float]]]


def save_checkpoint(
    folder: Path, origin: Mapping[str, Any], step: int, history: list[dict[str, float]],
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer,
) -> None:  # fmt: skip
    """Write the state after `step` finished steps, whole or not at all."""
    tensors = {f"parameter/{name}": tensor.detach() for name, tensor in parameters.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"moment/{index}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    with atomic_directory(folder) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch / "state.safetensors")
        write_json(scratch / "state.json", {"origin": dict(origin), "step": step, "history": history})


def load_checkpoint(
    folder: Path, origin: Mapping[str, Any], parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> State:
    """Restore parameters and optimizer in place; return the finished steps and their history, (0, []) without a
    checkpoint.

    A checkpoint of other params, rows or base is a `ModelError` that names the first difference.
    """
    if not (folder / "state.json").exists():
        return 0, []
    saved = read_json(folder / "state.json")
    current = json.loads(json.dumps(dict(origin)))
    for key in sorted({*saved["origin"], *current}):
        if saved["origin"].get(key) != current.get(key):
            raise ModelError(
                f"the checkpoint {folder} was made with {key} = {saved['origin'].get(key)!r}, "
                f"not {current.get(key)!r}; "
                f"delete {folder} to train from the start"
            )
    tensors = load_file(folder / "state.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("moment/"):
            _, index, key = name.split("/")
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(saved["step"]), list(saved["history"])


def drop_checkpoint(folder: Path) -> None:
    """Remove the state once the result is in place."""
    remove_directory(folder)
