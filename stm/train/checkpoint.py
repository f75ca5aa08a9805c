"""A training's state on disk, to go on from after an interruption: factors, optimizer moments, step, history, and the
best factors so far.

One safetensors file, replaced at once. A checkpoint remembers what it was trained with, and is refused for anything
else. Knows nothing of how a step is computed.
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stm.errors import ModelError, brief
from stm.files import atomic_file

STATE = "state.safetensors"
PATIENCE_SECONDS = 10.0  # processes of a launcher that was killed end within a second or two


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
    told = {"origin": dict(origin), "history": state.history, "seconds": state.seconds}
    with atomic_file(folder / STATE) as scratch:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, scratch, {"told": json.dumps(told, allow_nan=False)})


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What the checkpoint says of itself (origin, history, seconds) and its tensors; None where there is none.

    `ModelError` where its file is damaged.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as stream:
            told: dict[str, Any] = json.loads(stream.metadata()["told"])
            return told, {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the checkpoint {path} cannot be read ({brief(error)}); delete {folder} to train from the start"
        ) from error


def load_checkpoint(
    folder: Path, origin: Mapping[str, Any], parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> State:
    """Restore parameters and optimizer in place and return the state, a fresh one without a checkpoint.

    A checkpoint of other params, rows or base is a `ModelError` that names the first difference.
    """
    found = read_checkpoint(folder)
    if found is None:
        return State()
    saved, tensors = found
    current = json.loads(json.dumps(dict(origin)))
    for key in sorted({*saved["origin"], *current}):
        if saved["origin"].get(key) != current.get(key):
            raise ModelError(
                f"the checkpoint {folder} was made with {key} = {saved['origin'].get(key)!r}, "
                f"not {current.get(key)!r}; "
                f"delete {folder} to train from the start"
            )
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


@contextlib.contextmanager
def only_training(folder: Path) -> Iterator[None]:
    """Hold the lock of the checkpoint `folder`; `ModelError` if another process still has it after a wait."""
    path = folder.parent / f".{folder.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    with path.open("w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ModelError(
                        f"another process is training with the checkpoint {folder}; wait for it, or end it"
                    ) from error
                time.sleep(0.2)
        yield
