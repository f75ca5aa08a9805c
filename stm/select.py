"""Selection: the variants of each split scored on the dev tasks and the best of each copied out, and prompts chosen for
the baseline.

Takes variants as plain values and model folders; does not know how they were trained, nor the params file.
"""

import gc
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stm.encode import Encoder
from stm.errors import ModelError
from stm.files import atomic_directory, sha256_file, sha256_text
from stm.merge.dev import DevSet, Scores, score_model
from stm.merge.prompt import score_prompts
from stm.metrics import mean
from stm.models import load_model
from stm.progress import say
from stm.prompts import FILE, own_prompts, read_prompts

COPIED = ("adapter_config.json", "adapter_model.safetensors", FILE)


@dataclass(frozen=True)
class Variant:
    """One expert: `negatives` is mined or synthetic, `instruction` is seed, searched or pool."""

    name: str
    split: str
    negatives: str
    instruction: str

    @property
    def complexity(self) -> int:
        """The order in which equals are preferred: ft, shn, po, shn_po."""
        return (self.negatives == "synthetic") + 2 * (self.instruction != "seed")


@dataclass(frozen=True)
class Scored:
    """A variant with its dev scores and the tokens that they cost."""

    variant: Variant
    scores: Mapping[str, float]  # nDCG@10 by task
    mean: float
    tokens: int


def score_variant(variant: Variant, folder: Path, dev: DevSet) -> Scored:
    """Load the adapter with its base and score it on `dev` with its own prompts."""
    gc.collect()  # the variant before: a model that computes in bfloat16 refers to itself, and may hold gigabytes
    model = load_model(folder)
    encoder = Encoder(model)
    scores: Scores = score_model(dev, encoder, own_prompts(model.prompts))
    by_task = scores.tasks_overall()
    return Scored(variant, by_task, mean(by_task), encoder.tokens)


def choose(scored: Sequence[Scored]) -> dict[str, Scored]:
    """Per split, in name order, the variant with the best mean; among equals the simplest, then the first by name."""
    best: dict[str, Scored] = {}
    for candidate in sorted(scored, key=lambda s: (s.variant.split, -s.mean, s.variant.complexity, s.variant.name)):
        best.setdefault(candidate.variant.split, candidate)
    return best


def select_experts(variants: Sequence[Variant], folder: Path | str, dev: DevSet, output: Path | str) -> dict[str, Any]:
    """Score the variants found as `folder/<name>`, copy the best per split to `output/<split>`, and return the table.

    `ModelError` if a variant has not been trained.
    """
    folder = Path(folder)
    missing = [variant.name for variant in variants if not (folder / variant.name / COPIED[0]).exists()]
    if missing:
        raise ModelError(f"the expert {missing[0]!r} is not in {folder}; run `dvc repro` to train it")
    scored: list[Scored] = []
    known: dict[str, Scored] = {}
    for variant in sorted(variants, key=lambda v: v.name):
        key = sha256_text(*(sha256_file(folder / variant.name / name) for name in COPIED))
        if key in known:  # where prompt search keeps the seed, two variants are the same adapter
            scored.append(replace(known[key], variant=variant, tokens=0))
        else:
            scored.append(score_variant(variant, folder / variant.name, dev))
            known[key] = scored[-1]
        say(f"select: {variant.name} {scored[-1].mean:.4f}")
    best = choose(scored)
    with atomic_directory(output) as scratch:
        for split, chosen in best.items():
            (scratch / split).mkdir()
            for name in COPIED:
                shutil.copyfile(folder / chosen.variant.name / name, scratch / split / name)
    return {
        "selected": {split: chosen.variant.name for split, chosen in best.items()},
        "experts": {s.variant.name: _row(s, best[s.variant.split] is s) for s in scored},
        "dev": {"tasks": dev.sizes, "metric": "ndcg_at_10"},
    }


def prompt_baseline(
    name: str, experts: Sequence[str], folder: Path | str, dev: DevSet, output: Path | str
) -> dict[str, Any]:
    """Score the adapter `folder/<name>` with its own prompts and with those of `experts`, and write it with the best to
    `output/<name>`; return the table.

    A merge chooses among the prompts of the base and of the experts on dev; the baseline that it must beat has the
    same choice. Passages are encoded once. `ModelError` if the baseline has not been trained.
    """
    source = Path(folder) / name
    if not (source / COPIED[0]).exists():
        raise ModelError(f"the baseline is not in {source}; run `dvc repro train_all` to train it")
    candidates = {proposer: read_prompts(Path(folder) / proposer).as_model_prompts() for proposer in (name, *experts)}
    scored = score_prompts(dev, Encoder(load_model(source)), candidates)
    means = [mean(candidate.scores.tasks_overall()) for candidate in scored]
    best = means.index(max(means))
    proposer = scored[best].proposed_by[0]
    with atomic_directory(Path(output) / name) as scratch:
        for file in COPIED:
            shutil.copyfile((Path(folder) / proposer if file == FILE else source) / file, scratch / file)
    say(f"select: {name} {means[best]:.4f} with the prompts of {proposer}")
    rows = [
        {"proposed_by": list(candidate.proposed_by), **candidate.as_model_prompts(), "mean": value}
        for candidate, value in zip(scored, means, strict=True)
    ]
    return {"name": name, "mean": means[best], "tasks": scored[best].scores.tasks_overall(), "prompts": rows}


def _row(scored: Scored, is_selected: bool) -> dict[str, Any]:
    variant = scored.variant
    return {
        "split": variant.split,
        "negatives": variant.negatives,
        "instruction": variant.instruction,
        "tasks": dict(scored.scores),
        "mean": scored.mean,
        "tokens": scored.tokens,
        "is_selected": is_selected,
    }
