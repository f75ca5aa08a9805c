"""Chooses the merged model's prompts on dev, among those of the base and of the experts.

Passages are encoded once per passage prompt, so that a query prompt costs the queries alone. Does not know where
prompts come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stm.merge.dev import HALVES, CountingEncoder, DevSet, Scores, query_texts, score_embeddings
from stm.text_encoder import Floats


@dataclass(frozen=True)
class PromptScore:
    """One pair of prompts, who proposed it, and its scores with the model at hand."""

    query: str
    document: str
    proposed_by: tuple[str, ...]
    scores: Scores

    def as_model_prompts(self) -> dict[str, str]:
        """The mapping that sentence-transformers saves."""
        return {"query": self.query, "document": self.document}

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the trace."""
        halves = {half: self.scores.mean(half) for half in HALVES}
        return {"query": self.query, "document": self.document, "proposed_by": list(self.proposed_by), **halves}


def score_prompts(
    dev: DevSet, encoder: CountingEncoder, candidates: Mapping[str, Mapping[str, str]]
) -> list[PromptScore]:
    """Score each distinct pair of prompts in `candidates` (proposer -> "query" and "document"), in the order
    given.
    """
    proposers: dict[tuple[str, str], list[str]] = {}
    for name, prompts in candidates.items():
        proposers.setdefault((prompts.get("query", ""), prompts.get("document", "")), []).append(name)
    passages: dict[str, Floats] = {}
    scored = []
    for (query, document), names in proposers.items():
        if document not in passages:
            passages[document] = encoder.encode(dev.texts, document, "dev passages")
        queries = encoder.encode(query_texts(dev), query, "dev queries")
        scored.append(PromptScore(query, document, tuple(names), score_embeddings(dev, queries, passages[document])))
    return scored


def best_prompt(scored: Sequence[PromptScore], in_use: Mapping[str, str] | None = None) -> PromptScore:
    """The best on the search half; among equals the first.

    With the prompts `in_use`, one of the candidates, the best must reach at least their mean on the other half as well;
    otherwise they stay.
    """
    best = max(scored, key=lambda candidate: candidate.scores.mean("search"))
    old = next((candidate for candidate in scored if candidate.as_model_prompts() == in_use), best)
    return best if best.scores.mean("holdout") >= old.scores.mean("holdout") else old
