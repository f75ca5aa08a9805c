"""An adapter folder from examples and a base folder: taken over from a finished sibling, or trained.

What only training needs is imported when it is needed, for a sibling is found in no time. Does not know splits or
variants.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from stm.chip import compute_dtype
from stm.files import atomic_directory, hash_code, remove_directory, sha256_texts, sha256_tree
from stm.params.train import TrainParams
from stm.progress import say, track
from stm.prompts import Prompts, write_prompts
from stm.train.batches import Example
from stm.train.dev import best_step, why_unlearned
from stm.train.finished import copy_adapter, find_same, record_training
from stm.train.processes import Processes, join_processes

# What computes a training.
TRAINING = (
    *sorted(f"train/{path.stem}" for path in Path(__file__).parent.glob("*.py")),
    "ahead", "chip", "compiled", "encode", "models", "packed", "pooled", "rounding", "words",
)  # fmt: skip
LIBRARIES = ("peft", "sentence-transformers", "torch", "transformers")


def describe_origin(base: Path, parts: Sequence[Sequence[Example]], params: TrainParams) -> dict[str, Any]:
    """What a training depends on, for its checkpoints and its siblings: base weights, rows of each split, params, code,
    precision.
    """
    counts = [len(part) for part in parts]
    rows = sha256_texts(repr(example) for example in track(chain.from_iterable(parts), "hash rows", sum(counts)))
    return {
        "base": sha256_tree(base),
        "rows": rows,
        "counts": counts,
        "code": hash_code(TRAINING, LIBRARIES),
        "precision": str(compute_dtype()),
        **params.model_dump(exclude={"checkpoint_steps", "must_learn"}),
    }


def train_adapter(
    base: Path, parts: Sequence[Sequence[Example]], prompts: Prompts, params: TrainParams, out: Path, work: Path,
    name: str,
) -> dict[str, Any]:  # fmt: skip
    """Train an adapter of `base` on the examples of one or several splits and write it to `out`; return the history.

    `work` holds the checkpoint while the training runs. A finished training of the same origin at `out` or beside it is
    taken over instead of repeated. A loss that is not finite is a `ModelError` with the row ids of its batch.
    Where a launcher started several processes, all of them call this, and the first writes.
    """
    processes = join_processes()
    origin, count = describe_origin(base, parts, params), sum(map(len, parts))
    same = find_same(out, origin)
    sibling = same.folder.name if same else "none"
    processes.agree(f"{name}: base, rows or finished sibling", (origin["base"], origin["rows"], sibling))
    if same:
        is_own = same.folder == out
        say(f"{name}: " + ("trained already" if is_own else f"as {same.folder.name}: the same base, rows and params"))
        _write(out, processes, prompts, partial(copy_adapter, same.folder))
        if is_own and processes.is_main:
            remove_directory(work)  # the training was killed before it dropped its checkpoint
        found = summarise(same.history, count, 0.0)
        return found if is_own else {**found, "same_as": same.folder.name}
    from stm.train.checkpoint import only_training
    from stm.train.loop import run_training
    from stm.train.lora import save_adapter

    with only_training(work) if processes.is_main else nullcontext():
        adapted, state = run_training(base, parts, params, origin, work, name, processes)

    def save(scratch: Path) -> None:
        save_adapter(adapted, base.as_posix(), scratch)
        record_training(scratch, origin, state.history)

    _write(out, processes, prompts, save)
    if processes.is_main:
        remove_directory(work)
    return summarise(state.history, count, state.seconds)


def _write(out: Path, processes: Processes, prompts: Prompts, save: Callable[[Path], None]) -> None:
    """Let the first process write the adapter, and all wait until it is there."""
    if processes.is_main:
        with atomic_directory(out) as scratch:
            save(scratch)
            write_prompts(prompts, scratch)
    processes.wait()


def summarise(history: Sequence[Mapping[str, float]], rows: int, seconds: float) -> dict[str, Any]:
    """The history with its totals, as the reports keep it."""
    tokens = int(sum(entry["tokens"] for entry in history))
    return {
        "rows": rows,
        "steps": len(history),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        **({"best_step": best_step(history)} if best_step(history) else {}),
        **({"unlearned": reason} if (reason := why_unlearned(history)) else {}),
        "history": list(history),
    }
