"""Massive activations are found where they lie, in every family, and only those on pooled tokens are warned of."""

from pathlib import Path

import pytest
import torch

from stm.backbone import FAMILIES
from stm.massive import find_massive, why_unsteady
from stm.models import load_model
from tests.pico import pico_backbone

TEXTS = ["fever", "cough", "a long text about fevers", "pain"]
TOKENS = {"pooled": "<eos>", "first": "f"}


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("where", TOKENS)
def test_they_are_found_where_they_lie(architecture: str, where: str, tmp_path: Path) -> None:
    model = load_model(pico_backbone(tmp_path / "base", architecture))
    nothing = {"tokens_per_text": 0, "first": 0, "pooled": 0}
    assert find_massive(model, TEXTS) == nothing
    with torch.no_grad():
        model[0].model.embed_tokens.weight[model.tokenizer.convert_tokens_to_ids(TOKENS[where]), 3] = 1e4
    model[0].model.layers = model[0].model.layers[:1]  # params allow a single one
    per_text = {"pooled": 1.0, "first": 0.5}[where]  # "fever" and "fevers" begin with an f
    share = {"pooled": 1.0, "first": 0.25}[where]
    assert find_massive(model, TEXTS) == {**nothing, "tokens_per_text": per_text, where: share}


def test_only_pooled_tokens_are_warned_of() -> None:
    assert not why_unsteady({"tokens_per_text": 1.0, "first": 1.0, "pooled": 0.0})
    assert "pooled token of 12% of the texts" in why_unsteady({"tokens_per_text": 0.94, "first": 0.02, "pooled": 0.12})
