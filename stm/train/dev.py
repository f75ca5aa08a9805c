"""What a training's history says: early stop and the best state by the loss on held-out rows, and whether it learned.

The measurements are entries of the history (`dev_loss` at the step after which it was taken), so that a resumed
training decides as an undisturbed one. Does not know how a loss is computed.
"""

import random
from collections.abc import Mapping, Sequence

from scipy.cluster.hierarchy import DisjointSet

from stm.errors import DataError
from stm.train.batches import Example

DEV_LOSS = "dev_loss"
FAR_ABOVE = 1.5  # times chance; trainings that were stuck at chance ended at 1.0 to 1.2 of it, unfinished ones at 1.8
LONGER = "train longer (max_steps, or epochs where the rows are few)"
History = Sequence[Mapping[str, float]]


def hold_out(examples: Sequence[Example], count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Return the rows to train on and at least `count` rows to measure on, drawn by the seed; 0 holds out none.

    Rows of one concept, or with the same positive, stay together, so that no measured passage is trained on as a
    positive; groups of more than `count` rows are held out only where there are not enough smaller ones, the smallest
    first. `DataError` if fewer than two rows would be left to train on.
    """
    if not count:
        return list(examples), []
    groups = _group(examples)
    keys = sorted(groups)
    random.Random(f"{seed}:dev").shuffle(keys)
    keys.sort(key=lambda key: len(groups[key]) if len(groups[key]) > count else 0)
    held: set[int] = set()
    for key in keys:
        if len(held) >= count:
            break
        held.update(groups[key])
    if len(examples) - len(held) < 2:
        raise DataError(
            f"dev_rows is {count}, but of {len(examples)} rows, in {len(groups)} groups of one concept or passage, "
            f"which stay together, {len(examples) - len(held)} would be left to train on; hold out fewer, or 0"
        )
    kept = [example for index, example in enumerate(examples) if index not in held]
    return kept, [examples[index] for index in sorted(held)]


def _group(examples: Sequence[Example]) -> dict[str, list[int]]:
    """The rows by what ties them together: a concept or a positive that they share, directly or over other rows."""
    ties = [(f"p{example.positive}", f"c{example.concept}" if example.concept else "") for example in examples]
    sets = DisjointSet()
    for positive, concept in ties:
        sets.add(positive)
        if concept:
            sets.add(concept)
            sets.merge(positive, concept)
    roots: dict[str, str] = {}
    for joined in sets.subsets():
        roots |= dict.fromkeys(joined, min(joined))
    groups: dict[str, list[int]] = {}
    for index, (positive, _) in enumerate(ties):
        groups.setdefault(roots[positive], []).append(index)
    return groups


def best_step(history: History) -> int:
    """The step, counted from 1, with the lowest loss on the held-out rows, the first of equals; 0 if none was taken."""
    taken = [(entry[DEV_LOSS], number) for number, entry in enumerate(history, 1) if DEV_LOSS in entry]
    return min(taken)[1] if taken else 0


def is_stale(history: History, patience: int) -> bool:
    """Whether the last `patience` measurements brought nothing better; never with a patience of 0."""
    best = best_step(history)
    return bool(patience and best and sum(DEV_LOSS in entry for entry in history[best:]) >= patience)


def why_unlearned(history: History) -> str:
    """Why the training taught nothing, in a sentence with what to do; empty if it did.

    The end of what is kept, its last quarter, four to ten steps, is compared with embeddings that tell nothing
    apart. A raw decoder begins above; a rate that is too high, or massive activations without a token of their own,
    keep it there, and one that is too low leaves it far above, on its way down (docs/training.md).
    """
    kept = history[: best_step(history) or None]  # what came after the best step was undone
    last = kept[-min(10, max(4, len(kept) // 4)) :]  # fewer would be the noise of a batch or two
    if not last:
        return ""
    loss, chance = (sum(entry[key] for entry in last) / len(last) for key in ("loss", "chance"))
    if not chance:
        return (
            "every other passage of every batch counts as an answer too, as where all rows are of one concept: there "
            "was nothing to contrast, and nothing was learned; give the rows hard negatives or finer concepts"
        )
    if loss <= 0.98 * chance:
        return ""
    if loss > FAR_ABOVE * chance:
        return (
            f"the loss ended at {loss:.2f}, where embeddings that tell nothing apart have {chance:.2f}: too few steps "
            f"for its rate; {LONGER}"
        )
    return (
        f"the loss ended at chance ({loss:.2f}, embeddings that tell nothing apart have {chance:.2f}), and nothing was "
        f"learned; {LONGER}, put a token before every text where the decoder is deep (backbone.bos_token), take a "
        "lower learning rate where the loss rose or a higher one where it hardly moved, or use fewer layers "
        "(backbone.layers)"
    )
