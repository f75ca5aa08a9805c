"""Texts end to end in one row, and attention within each of them alone: no padding is computed, in one pass for all.

For decoders with last-token pooling on a GPU, whose attention is then flash attention of variable lengths. Gives the
embeddings of the padded form up to rounding. Does not know where the texts come from.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import chain
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from stm.pooled import see_places, skip_unpooled

ATTENTION = "stm_packed"
# Several heads of queries share one of keys; before torch 2.12 that needed no word.
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}


@dataclass(frozen=True)
class Packed:
    """N texts of T tokens in all: ids [T], positions within the text [T], int32 bounds [N + 1], the longest text."""

    ids: Tensor
    positions: Tensor
    bounds: Tensor
    longest: int

    def pinned(self) -> "Packed":
        """The same in memory that a GPU reads while it works."""
        return Packed(self.ids.pin_memory(), self.positions.pin_memory(), self.bounds.pin_memory(), self.longest)

    def to(self, device: torch.device) -> "Packed":
        """The same on that device."""
        ids, positions, bounds = (
            tensor.to(device, non_blocking=True) for tensor in (self.ids, self.positions, self.bounds)
        )
        return Packed(ids, positions, bounds, self.longest)


def is_packable(model: SentenceTransformer) -> bool:
    """Whether the model can take packed texts here: a bidirectional decoder of known form whose states are pooled and
    no more, in bfloat16, on a GPU.
    """
    if model.device.type != "cuda" or not skip_unpooled(model):
        return False
    if next(model[0].model.layers[-1].mlp.parameters()).dtype != torch.bfloat16:
        return False
    config = model[0].model.config
    if getattr(config, "is_causal", True) or not all(isinstance(m, (Pooling, Normalize)) for m in list(model)[1:]):
        return False
    window = getattr(config, "sliding_window", None)
    return getattr(config, "attn_logit_softcapping", None) is None and (
        not window or window >= (model.max_seq_length or window + 1)
    )


def group_rows(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """The indices in their order, cut into groups of at most `max_tokens` tokens, one text at least."""
    groups: list[list[int]] = []
    filled = 0
    for index, length in enumerate(lengths):
        if not groups or filled + length > max_tokens:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += length
    return groups


def pack_rows(rows: Sequence[Sequence[int]]) -> Packed:
    """Pack token id rows."""
    lengths = [len(row) for row in rows]
    sizes = torch.tensor(lengths)
    bounds = torch.zeros(len(rows) + 1, dtype=torch.int32)
    torch.cumsum(sizes, 0, out=bounds[1:])
    # A tenth of the time of torch.tensor on a list, in a thread that holds up the one that launches kernels meanwhile.
    ids = torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int64, sum(lengths)))
    starts = torch.repeat_interleave(bounds[:-1].long(), sizes)
    return Packed(ids, torch.arange(len(ids)) - starts, bounds, max(lengths))


def embed_packed(model: SentenceTransformer, packed: Packed) -> Tensor:
    """The pooled states [N, D] of the texts, of any length."""
    decoder = model[0].model
    ends = (packed.bounds[1:] - 1).long()
    see_places(decoder, torch.zeros_like(ends), ends)
    with _attention(decoder.config, ATTENTION):
        found = decoder(
            input_ids=packed.ids[None], position_ids=packed.positions[None], bounds=packed.bounds,
            longest=packed.longest, use_cache=False,
        )  # fmt: skip
    states: Tensor = found.last_hidden_state
    return states[0, ends]


@contextmanager
def _attention(config: Any, name: str) -> Iterator[None]:
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    _: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, bounds: Tensor | None = None, longest: int = 0, is_causal: bool = False, **__: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention as transformers asks for it: query [1, H, T, D], keys and values [1, H / G, T, D], out [1, T, H, D]."""
    assert bounds is not None
    assert attention_mask is None
    assert not is_causal
    heads, size = query.shape[1], query.shape[3]
    # Queries and keys were rotated in float32. Going back through `[0]` would fill and copy tensors of this size.
    q, k, v = (x.squeeze(0) for x in (query.to(value.dtype), key.to(value.dtype), value))
    if query.is_cuda:
        q, k, v = (x.transpose(0, 1).contiguous() for x in (q, k, v))
        found = varlen_attn(q, k, v, bounds, bounds, longest, longest, scale=scaling, **GROUPED)
        assert isinstance(found, Tensor)  # for the type checker: it can return more
    else:
        text = torch.searchsorted(bounds[1:].contiguous(), torch.arange(query.shape[2]), right=True)
        mask = text[:, None] == text[None, :]
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scaling, enable_gqa=True)
        found = found.transpose(0, 1)
    return found.reshape(1, -1, heads, size), None


AttentionInterface.register(ATTENTION, _attend)
