"""The README of a merged model folder: what is known of it before any evaluation.

Takes the recipe, the experts' names and the prompts, returns Markdown in which every text from data is harmless. The
full card, with scores and data, is made by the report and goes into the registered copy; see docs/decisions.md.
"""

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from stm.params.base import MERGED

FRONT = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
language: en
tags: [sentence-transformers, retrieval, model-merging]
---
"""
LIMITS = (
    "Retrieval ranks what the corpus holds, right or wrong. It is no medical advice and no medical device.",
    "Measure it on your own queries before you rely on it.",
)
LAYERED = (
    "These weights are means over layers: each layer has weights of its own, under decision.taken.layers in "
    "reports/merge.json of the project."
)


def plain(text: str) -> str:
    """Return the text on one line with Markdown's and HTML's signs made harmless."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)


def usage(folder: str, prompts: Mapping[str, str]) -> str:
    """Return the lines of Python that use the model, and its prompts."""
    # JSON that cannot close a fenced block or open a tag.
    shown = json.dumps({name: prompts.get(name, "") for name in ("query", "document")}, indent=2)
    shown = shown.replace("`", "\\u0060").replace("<", "\\u003c")
    return "\n".join(
        [
            "```python", "from sentence_transformers import SentenceTransformer", "",
            f"model = SentenceTransformer({json.dumps(folder)})",
            'queries = model.encode_query(["what is a heart attack"])',
            'passages = model.encode_document(["Myocardial infarction is the death of heart muscle."])',
            "print(model.similarity(queries, passages))", "```", "",
            "The prompts are in the model and are put before the text by these two calls:", "",
            "```json", shown, "```",
        ]
    )  # fmt: skip


def list_parameters(parameters: Mapping[str, Any]) -> str:
    """Return a method's parameters by name with their values, those by expert in brackets; names are as they came."""
    return ", ".join(f"{name} {_value_text(value)}" for name, value in sorted(parameters.items()))


def _value_text(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({list_parameters(value)})"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f"{value:g}" if is_number else json.dumps(value, ensure_ascii=False)


def recipe_line(
    method: str,
    weights: Mapping[str, float],
    scale: object,
    *,
    is_layered: bool = False,
    parameters: Mapping[str, Any] | None = None,
) -> str:
    """Return how the experts were merged, in a sentence; in two where each layer has weights of its own."""
    listed = ", ".join(f"{plain(name)} {value:.4g}" for name, value in sorted(weights.items()))
    further = f"; parameters: {plain(list_parameters(parameters))}" if parameters else ""
    return (
        f"Method {plain(method)}; weights of the experts' task vectors: {listed or 'of the method'}; scale {scale}"
        f"{further}.{f' {LAYERED}' if is_layered else ''}"
    )


def folder_card(experts: Sequence[str], recipe: str, prompts: Mapping[str, str]) -> str:
    """Return the README of the folder as Markdown: use, prompts, recipe (a `recipe_line`), data, limits."""
    parts = [
        FRONT, "# A merged retriever", "## Use", usage(MERGED, prompts),
        "## Recipe", recipe,
        "## Training data",
        f"An expert each, named after the split it was trained on: {', '.join(plain(name) for name in experts)}. "
        "Their sources are in reports/prepare.json of the project, and licences in ATTRIBUTION.md.",
        "## Scores",
        "With intervals, against the other models of the run: reports/model_card.md of the project. That card takes "
        "the place of this one in the registered copy of the model.",
        "## Limits", "\n".join(f"* {limit}" for limit in LIMITS),
    ]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"
