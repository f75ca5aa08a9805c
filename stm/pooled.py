"""A model with last-token pooling in, the same function with less work out: without what no pooled vector depends on.

Above the last attention a decoder works on each position alone, and last-token pooling reads one of them. The last MLP
holds three quarters of a layer's weights. Does not know where the texts come from; pooled vectors keep their values.
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


def _narrow(mlp: Callable[[Tensor], Tensor], seen: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        last = seen["last"]
        rows = torch.arange(len(last), device=x.device)
        found = mlp(x[rows, last])
        return x.new_zeros(x.shape, dtype=found.dtype).index_put((rows, last), found)

    return forward


def skip_unpooled(model: SentenceTransformer) -> bool:
    """Let the last MLP of the model's decoder see pooled positions only, in place; say whether that was possible.

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
    if getattr(layers[-1].mlp, "sees_pooled_only", False):
        return True
    seen: dict[str, Tensor] = {}

    def remember(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen["last"] = last_positions(args[0]["attention_mask"])

    model[0].register_forward_pre_hook(remember)
    layers[-1].mlp.forward = _narrow(layers[-1].mlp.forward, seen)
    layers[-1].mlp.sees_pooled_only = True
    return True
