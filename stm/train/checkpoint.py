"""A training's state on disk, to go on from after an interruption: factors, optimizer moments, step, history, and the
best factors so far.

Safetensors and JSON only. A checkpoint remembers what it was trained with, and is refused for anything else. Knows
nothing of how a step is computed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stm.errors import ModelError
from stm.files import atomic_directory, read_json, remove_directory, write_json


@dataclass
class State:
    """How far a training is: the history of its finished steps, the factors at the best of them if known, and the
    seconds that processes before this one took.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """The finished steps."""
        return len(self.history)


def save_checkpoint(
    folder: Path, origin: Mapping[str, Any], state: State, parameters: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:  # fmt: skip
    """Write the state, the factors as they are and the optimizer's moments, whole or not at all."""
    tensors = {f"parameter/{name}": tensor.detach() for name, tensor in parameters.items()}
    tensors |= {f"best/{name}": tensor for name, tensor in state.best.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"moment/{index}/{key}"] = value
    with atomic_directory(folder) as scratch:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch / "state.safetensors")
        told = {"step": state.steps, "history": state.history, "seconds": state.seconds}
        write_json(scratch / "state.json", {"origin": dict(origin), **told})


def load_checkpoint(
    folder: Path, origin: Mapping[str, Any], parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> State:
    """Restore parameters and optimizer in place and return the state, a fresh one without a checkpoint.

    A checkpoint of other params, rows or base is a `ModelError` that names the first difference.
    """
    if not (folder / "state.json").exists():
        return State()
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
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("moment/"):
            _, index, key = name.split("/")
            moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    best = {name.removeprefix("best/"): tensor for name, tensor in tensors.items() if name.startswith("best/")}
    return State(list(saved["history"]), best, saved["seconds"])


def drop_checkpoint(folder: Path) -> None:
    """Remove the state once the result is in place."""
    remove_directory(folder)
