"""Mixes experts in the memory of one loaded model, and puts the base's weights back exactly.

Only the tensors that the adapters change are kept twice, and of each expert one bit per weight where a method thins.
Nothing is written to disk. Does not know how a mix is scored.
"""

from types import TracebackType

import torch
from torch import nn

from stm.deltas import match_names
from stm.merge.experts import Experts
from stm.merge.methods import KeptMasks
from stm.merge.recipe import Recipe
from stm.models import saved_type
from stm.rounding import add_delta


class Mixer:
    """A context in which `model` (loaded from the experts' base) can be turned into any mix; leaving it restores the
    base.
    """

    def __init__(self, model: nn.Module, experts: Experts) -> None:
        parameters = dict(model.named_parameters())
        adapter = next(iter(experts.adapters.values()))
        names = match_names(adapter, parameters)
        self._parameters = {name: parameters[target] for name, target in names.items()}
        device = next(iter(self._parameters.values())).device
        self._adapters = {expert: adapter.to(device) for expert, adapter in experts.adapters.items()}
        self._masks = KeptMasks()
        self._kind = saved_type(experts.base)
        self._originals = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def mix(self, recipe: Recipe) -> None:
        """Give the model the weights `base + lambda * merged delta`, as saved, from the base's own weights."""
        for name, parameter in self._parameters.items():
            original = self._originals[name]
            delta = recipe.merged_delta(self._adapters, name, self._masks)
            parameter.copy_(original if delta is None else add_delta(original, delta, self._kind, name))

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model the base's weights, bit for bit."""
        for name, parameter in self._parameters.items():
            parameter.copy_(self._originals[name])

    def __enter__(self) -> "Mixer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
