"""Selection: the variants of each split scored on the dev tasks and the best of each copied out, and prompts chosen for
the baseline.

Takes rows of the table of experts and model folders; does not know how they were trained, nor the params file.
"""

import gc
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stm.deltas import WEIGHTS_FILE
from stm.encode import Encoder
from stm.errors import ModelError
from stm.files import atomic_directory, sha256_file, sha256_text
from stm.merge.dev import DevSet, score_model
from stm.merge.prompt import score_prompts
from stm.metrics import mean
from stm.model_hash import ADAPTER_CONFIG
from stm.models import load_model
from stm.params.experts import ExpertRow
from stm.progress import say
from stm.prompts import FILE, own_prompts, read_prompts

COPIED = (ADAPTER_CONFIG, WEIGHTS_FILE, FILE)


@dataclass(frozen=True)
class Scored:
    """An expert and its row of the table, with its dev scores and the tokens that they cost."""

    name: str
    row: ExpertRow
    scores: Mapping[str, float]  # nDCG@10 by task
    mean: float
    tokens: int

    @property
    def complexity(self) -> int:
        """The order in which equals are preferred: ft, shn, po, shn_po."""
        return (self.row.negatives == "synthetic") + 2 * (self.row.instruction != "seed")

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the report."""
        return {**self.row.model_dump(), "tasks": dict(self.scores), "mean": self.mean, "tokens": self.tokens}


def score_expert(name: str, row: ExpertRow, folder: Path, dev: DevSet) -> Scored:
    """Load the adapter with its base and score it on `dev` with its own prompts."""
    gc.collect()  # the expert before: a model that computes in bfloat16 refers to itself, and may hold gigabytes
    model = load_model(folder)
    encoder = Encoder(model)
    by_task = score_model(dev, encoder, own_prompts(model.prompts)).tasks_overall()
    return Scored(name, row, by_task, mean(by_task), encoder.tokens)


def choose(scored: Sequence[Scored]) -> dict[str, Scored]:
    """Per split, in name order, the variant with the best mean; among equals the simplest, then the first by name."""
    best: dict[str, Scored] = {}
    for candidate in sorted(scored, key=lambda s: (s.row.split, -s.mean, s.complexity, s.name)):
        best.setdefault(candidate.row.split, candidate)
    return best


def select_experts(
    experts: Mapping[str, ExpertRow], folder: Path | str, dev: DevSet, output: Path | str
) -> dict[str, Any]:
    """Score the experts found as `folder/<name>`, copy the best per split to `output/<split>`, and return the table.

    `ModelError` if an expert has not been trained.
    """
    folder = Path(folder)
    missing = [name for name in experts if not (folder / name / ADAPTER_CONFIG).exists()]
    if missing:
        raise ModelError(f"the expert {missing[0]!r} is not in {folder}; run `dvc repro` to train it")
    scored: list[Scored] = []
    known: dict[str, Scored] = {}
    for name, row in sorted(experts.items()):
        key = sha256_text(*(sha256_file(folder / name / file) for file in COPIED))
        if key in known:  # where prompt search keeps the seed, two experts are the same adapter
            scored.append(replace(known[key], name=name, row=row, tokens=0))
        else:
            scored.append(score_expert(name, row, folder / name, dev))
            known[key] = scored[-1]
        say(f"select: {name} {scored[-1].mean:.4f}")
    best = choose(scored)
    with atomic_directory(output) as scratch:
        for split, chosen in best.items():
            (scratch / split).mkdir()
            for file in COPIED:
                shutil.copyfile(folder / chosen.name / file, scratch / split / file)
    return {
        "selected": {split: chosen.name for split, chosen in best.items()},
        "experts": {s.name: {**s.as_dict(), "is_selected": best[s.row.split] is s} for s in scored},
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
    if not (source / ADAPTER_CONFIG).exists():
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
