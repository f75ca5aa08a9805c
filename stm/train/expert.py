"""One expert, or the all-data baseline: rows and instructions in, an adapter folder and its report out.

The shared body of the stages `train`, `train_all` and `warm_up`; it does not know the tables of params.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm.errors import DataError, ModelError
from stm.params.train import TrainParams
from stm.prompts import read_instruction, read_prompts, render
from stm.schema import read_rows
from stm.train.adapter import train_adapter
from stm.train.batches import Example, PromptSource, check_count, make_examples


@dataclass(frozen=True)
class Share:
    """The rows of one split and the file of its instructions; no file: the base's own instruction."""

    rows: Path
    instructions: Path | None = None


def read_share(share: Share, base: Path, params: TrainParams) -> tuple[list[Example], str]:
    """Return the examples of a share and the instruction that they carry."""
    prompts = read_prompts(base)
    instruction, pool = read_instruction(share.instructions) if share.instructions else (prompts.instruction, [])
    source = PromptSource(prompts.template, prompts.document, instruction, pool)
    try:
        examples = make_examples(read_rows(share.rows), source, params)
        check_count(len(examples))
    except DataError as error:
        raise DataError(f"{share.rows.stem}: {error}") from error
    return examples, instruction


def train_expert(
    base: Path | str, shares: Sequence[Share], params: TrainParams, out: Path | str, work: Path | str, name: str
) -> dict[str, Any]:
    """Train an adapter of `base` on all shares together and return its report.

    The adapter carries the share's instruction as its query prompt; with several shares, the base's own. Several shares
    have the budget of a training on each of them in sum: the same rows, as often, in as many steps.
    With `params.must_learn` a loss that ended at chance is a `ModelError`, after the adapter was written.
    """
    base = Path(base)
    read = [read_share(share, base, params) for share in shares]
    prompts = read_prompts(base)
    if len(read) == 1:
        prompts = render(prompts.template, read[0][1], prompts.document)
    history = train_adapter(base, [part for part, _ in read], prompts, params, Path(out), Path(work), name)
    if params.must_learn and "unlearned" in history:
        raise ModelError(
            f"{name}: {history['unlearned']}. What builds on it would be worth no more; to go on all the same, set "
            "must_learn: false"
        )
    return {"name": name, "instruction": prompts.instruction, **history}
