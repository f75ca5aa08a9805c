"""One expert, or the all-data baseline: rows and instructions in, an adapter folder and its report out.

The shared body of the stages `train`, `train_all` and `warm_up`; it does not know the tables of params.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm.params.train import TrainParams
from stm.prompts import read_instruction, read_prompts, render
from stm.schema import read_rows
from stm.train.adapter import train_adapter
from stm.train.batches import Example, PromptSource, make_examples, plan_steps
from stm.train.dev import hold_out


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
    return make_examples(read_rows(share.rows), source, params), instruction


def same_steps(base: Path | str, shares: Sequence[Share], params: TrainParams) -> TrainParams:
    """Params of a training on all shares together that makes as many steps as one on each share does in sum.

    Shares smaller than a batch make batches of their own size, of which one pass over all together has fewer: it then
    takes more passes.
    """
    parts = [read_share(share, Path(base), params)[0] for share in shares]

    def trained_on(examples: Sequence[Example]) -> int:
        return len(hold_out(examples, params.dev_rows, params.seed)[0])

    steps = sum(len(plan_steps(trained_on(part), params)) for part in parts)
    together = trained_on([example for part in parts for example in part])
    passes = -(-steps // (together // min(params.batch_size, together)))
    return params.model_copy(update={"max_steps": steps, "epochs": max(params.epochs, passes)})


def train_expert(
    base: Path | str, shares: Sequence[Share], params: TrainParams, out: Path | str, work: Path | str, name: str
) -> dict[str, Any]:
    """Train an adapter of `base` on all shares together and return its report.

    The adapter carries the share's instruction as its query prompt; with several shares, the base's own.
    """
    base = Path(base)
    read = [read_share(share, base, params) for share in shares]
    prompts = read_prompts(base)
    if len(read) == 1:
        prompts = render(prompts.template, read[0][1], prompts.document)
    examples = [example for part, _ in read for example in part]
    history = train_adapter(base, examples, prompts, params, Path(out), Path(work), name)
    return {"name": name, "instruction": prompts.instruction, **history}
