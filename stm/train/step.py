"""One batch in, its loss and gradients out: distinct texts in chunks of similar length, shared among processes.

No padding to speak of is computed, and the loss sees all embeddings of all processes at once. Does not know optimizers,
steps or files.
"""

from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from stm.encode import batches_by_length, pad_rows
from stm.models import compute_dtype
from stm.params.train import TrainParams
from stm.train.batches import Batch
from stm.train.objective import false_negatives, info_nce
from stm.train.processes import Processes

ALONE = Processes()


class Step:
    """The loss of a batch and its gradients, computed by all processes together.

    Each process encodes its share of the batch's chunks; the embeddings are gathered, so that every process contrasts
    all of them, and one process alone computes the same.
    """

    def __init__(self, model: SentenceTransformer, params: TrainParams, processes: Processes = ALONE) -> None:
        self.model, self.params, self.dtype, self.processes = model, params, compute_dtype(), processes
        self.device = model.device

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        limit = self.model.max_seq_length
        rows = self.model.tokenizer(list(texts), truncation=True, max_length=limit, padding=False)["input_ids"]
        return [list(row) for row in rows]

    def _encode(self, rows: Sequence[list[int]]) -> Tensor:
        padded = pad_rows(rows, self.model.tokenizer.pad_token_id)
        features = {key: tensor.to(self.device) for key, tensor in padded.items()}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            vectors = self.model(features)["sentence_embedding"]
        return torch.nn.functional.normalize(vectors.float(), dim=-1)

    def _loss(self, vectors: Tensor, batch: Batch) -> Tensor:
        mask = false_negatives(batch.ids).to(self.device)
        queries, candidates = vectors[batch.queries], vectors[batch.candidates]
        return info_nce(queries, candidates, mask, self.params.temperature, self.params.symmetric)

    def _chunks(self, ids: Sequence[list[int]]) -> list[list[int]]:
        """The chunks of texts that this process encodes; the budget is the same for all, so they are as long."""
        chunks = list(batches_by_length([len(row) for row in ids], self.params.chunk_tokens))
        return chunks[self.processes.rank :: self.processes.count]

    def _gather(self, count: int, chunks: Sequence[list[int]], vectors: Sequence[Tensor]) -> Tensor:
        """The embeddings [count, D] of all texts, without history, from this process's chunks and all others'."""
        flat = torch.zeros(count, self.model.get_embedding_dimension() or 0, device=self.device)
        for chunk, part in zip(chunks, vectors, strict=True):
            flat[chunk] = part.detach()
        return self.processes.add_up(flat)

    def run(self, batch: Batch) -> tuple[float, int]:
        """Accumulate this process's part of the gradients; return the loss and the tokens of the whole batch.

        The loss's gradient by embedding comes first. With `cache_gradients` (GradCache, arXiv 2101.06983) a chunk is
        then encoded again, so that one graph at a time is held.
        """
        ids = self._tokenize(batch.texts)
        chunks, cached = self._chunks(ids), self.params.cache_gradients
        with torch.set_grad_enabled(not cached):
            encoded = [self._encode([ids[index] for index in chunk]) for chunk in chunks]
        flat = self._gather(len(ids), chunks, encoded).requires_grad_()
        loss = self._loss(flat, batch)
        (grads,) = torch.autograd.grad(loss, flat)
        for place in reversed(range(len(chunks))):
            chunk, vectors = chunks[place], encoded.pop()
            if cached:
                vectors = self._encode([ids[index] for index in chunk])
            vectors.backward(grads[chunk])  # type: ignore[no-untyped-call]
        return float(loss.detach()), sum(map(len, ids))

    @torch.no_grad()
    def measure(self, batch: Batch) -> float:
        """The loss of the batch alone."""
        ids = self._tokenize(batch.texts)
        chunks = self._chunks(ids)
        encoded = [self._encode([ids[index] for index in chunk]) for chunk in chunks]
        return float(self._loss(self._gather(len(ids), chunks, encoded), batch))
