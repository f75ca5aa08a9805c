"""One batch in, its loss and gradients out: distinct texts in chunks of similar length, shared among processes.

No padding to speak of is computed, and the loss sees all embeddings of all processes at once. Does not know optimizers,
steps or files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from stm.encode import Inputs, Passes
from stm.params.train import TrainParams
from stm.train.batches import Batch
from stm.train.objective import chance_loss, false_negatives, info_nce
from stm.train.processes import Processes

ALONE = Processes()


@dataclass(frozen=True)
class Ready:
    """A batch as the model takes it: the chunks of its texts that this process encodes, and the inputs of each."""

    batch: Batch
    tokens: int  # of all texts, without padding
    chunks: list[Tensor]  # of each chunk, where its texts lie in the batch
    inputs: list[Inputs]
    mask: Tensor  # [B, M]: what must not be contrasted
    chance: float  # the loss of embeddings that tell nothing apart

    def to(self, device: torch.device) -> "Ready":
        """The same with all indices on the device.

        Before anything is launched: a GPU ends what it has to do before it takes such a copy.
        """
        batch = replace(self.batch, queries=self.batch.queries.to(device), candidates=self.batch.candidates.to(device))
        return replace(self, batch=batch, chunks=[chunk.to(device) for chunk in self.chunks], mask=self.mask.to(device))


def fair_share(lengths: Sequence[int], max_tokens: int, processes: int) -> int:
    """The tokens of a chunk, at most `max_tokens`, that give every process as many chunks of about the same size."""
    if processes == 1:
        return max_tokens
    rounds = math.ceil(sum(lengths) / (processes * max_tokens))
    return min(max_tokens, math.ceil(sum(lengths) / (rounds * processes)) + max(lengths))


class Step:
    """The loss of a batch and its gradients, computed by all processes together.

    Each process encodes its share of the batch's chunks; the embeddings are gathered, so that every process contrasts
    all of them, and one process alone computes the same.
    """

    def __init__(self, model: SentenceTransformer, params: TrainParams, processes: Processes = ALONE) -> None:
        self.params, self.processes, self.device = params, processes, model.device
        self.dimension = model.get_embedding_dimension() or 0
        self.passes = Passes(model)

    def prepare(self, batch: Batch) -> Ready:
        """Tokenize the batch and cut it into chunks; may run in a thread of its own."""
        ids = self.passes.tokenize(batch.texts)
        lengths = [len(row) for row in ids]
        chunks = self.passes.cut(lengths, fair_share(lengths, self.params.chunk_tokens, self.processes.count))
        chunks = chunks[self.processes.rank :: self.processes.count]
        inputs = [self.passes.arrange([ids[index] for index in chunk]) for chunk in chunks]
        mask = false_negatives(batch.ids)
        places = [torch.tensor(chunk) for chunk in chunks]
        return Ready(batch, sum(lengths), places, inputs, mask, chance_loss(mask, self.params.symmetric))

    def _loss(self, vectors: Tensor, ready: Ready) -> Tensor:
        queries, candidates = vectors[ready.batch.queries], vectors[ready.batch.candidates]
        return info_nce(queries, candidates, ready.mask, self.params.temperature, self.params.symmetric)

    def _gather(self, count: int, chunks: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
        """The embeddings [count, D] of all texts, without history, from this process's chunks and all others'."""
        flat = torch.zeros(count, self.dimension, device=self.device)
        for chunk, part in zip(chunks, vectors, strict=True):
            flat[chunk] = part.detach()
        return self.processes.add_up(flat)

    def run(self, ready: Ready) -> tuple[Tensor, int]:
        """Accumulate this process's part of the gradients; return the loss and the tokens of the whole batch.

        The loss's gradient by embedding comes first. With `cache_gradients` (GradCache, arXiv 2101.06983) a chunk is
        then encoded again, so that one graph at a time is held.
        """
        ready = ready.to(self.device)
        chunks, cached = ready.chunks, self.params.cache_gradients
        with torch.set_grad_enabled(not cached):
            encoded = [self.passes.embed(inputs) for inputs in ready.inputs]
        flat = self._gather(len(ready.batch.texts), chunks, encoded).requires_grad_()
        loss = self._loss(flat, ready)
        (grads,) = torch.autograd.grad(loss, flat)
        for place in reversed(range(len(chunks))):
            vectors = encoded.pop()
            if cached:
                vectors = self.passes.embed(ready.inputs[place])
            vectors.backward(grads[chunks[place]])  # type: ignore[no-untyped-call]
        return loss.detach(), ready.tokens

    def _encode(self, ready: Ready) -> Tensor:
        """The embeddings [texts, D] of a batch on the device, without history."""
        return self._gather(len(ready.batch.texts), ready.chunks, [self.passes.embed(i) for i in ready.inputs])

    @torch.no_grad()
    def find_broken(self, ready: Ready) -> list[str]:
        """The ids of the batch's rows of which a text has an embedding that is not finite."""
        ready = ready.to(self.device)
        is_broken = ~self._encode(ready).isfinite().all(1)
        owners = ready.batch.owners[is_broken[ready.batch.candidates].cpu()]
        found = {*is_broken[ready.batch.queries].nonzero().flatten().tolist(), *owners.tolist()}
        return [ready.batch.row_ids[row] for row in sorted(found)]

    @torch.no_grad()
    def measure(self, ready: Ready) -> float:
        """The loss of the batch alone."""
        ready = ready.to(self.device)
        return float(self._loss(self._encode(ready), ready))
