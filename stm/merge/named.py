"""Further mergekit methods by name, through SentenceTransformer.merge on full models made from the adapters.

For methods that this package has no row for: all models are in memory at once, and nothing is searched. Scores and
prompts are handled as for any other mix.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from stm.deltas import add_adapter
from stm.errors import ParamsError
from stm.files import atomic_directory, write_text
from stm.folders import complete_folder
from stm.merge.experts import Experts
from stm.merge.materialise import write_model_prompts
from stm.models import load_model, saved_type
from stm.rounding import add_delta

Parameters = Mapping[str, float | bool | Mapping[str, float]]


def merge_by_name(experts: Experts, method: str, parameters: Parameters, seed: int = 0) -> SentenceTransformer:
    """Merge the experts' full models by mergekit's `method`, in float32 with numbers of the base's type; models are
    numbered in name order.

    A method of two models, such as slerp, goes from the first expert to the second. A parameter that is a mapping gives
    one value per expert; `seed` is for methods that draw. `ParamsError` for an unknown method or expert, for another
    number of experts than two under a method of two, and with mergekit's words for parameters that it refuses.
    """
    # Imported here: few merges go this way, and mergekit takes seconds to import.
    from mergekit.merge_methods import BasePolicy
    from mergekit.merge_methods import get as find_mergekit_method
    from mergekit.merge_methods.registry import registered_methods

    known = sorted(row.spec.name for row in registered_methods())
    if method not in known:
        raise ParamsError(f"mergekit has no method {method!r}; it has {', '.join(known)}")
    numbered = {name: _by_index(name, value, experts.names) for name, value in parameters.items()}
    contract = find_mergekit_method(method).spec.contract
    is_of_two = contract.max_inputs == 2
    if is_of_two and len(experts.names) != 2:
        raise ParamsError(
            f"mergekit's method {method!r} goes from one expert to another, and there are {len(experts.names)} "
            f"({', '.join(experts.names)}); take another merge.mergekit.method, or merge two experts"
        )
    models = []
    for adapter in experts.adapters.values():
        models.append(load_model(experts.base))
        add_adapter(models[-1], adapter)
    base = models[0] if is_of_two else None
    if contract.base == BasePolicy.REQUIRED and not is_of_two:
        base = load_model(experts.base)
    torch.manual_seed(seed)  # some methods draw masks from the global generator
    try:
        merged = SentenceTransformer.merge(models, method, base_model=base, parameters=numbered)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ParamsError(f"mergekit refuses to merge by {method!r}: {' '.join(str(error).split())}") from error
    _round(merged, experts)
    return merged


@torch.no_grad()
def _round(model: SentenceTransformer, experts: Experts) -> None:
    """Give the model the numbers that it is saved with, so that what is scored is what is written."""
    kind = saved_type(experts.base)
    if kind == torch.float32:
        return
    base = dict(load_model(experts.base).named_parameters())
    for name, parameter in model.named_parameters():
        parameter.copy_(add_delta(base[name], parameter - base[name], kind, name))


def _by_index(name: str, value: Any, experts: list[str]) -> Any:
    if not isinstance(value, Mapping):
        return value
    if sorted(value) != sorted(experts):
        raise ParamsError(
            f"merge.mergekit.parameters.{name} names {sorted(value)}; give one value for each of {experts}"
        )
    return {index: value[expert] for index, expert in enumerate(experts)}


def write_named(
    experts: Experts, model: SentenceTransformer, prompts: Mapping[str, str], folder: Path | str, card: str
) -> None:
    """Save the merged model with its prompts and its card, whole or not at all; it is left in the base's type."""
    model.to(saved_type(experts.base))
    with atomic_directory(folder) as scratch:
        model.save(str(scratch), create_model_card=False, safe_serialization=True)
        complete_folder(scratch, experts.base)
        write_model_prompts(scratch, prompts)
        write_text(scratch / "README.md", card)
