"""The training loop: examples and a base folder in, a PEFT adapter folder and a history out.

Every step encodes the distinct texts of its batch in chunks of similar length, so that no padding is computed, and is a
function of the state before it alone: a resumed run ends in the same bytes on a CPU. Does not know splits or variants.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from stm.encode import batches_by_length, pad_rows
from stm.errors import ModelError
from stm.files import atomic_directory, sha256_text, sha256_tree
from stm.models import compute_dtype, load_model
from stm.params.train import TrainParams
from stm.progress import Meter, say
from stm.prompts import Prompts, write_prompts
from stm.train.batches import Batch, Example, make_batch, plan_steps
from stm.train.checkpoint import drop_checkpoint, load_checkpoint, save_checkpoint
from stm.train.finished import copy_adapter, find_same, record_training
from stm.train.lora import attach, save_adapter, trainable
from stm.train.objective import false_negatives, info_nce


class Step:
    """One optimizer step's loss and gradients for a model."""

    def __init__(self, model: SentenceTransformer, params: TrainParams) -> None:
        self.model, self.params, self.dtype = model, params, compute_dtype()
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

    def run(self, batch: Batch) -> tuple[float, int]:
        """Accumulate the gradients of the batch; return its loss and the tokens encoded."""
        ids = self._tokenize(batch.texts)
        lengths = [len(row) for row in ids]
        chunks = list(batches_by_length(lengths, self.params.chunk_tokens))
        back = torch.argsort(torch.tensor([index for chunk in chunks for index in chunk])).to(self.device)
        rows = [[ids[index] for index in chunk] for chunk in chunks]
        if not self.params.cache_gradients:
            loss = self._loss(torch.cat([self._encode(chunk) for chunk in rows])[back], batch)
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach()), sum(lengths)
        return self._cached(rows, back, batch), sum(lengths)

    def _cached(self, rows: Sequence[Sequence[list[int]]], back: Tensor, batch: Batch) -> float:
        """GradCache, arXiv 2101.06983: the loss's gradient by embedding first, then one chunk at a time."""
        with torch.no_grad():
            flat = torch.cat([self._encode(chunk) for chunk in rows])
        flat.requires_grad_()
        loss = self._loss(flat[back], batch)
        (grads,) = torch.autograd.grad(loss, flat)
        start = 0
        for chunk in rows:
            vectors = self._encode(chunk)
            vectors.backward(grads[start : start + len(chunk)])  # type: ignore[no-untyped-call]
            start += len(chunk)
        return float(loss.detach())


def learning_rate(step: int, total: int, params: TrainParams) -> float:
    """Linear warm-up to the peak, then linear decay to 0 after the last step; `step` counts from 0."""
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    return params.learning_rate * max(0.0, (total - step) / max(1, total - params.warmup_steps))


def describe_origin(base: Path, examples: Sequence[Example], params: TrainParams) -> dict[str, Any]:
    """What a training depends on, for its checkpoints: base weights, rows and params."""
    rows = sha256_text(*(repr(example) for example in examples))
    return {"base": sha256_tree(base), "rows": rows, **params.model_dump(exclude={"checkpoint_steps"})}


def train_adapter(
    base: Path, examples: Sequence[Example], prompts: Prompts, params: TrainParams, out: Path, work: Path, name: str
) -> dict[str, Any]:
    """Train an adapter of `base` on the examples and write it to `out`; return the history.

    `work` holds the checkpoint while the training runs. A finished training of the same base, rows and params beside
    `out` is copied instead of repeated. A loss that is not finite is a `ModelError` with the row ids of its batch.
    """
    origin = describe_origin(base, examples, params)
    same = find_same(out, origin)
    if same:
        say(f"{name}: the same base, rows and params as {same.folder.name}, which is taken over")
        with atomic_directory(out) as scratch:
            copy_adapter(same.folder, scratch)
            write_prompts(prompts, scratch)
        return {**summarise(same.history, len(examples), 0.0), "same_as": same.folder.name}
    model = load_model(base)
    adapted = attach(model, params, fold=compute_dtype() == torch.float32)
    parameters = trainable(adapted)
    optimizer = torch.optim.AdamW(parameters.values(), lr=params.learning_rate, weight_decay=params.weight_decay)
    done, history = load_checkpoint(work, origin, parameters, optimizer)
    if done:
        say(f"{name}: going on after step {done}")
    steps = plan_steps(len(examples), params)
    started = time.monotonic()
    model.train()
    step = Step(model, params)
    with Meter(name, len(steps)) as meter:
        meter.advance(done)
        for index in range(done, len(steps)):
            batch = make_batch([examples[row] for row in steps[index]])
            history.append(_advance(step, batch, optimizer, parameters, learning_rate(index, len(steps), params)))
            if (index + 1) % params.checkpoint_steps == 0:
                save_checkpoint(work, origin, index + 1, history, parameters, optimizer)
            meter.advance(note=f"loss {history[-1]['loss']:.3f}")
    with atomic_directory(out) as scratch:
        save_adapter(adapted, base.as_posix(), scratch)
        record_training(scratch, origin, history)
        write_prompts(prompts, scratch)
    drop_checkpoint(work)
    return summarise(history, len(examples), time.monotonic() - started)


def _advance(
    step: Step, batch: Batch, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], rate: float
) -> dict[str, float]:
    loss, tokens = step.run(batch)
    if not math.isfinite(loss):
        rows = ", ".join(batch.row_ids[:8])
        raise ModelError(
            f"the loss became {loss} on a batch with the rows {rows}; lower the learning rate or check these rows"
        )
    norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), step.params.max_grad_norm)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return {"loss": loss, "tokens": float(tokens), "learning_rate": rate, "gradient_norm": float(norm)}


def summarise(history: Sequence[Mapping[str, float]], rows: int, seconds: float) -> dict[str, Any]:
    """The history with its totals, as the reports keep it."""
    tokens = int(sum(entry["tokens"] for entry in history))
    return {
        "rows": rows,
        "steps": len(history),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "history": list(history),
    }
