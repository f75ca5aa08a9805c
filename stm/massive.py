"""Where a decoder has its massive activations: on a token without meaning, or on the pooled one of some texts.

A decoder heaps attention on such a token (arXiv 2309.17453, 2402.17762). Where it is the pooled one, the vector says
nothing about the text, and how a training starts depends on luck (docs/training.md). A token before every text takes
them.
"""

import torch
from sentence_transformers import SentenceTransformer

from stm.progress import track

TEXTS = 128  # of each warm-up, queries and passages together
OFTEN = 0.05  # share of the texts; SmolLM2-135M has .12 without a token of their own and 0 with one


@torch.no_grad()
def find_massive(model: SentenceTransformer, texts: list[str]) -> dict[str, float]:
    """Tokens with massive activations per text, and the shares of the texts whose first token and whose pooled one have
    them.

    A token has them if some layer's state holds a value over 100 that is over 1,000 times the median magnitude of the
    text's (arXiv 2402.17762, section 2).
    """
    counts = {"tokens_per_text": 0, "first": 0, "pooled": 0}
    for text in track(texts, "massive activations", len(texts)):
        inputs = model.tokenizer([text], truncation=True, return_tensors="pt").to(model.device)
        states = model[0].model(**inputs, output_hidden_states=True).hidden_states[:-1]  # the last is normed
        sizes = [state[0].abs() for state in states]
        found = torch.stack([(s.amax(1) > 100) & (s.amax(1) > 1000 * s.median()) for s in sizes]).any(0)
        counts["tokens_per_text"] += int(found.sum())
        counts["first"] += int(found[0])
        counts["pooled"] += int(found[-1])
    return {key: count / len(texts) for key, count in counts.items()}


def why_unsteady(massive: dict[str, float]) -> str:
    """Why a start depends on luck, in a sentence with what to do; empty if it does not."""
    if massive["pooled"] < OFTEN:
        return ""
    return (
        f"massive activations lie on the pooled token of {massive['pooled']:.0%} of the texts, whose vectors tell "
        "little, and luck decides how a training starts; put a token before every text (backbone.bos_token)"
    )
