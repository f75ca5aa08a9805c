"""A model with last-token pooling in, the same function with less work out: nothing is computed that no pooled vector
depends on.

In its last layer a decoder needs keys and values of all positions, but queries and all that follows the attention of
one position alone, the pooled one. That is nine tenths of the layer's weights. Does not know where the texts come from;
pooled vectors keep their values.
"""

from collections.abc import Callable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import Tensor, nn


def last_positions(mask: Tensor) -> Tensor:
    """The index [B] of the last token that an attention mask [B, T] keeps, padded on the left or on the right."""
    return mask.shape[1] - 1 - mask.flip(1).argmax(1)


Places = tuple[Tensor, Tensor]  # rows [N] and columns [N] of the pooled positions


def _narrow(module: Callable[[Tensor], Any], seen: dict[str, Places]) -> Callable[[Tensor], Any]:
    def forward(x: Tensor) -> Any:
        out = module(x[seen["places"]][:, None])  # [N, 1, D]: the routers of experts ask for three dimensions
        found, *others = out if isinstance(out, tuple) else (out,)  # some give what they chose as well
        whole = found.new_zeros(*x.shape[:2], found.shape[-1]).index_put(seen["places"], found[:, 0])
        return (whole, *others) if others else whole

    return forward


def skip_unpooled(model: SentenceTransformer) -> bool:
    """Let the last layer of the model's decoder see pooled positions only, in place; say whether that was possible.

    The states of all other positions become meaningless, so this is for models that are asked for embeddings and
    nothing else. Models of another pooling or another form are left as they are.
    """
    if not any(isinstance(m, Pooling) and m.pooling_mode in ("lasttoken", ("lasttoken",)) for m in model):
        return False
    decoder = model[0].model
    decoder = decoder.get_base_model() if hasattr(decoder, "get_base_model") else decoder
    layers = getattr(decoder, "layers", None)
    if layers is None or not isinstance(getattr(layers[-1], "mlp", None), nn.Module):
        return False
    if getattr(layers[-1], "pooled_places", None) is not None:
        return True
    seen: dict[str, Places] = {}

    def remember(_: nn.Module, args: tuple[Any, ...]) -> None:
        last = last_positions(args[0]["attention_mask"])
        seen["places"] = torch.arange(len(last), device=last.device), last

    model[0].register_forward_pre_hook(remember)
    attention = getattr(layers[-1], "self_attn", None)
    # Modules that work on each position alone; where queries share a product with keys and values, it stays as it is.
    for module in (layers[-1].mlp, getattr(attention, "q_proj", None), getattr(attention, "o_proj", None)):
        if isinstance(module, nn.Module):
            module.forward = _narrow(module.forward, seen)
    layers[-1].pooled_places = seen
    return True


def see_places(decoder: nn.Module, rows: Tensor, columns: Tensor) -> None:
    """Say which positions the next pass of a decoder that `skip_unpooled` changed is pooled at."""
    decoder.layers[-1].pooled_places["places"] = rows, columns  # type: ignore[index, union-attr]
