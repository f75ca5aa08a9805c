"""Texts in, unit vectors out: batches of similar length under a token budget, so that hardly any padding is computed.

Works with any sentence-transformers model whose modules take token ids. Does not know what the texts are, and keeps no
store.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer

from stm.models import compute_dtype
from stm.pooled import skip_unpooled
from stm.progress import Meter

Embeddings = npt.NDArray[np.float32]
# Beyond this many tokens a forward pass on a CPU falls out of the caches; a GPU is filled by far more.
CPU_TOKENS, GPU_TOKENS = 2048, 65536
# A forward pass less costs about as much as a sixteenth of its tokens; padding beyond that costs more.
PADDING = 16


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


class Encoder:
    """Encodes with one model; `tokens` counts the tokens that were encoded, padding left out."""

    def __init__(self, model: SentenceTransformer, max_tokens: int = 0) -> None:
        """`max_tokens` is the padded size of one forward pass; 0 chooses by device."""
        skip_unpooled(model)
        self.model = model.eval()
        self.device = model.device
        self.max_tokens = max_tokens or (CPU_TOKENS if self.device.type == "cpu" else GPU_TOKENS)
        self.dtype = compute_dtype()
        self.tokens = 0

    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "encode") -> Embeddings:
        """Return float32 unit rows [N, D] in the order of `texts`, each text after `prompt`."""
        dimension = self.model.get_embedding_dimension() or 0
        if not texts:
            return np.zeros((0, dimension), dtype=np.float32)
        ids = self._tokenize([prompt + text for text in texts])
        lengths = [len(row) for row in ids]
        self.tokens += sum(lengths)
        out = np.empty((len(ids), dimension), dtype=np.float32)
        with Meter(description, len(ids)) as meter, torch.inference_mode():
            for batch in batches_by_length(lengths, self.max_tokens):
                out[batch] = self._forward([ids[index] for index in batch])
                meter.advance(len(batch))
        return out

    def encode_queries(self, texts: Sequence[str], description: str = "encode queries") -> Embeddings:
        """Encode with the model's own query prompt."""
        return self.encode(texts, self.model.prompts.get("query") or "", description)

    def encode_passages(self, texts: Sequence[str], description: str = "encode passages") -> Embeddings:
        """Encode with the model's own passage prompt, which sentence-transformers calls "document"."""
        return self.encode(texts, self.model.prompts.get("document") or "", description)

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        limit = self.model.max_seq_length
        rows = self.model.tokenizer(texts, truncation=limit is not None, max_length=limit, padding=False)["input_ids"]
        return [list(row) for row in rows]

    def _forward(self, rows: list[list[int]]) -> Embeddings:
        features = {
            key: tensor.to(self.device) for key, tensor in pad_rows(rows, self.model.tokenizer.pad_token_id).items()
        }
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            vectors = self.model(features)["sentence_embedding"]
        normalised: Embeddings = torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
        return normalised


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad token id rows on the right; return `input_ids` and `attention_mask`, both [rows, longest]."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[index, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}
