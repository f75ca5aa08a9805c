"""The shared start of all experts: a short contrastive training on all splits, folded into the backbone.

A raw decoder cannot embed, and experts that each learn that alone merge badly (the seed phase of Branch-Train-Merge,
arXiv 2208.03306). Backbone and rows in, a full sentence-transformers folder out.
"""

import logging
from pathlib import Path
from typing import Any

import polars as pl
from sentence_transformers import SentenceTransformer

from stm.encode import Passes
from stm.files import atomic_directory
from stm.folders import complete_folder
from stm.massive import TEXTS, find_massive, why_unsteady
from stm.models import load_model, saved_type
from stm.params.train import TrainParams
from stm.progress import say
from stm.prompts import own_prompts, read_prompts, write_prompts
from stm.schema import read_rows
from stm.train.expert import Share, train_expert
from stm.train.processes import join_processes

SAMPLE = 1000  # passages that are looked at for their length
MUCH_CUT = 0.1  # share of them that is worth a word

logger = logging.getLogger(__name__)


def fold_adapter(adapter: Path, base: Path, out: Path | str) -> None:
    """Write the base of `adapter` with its delta added as a full folder, in the type that the base was saved in."""
    model = load_model(adapter)
    model.to(saved_type(base))
    model.prompts = read_prompts(base).as_model_prompts()
    with atomic_directory(out) as scratch:
        model.save(str(scratch), create_model_card=False)
        complete_folder(scratch, base)
        write_prompts(read_prompts(base), scratch)


def sample_texts(model: SentenceTransformer, rows: pl.DataFrame) -> list[str]:
    """The first rows' queries and passages, with the model's prompts."""
    rows, prompts = rows[: TEXTS // 2], own_prompts(model.prompts)
    return [
        prompts[kind] + text
        for kind, column in (("query", "anchor"), ("document", "positive"))
        for text in rows[column]
    ]


def inspect_backbone(base: Path | str, rows: Path | str) -> dict[str, Any]:
    """Where the raw decoder has its massive activations and of what share of the passages it sees the beginning alone,
    for the report; what that endangers is said as well.
    """
    model, table = load_model(base), read_rows(rows)
    cut = Passes(model).share_cut(table["positive"][:SAMPLE].to_list(), own_prompts(model.prompts)["document"])
    if cut >= MUCH_CUT:
        say(
            f"warm_up: {cut:.0%} of the passages are longer than the {model.max_seq_length} tokens that the model "
            "takes of a text, and are cut; raise backbone.max_tokens if the rest matters"
        )
    found = find_massive(model, sample_texts(model, table))
    if reason := why_unsteady(found):
        logger.warning("warm_up: %s", reason)
    return {"massive": found, "cut": cut, **({"unsteady": reason} if reason else {})}


def warm_up(
    base: Path | str, rows: Path | str, params: TrainParams, out: Path | str, work: Path | str
) -> dict[str, Any]:
    """Train on the rows, fold the result into `out` and return the report; 0 steps are refused by the params."""
    seen = inspect_backbone(base, rows) if join_processes().is_main else {}
    adapter = Path(work) / "adapter"
    report = train_expert(base, [Share(Path(rows))], params, adapter, Path(work) / "checkpoint", "warm_up")
    if join_processes().is_main:
        fold_adapter(adapter, Path(base), out)
    return {**seen, **report}
