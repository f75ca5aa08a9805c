"""The optimizer steps: examples and a base folder in, the trained PEFT model and its history out.

Every step is a function of the state before it alone: a resumed run ends in the same bytes on a CPU. Does not know
splits, variants or where the result goes.
"""

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from torch import Tensor

from stm.ahead import ahead
from stm.chip import compute_dtype
from stm.errors import DataError, ModelError
from stm.models import load_model
from stm.params.train import TrainParams
from stm.progress import Meter, say
from stm.train.batches import Example, make_batch, plan_together
from stm.train.checkpoint import State, load_checkpoint, save_checkpoint
from stm.train.dev import DEV_LOSS, best_step, hold_out, is_stale, why_unlearned
from stm.train.lora import attach, trainable
from stm.train.processes import Processes
from stm.train.step import Ready, Step


def learning_rate(step: int, total: int, params: TrainParams) -> float:
    """Linear warm-up to the peak, then linear decay to 0 after the last step; `step` counts from 0."""
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    return params.learning_rate * max(0.0, (total - step) / max(1, total - params.warmup_steps))


def run_training(
    base: Path, parts: Sequence[Sequence[Example]], params: TrainParams, origin: Mapping[str, Any], work: Path,
    name: str, processes: Processes,
) -> tuple[PeftModel, State]:  # fmt: skip
    """Go on from the checkpoint, or begin, and return the model at its last or best step and the final state.

    `parts` are the rows of the splits that are trained on together, each with `params.dev_rows` for the measurements.
    """
    began = time.monotonic()
    rows, held, steps = plan_rows(parts, params, name)
    model, adapted = load_in_turn(base, params, processes)
    parameters = trainable(adapted)
    optimizer = make_optimizer(parameters, params)
    state = load_checkpoint(work, origin, parameters, optimizer)
    processes.agree(f"{name}: the step to go on from", state.steps)
    if state.steps:
        say(f"{name}: going on after step {state.steps}")
    model.eval()  # no dropout of the backbone: GradCache encodes twice and must see the same
    step = Step(model, params, processes)
    step.passes.check_prompts(e.query.removesuffix(e.anchor) for e in chain.from_iterable(parts))
    step.passes.check_prompts(e.passage_prompt for e in chain.from_iterable(parts))
    dev = prepare_dev(step, held, name)
    seed_rounding(params.seed, state.steps)
    batches = ahead(steps[state.steps :], lambda chosen: step.prepare(make_batch([rows[row] for row in chosen])))
    with Meter(name, len(steps)) as meter:
        meter.advance(state.steps)
        while state.steps < len(steps) and not is_stale(state.history, params.patience):
            number = state.steps + 1
            rate = learning_rate(number - 1, len(steps), params)
            state.history.append(advance(step, next(batches), optimizer, parameters, rate))
            seed_rounding(params.seed, number)
            if dev and (number % params.dev_steps == 0 or number == len(steps)):
                measure(step, dev, state, parameters)
            if number % params.checkpoint_steps == 0 and processes.is_main:
                spent = state.seconds + time.monotonic() - began
                save_checkpoint(work, origin, replace(state, seconds=spent), parameters, optimizer)
            meter.advance(note=f"loss {state.history[-1]['loss']:.3f}")
    if (reason := why_unlearned(state.history)) and not params.must_learn:  # else the error says it
        say(f"{name}: {reason}")
    with torch.no_grad():
        for key, tensor in state.best.items():
            parameters[key].copy_(tensor)
    state.seconds += time.monotonic() - began
    return adapted, state


def plan_rows(
    parts: Sequence[Sequence[Example]], params: TrainParams, name: str
) -> tuple[list[Example], list[Example], list[list[int]]]:
    """The rows that are trained on, those that are held out, and per step the places of its rows among the former."""
    examples = list(chain.from_iterable(parts))
    rows, held = hold_out(examples, params.dev_rows * len(parts), params.seed)
    kept = {id(example) for example in rows}
    steps = plan_together([sum(id(example) in kept for example in part) for part in parts], params)
    if params.warmup_steps >= len(steps):
        say(f"{name}: its {len(steps)} steps are all within warmup_steps ({params.warmup_steps}); the rate only rises")
    if len(held) > 2 * params.dev_rows * len(parts):
        say(f"{name}: {len(held)} rows are held out, for those of one concept or passage stay together")
    return rows, held, steps


def prepare_dev(step: Step, held: Sequence[Example], name: str) -> Ready | None:
    """The held-out rows as a batch, None where there are none; `DataError` where nothing can be measured on them."""
    if not held:
        return None
    dev = step.prepare(make_batch(held))
    if not dev.chance:
        raise DataError(
            f"{name}: the {len(held)} held-out rows are of one concept, without hard negatives, so that nothing can be "
            "measured on them; raise dev_rows, use hard negatives, or set dev_rows to 0"
        )
    return dev


def measure(step: Step, dev: Ready, state: State, parameters: Mapping[str, Tensor]) -> None:
    """Enter the loss on the held-out rows into the last step's entry, and keep the parameters where it is the best."""
    state.history[-1][DEV_LOSS] = measured = step.measure(dev)
    refuse_infinite({"loss on held-out rows": measured}, step, dev)
    if best_step(state.history) == state.steps:
        state.best = {name: parameter.detach().clone() for name, parameter in parameters.items()}


def load_in_turn(base: Path, params: TrainParams, processes: Processes) -> tuple[SentenceTransformer, PeftModel]:
    """The base with fresh factors, loaded by one process after the other: each holds it in float32 in main memory until
    it is on its GPU.
    """
    for turn in range(processes.count):
        if turn == processes.rank:
            model = load_model(base)
            adapted = attach(model, params, compute_dtype())
        processes.wait()
    return model, adapted


def seed_rounding(seed: int, step: int) -> None:
    """Begin the noise that rounds the folded weights anew, so that it follows from the finished steps alone."""
    torch.manual_seed(random.Random(f"{seed}:{step}").getrandbits(63))


def make_optimizer(parameters: Mapping[str, Tensor], params: TrainParams) -> torch.optim.Optimizer:
    """AdamW on the factors; in one kernel where they lie on a GPU."""
    is_fused = next(iter(parameters.values())).is_cuda
    return torch.optim.AdamW(
        parameters.values(), lr=params.learning_rate, weight_decay=params.weight_decay, fused=is_fused or None
    )


def advance(
    step: Step, batch: Ready, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], rate: float
) -> dict[str, float]:
    """Make one optimizer step on the batch and return its entry of the history.

    `ModelError` with the row ids of the batch, and nothing changed, if the loss or its gradient is not finite.
    """
    found, tokens = step.run(batch)
    step.processes.add_up_gradients(parameters.values())
    norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), step.params.max_grad_norm)
    loss, length = float(found), float(norm)
    refuse_infinite({"loss": loss, "gradient's norm": length}, step, batch)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    # The fused kernel's writes are not counted (torch 2.13), and weights are folded anew only where writes are counted.
    torch.autograd.graph.increment_version(list(parameters.values()))
    optimizer.zero_grad()
    return {
        "loss": loss, "chance": batch.chance, "tokens": float(tokens),
        "learning_rate": rate, "gradient_norm": length,
    }  # fmt: skip


def refuse_infinite(values: Mapping[str, float], step: Step, batch: Ready) -> None:
    """`ModelError` that names a value which is not finite, and the rows whose embeddings are not; else, all rows."""
    what = next((name for name, value in values.items() if not math.isfinite(value)), "")
    if not what:
        return
    broken = step.find_broken(batch)
    if broken:
        raise ModelError(
            f"the {what} became {values[what]}, since the embeddings are not finite of the rows {', '.join(broken)}; "
            "check their texts and the base, or lower the learning rate"
        )
    raise ModelError(
        f"the {what} became {values[what]} on the batch of the rows {', '.join(batch.batch.row_ids)}; lower the "
        "learning rate or check them"
    )
