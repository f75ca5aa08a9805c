"""Texts in, unit vectors out: batches of similar length under a token budget, so that hardly any padding is computed.

Works with any sentence-transformers model whose modules take token ids. Does not know what the texts are, and keeps no
store.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.utils.rnn import pad_sequence

from stm.ahead import ahead
from stm.chip import compute_dtype
from stm.compiled import compile_layers
from stm.errors import DataError
from stm.models import compute_in, fuse_norms
from stm.packed import Packed, embed_packed, group_rows, is_packable, pack_rows
from stm.pooled import skip_unpooled
from stm.progress import Meter
from stm.prompts import own_prompts

Embeddings = npt.NDArray[np.float32]
# Beyond this many tokens a forward pass on a CPU falls out of the caches; a GPU is filled by far more.
CPU_TOKENS, GPU_TOKENS = 2048, 65536
# A forward pass less costs about as much as a sixteenth of its tokens; padding beyond that costs more.
PADDING = 16
# Texts that are tokenized at a time, while the model works on those before; padded ones are sorted by length.
PACKED_SLAB, PADDED_SLAB = 4096, 65536


def batches_by_length(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield index lists of similar length, the longest first, each of at most `max_tokens` padded tokens (one text at
    least), of which at most one in `PADDING` is padding.
    """
    batch: list[int] = []
    width = padding = 0
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        wasted = padding + width - lengths[index]
        if batch and ((len(batch) + 1) * width > max_tokens or wasted * PADDING > max_tokens):
            yield batch
            batch = []
        width, padding = (width, wasted) if batch else (max(1, lengths[index]), 0)
        batch.append(index)
    if batch:
        yield batch


Inputs = Packed | dict[str, torch.Tensor]  # of one pass: packed, or padded: `input_ids` and `attention_mask`


class Passes:
    """How a model takes texts on its device: packed where it can be, else padded, and what it makes of them."""

    def __init__(self, model: SentenceTransformer) -> None:
        self.model, self.device = model, model.device
        self.is_packed = is_packable(model)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, truncated to the model's length, with what its tokenizer adds."""
        limit = self.model.max_seq_length
        rows = self.model.tokenizer(list(texts), truncation=limit is not None, max_length=limit, padding=False)
        return [list(row) for row in rows["input_ids"]]

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """`DataError` if one of the prompts fills the model's length, so that nothing of a text behind it is seen."""
        distinct = sorted(set(prompts))
        rows = self.model.tokenizer(distinct, padding=False)["input_ids"] if distinct else []
        for prompt, row in zip(distinct, rows, strict=True):
            if len(row) >= (self.model.max_seq_length or math.inf):
                raise DataError(
                    f"a prompt takes {len(row)} tokens and leaves none of the {self.model.max_seq_length} of a text to "
                    f"what follows it: {prompt[:80]!r}; shorten the prompt, or raise backbone.max_tokens for models "
                    "that are made here"
                )

    def share_cut(self, texts: Sequence[str], prompt: str = "") -> float:
        """The share of the texts of which the model's length cuts something off, behind the prompt."""
        limit = self.model.max_seq_length
        if limit is None or not texts:
            return 0.0
        rows = self.model.tokenizer([prompt + text for text in texts], padding=False, verbose=False)["input_ids"]
        return float(np.mean([len(row) > limit for row in rows]))

    def cut(self, lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
        """The indices of all texts in passes of at most `max_tokens` tokens, padding included."""
        return group_rows(lengths, max_tokens) if self.is_packed else list(batches_by_length(lengths, max_tokens))

    def arrange(self, rows: Sequence[list[int]]) -> Inputs:
        """The inputs of one pass; needs no chip, and may run in a thread of its own."""
        is_pinned = self.device.type == "cuda"  # so that the copy to a GPU goes on while it works
        if self.is_packed:
            packed = pack_rows(rows)
            return packed.pinned() if is_pinned else packed
        padded = pad_rows(rows, self.model.tokenizer.pad_token_id)
        return {key: value.pin_memory() for key, value in padded.items()} if is_pinned else padded

    def embed(self, inputs: Inputs) -> torch.Tensor:
        """Unit rows [N, D] in float32."""
        if isinstance(inputs, Packed):
            vectors = embed_packed(self.model, inputs.to(self.device))
        else:
            there = {key: value.to(self.device, non_blocking=True) for key, value in inputs.items()}
            vectors = self.model(there)["sentence_embedding"]
        return torch.nn.functional.normalize(vectors.float(), dim=-1)


class Encoder:
    """Encodes with one model; `tokens` counts the tokens that were encoded, padding left out."""

    def __init__(self, model: SentenceTransformer, max_tokens: int = 0, compiled: bool = False) -> None:
        """`max_tokens` is the padded size of one forward pass; 0 chooses by device. `compiled` has torch compile the
        layers of a decoder with last-token pooling, and leaves other models as they are.

        The model computes, and so is held, in the type that `compute_dtype` names.
        """
        is_decoder = skip_unpooled(model)
        compute_in(model, compute_dtype())
        if compute_dtype() != torch.float32:
            fuse_norms(model)
        if compiled and is_decoder:
            compile_layers(model[0].model)
        self.model = model.eval()
        self.passes = Passes(model)
        self.max_tokens = max_tokens or (CPU_TOKENS if model.device.type == "cpu" else GPU_TOKENS)
        self.tokens = 0

    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "encode") -> Embeddings:
        """Return float32 unit rows [N, D] in the order of `texts`, each text after `prompt`."""
        dimension = self.model.get_embedding_dimension() or 0
        if not texts:
            return np.zeros((0, dimension), dtype=np.float32)
        out = np.empty((len(texts), dimension), dtype=np.float32)
        slab = PACKED_SLAB if self.passes.is_packed else PADDED_SLAB
        slabs = [range(start, min(start + slab, len(texts))) for start in range(0, len(texts), slab)]
        made = ahead(slabs, lambda rows: self._arrange(texts, prompt, rows))
        passes: Iterator[tuple[Any, Any]] = itertools.chain(itertools.chain.from_iterable(made), [(None, None)])
        last: tuple[list[int], Callable[[], Embeddings]] | None = None
        with Meter(description, len(texts)) as meter, torch.inference_mode():
            for rows, inputs in passes:
                # A GPU works on this pass while the one before is fetched.
                found = (rows, _begin_fetch(self.passes.embed(inputs))) if rows is not None else None
                if last is not None:
                    out[last[0]] = last[1]()
                    meter.advance(len(last[0]))
                last = found
        return out

    def _arrange(self, texts: Sequence[str], prompt: str, slab: range) -> list[tuple[list[int], Inputs]]:
        """The passes of the texts at the places of the slab, each with its places."""
        ids = self.passes.tokenize([prompt + texts[index] for index in slab])
        lengths = [len(row) for row in ids]
        self.tokens += sum(lengths)
        cut = self.passes.cut(lengths, self.max_tokens)
        return [([slab[i] for i in rows], self.passes.arrange([ids[i] for i in rows])) for rows in cut]

    def encode_queries(self, texts: Sequence[str]) -> Embeddings:
        """Encode with the model's own query prompt."""
        return self._encode_as("query", texts, "encode queries")

    def encode_passages(self, texts: Sequence[str]) -> Embeddings:
        """Encode with the model's own passage prompt, by whichever name it has one."""
        return self._encode_as("document", texts, "encode passages")

    def _encode_as(self, kind: str, texts: Sequence[str], description: str) -> Embeddings:
        prompt = own_prompts(self.model.prompts)[kind]
        self.passes.check_prompts([prompt])
        return self.encode(texts, prompt, description)


def _begin_fetch(vectors: torch.Tensor) -> Callable[[], Embeddings]:
    """Begin to copy vectors from the device; what is returned waits for them, not for what was launched since."""
    host = vectors.to("cpu", non_blocking=True)
    if not vectors.is_cuda:
        return host.numpy
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def wait() -> Embeddings:
        done.synchronize()
        found: Embeddings = host.numpy()
        return found

    return wait


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad token id rows on the right; return `input_ids` and `attention_mask`, both [rows, longest]."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return {"input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id), "attention_mask": mask}
