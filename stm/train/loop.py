"""The training loop: examples and a base folder in, a PEFT adapter folder and a history out.

Every step encodes the distinct texts of its batch in chunks of similar length, so that no padding is computed, and is a
function of the state before it alone: a resumed run ends in the same bytes on a CPU. Does not know splits or variants.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
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
from stm.train.dev import DEV_LOSS, best_step, hold_out, is_stale, snapshot
from stm.train.finished import copy_adapter, find_same, record_training
from stm.train.lora import attach, save_adapter, trainable
from stm.train.objective import false_negatives, info_nce
from stm.train.processes import Processes, join_processes

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
    Where a launcher started several processes, all of them call this, and the first writes.
    """
    processes = join_processes()
    origin = describe_origin(base, examples, params)
    same = find_same(out, origin)
    processes.wait()
    if same:
        say(f"{name}: the same base, rows and params as {same.folder.name}, which is taken over")
        _write(out, processes, prompts, partial(copy_adapter, same.folder))
        return {**summarise(same.history, len(examples), 0.0), "same_as": same.folder.name}
    started = time.monotonic()
    adapted, history = _train(base, examples, params, origin, work, name, processes)

    def save(scratch: Path) -> None:
        save_adapter(adapted, base.as_posix(), scratch)
        record_training(scratch, origin, history)

    _write(out, processes, prompts, save)
    if processes.is_main:
        drop_checkpoint(work)
    return summarise(history, len(examples), time.monotonic() - started)


def _write(out: Path, processes: Processes, prompts: Prompts, save: Callable[[Path], None]) -> None:
    """Let the first process write the adapter, and all wait until it is there."""
    if processes.is_main:
        with atomic_directory(out) as scratch:
            save(scratch)
            write_prompts(prompts, scratch)
    processes.wait()


def _train(
    base: Path, examples: Sequence[Example], params: TrainParams, origin: Mapping[str, Any], work: Path, name: str,
    processes: Processes,
) -> tuple[PeftModel, list[dict[str, float]]]:  # fmt: skip
    """Go on from the checkpoint, or begin, and return the model at its last or best step and the history."""
    rows, held = hold_out(examples, params.dev_rows, params.seed)
    steps = plan_steps(len(rows), params)
    model = load_model(base)
    adapted = attach(model, params, compute_dtype())
    parameters = trainable(adapted)
    optimizer = torch.optim.AdamW(parameters.values(), lr=params.learning_rate, weight_decay=params.weight_decay)
    state = load_checkpoint(work, origin, parameters, optimizer)
    processes.wait()
    if state.steps:
        say(f"{name}: going on after step {state.steps}")
    model.train()
    step, dev = Step(model, params, processes), make_batch(held)
    with Meter(name, len(steps)) as meter:
        meter.advance(state.steps)
        while state.steps < len(steps) and not is_stale(state.history, params.patience):
            number = state.steps + 1
            batch = make_batch([rows[row] for row in steps[number - 1]])
            rate = learning_rate(number - 1, len(steps), params)
            state.history.append(advance(step, batch, optimizer, parameters, rate))
            if held and (number % params.dev_steps == 0 or number == len(steps)):
                state.history[-1][DEV_LOSS] = step.measure(dev)
                if best_step(state.history) == number:
                    state.best = snapshot(parameters)
            if number % params.checkpoint_steps == 0 and processes.is_main:
                save_checkpoint(work, origin, state, parameters, optimizer)
            meter.advance(note=f"loss {state.history[-1]['loss']:.3f}")
    with torch.no_grad():
        for key, tensor in state.best.items():
            parameters[key].copy_(tensor)
    return adapted, state.history


def advance(
    step: Step, batch: Batch, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], rate: float
) -> dict[str, float]:
    """Make one optimizer step on the batch and return its entry of the history."""
    loss, tokens = step.run(batch)
    if not math.isfinite(loss):
        rows = ", ".join(batch.row_ids[:8])
        raise ModelError(
            f"the loss became {loss} on a batch with the rows {rows}; lower the learning rate or check these rows"
        )
    step.processes.add_up_gradients(parameters.values())
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
        **({"best_step": best_step(history)} if best_step(history) else {}),
        "history": list(history),
    }
