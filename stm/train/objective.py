"""InfoNCE over in-batch positives and hard negatives, with the false negatives of the batch masked.

Embeddings in, a scalar out. Does not know models or texts, only which rows and passages are the same.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchIds:
    """What is the same in a batch of B rows and M >= B candidates, whose first B are the rows' positives.

    `anchors_B` and `texts_M` number texts in one table, equal texts alike; `concepts_B` numbers concepts, -1 where
    unknown; `answers_A2` pairs a row with a text that is known to answer it beside its positive.
    """

    anchors_B: Tensor
    texts_M: Tensor
    concepts_B: Tensor
    answers_A2: Tensor = field(default_factory=lambda: torch.empty(0, 2, dtype=torch.long))


def false_negatives(ids: BatchIds) -> Tensor:
    """Return the mask [B, M] of candidates that must not be contrasted with a row.

    Whatever answers a row is no negative of it, wherever in the batch the text stands: its positive, the positives of
    rows with its anchor or its concept, its further answers, and the anchor itself. A row's own positive is never
    masked.
    """
    rows, texts, concepts = len(ids.anchors_B), ids.texts_M, ids.concepts_B
    same_concept = (concepts[:, None] == concepts) & (concepts >= 0)
    answers = (ids.anchors_B[:, None] == ids.anchors_B) | same_concept
    row, other = (answers | torch.eye(rows, dtype=torch.bool)).nonzero(as_tuple=True)
    known = torch.zeros(rows, int(max(texts.max(), ids.anchors_B.max())) + 1, dtype=torch.bool)  # [B, texts]
    known[row, texts[other]] = True
    known[ids.answers_A2[:, 0], ids.answers_A2[:, 1]] = True
    known[torch.arange(rows), ids.anchors_B] = True
    mask = known[:, texts]
    mask[torch.arange(rows), torch.arange(rows)] = False
    return mask


def info_nce(
    queries_BD: Tensor, passages_MD: Tensor, mask_BM: Tensor, temperature: float, symmetric: bool = False
) -> Tensor:
    """InfoNCE, arXiv 1807.03748 eq. 4, with cosine similarity over unit rows and one temperature.

    `loss = -mean_i(s_ii - log sum_j exp s_ij)`, `s = q @ p.T / temperature`, the sum over unmasked candidates j.
    `symmetric` averages it with the same term for each positive against all queries. Equals
    `MultipleNegativesRankingLoss` of sentence-transformers 6.2.0 with `scale = 1 / temperature` where nothing is
    masked.
    """
    rows = queries_BD.shape[0]
    scores = (queries_BD @ passages_MD.T / temperature).masked_fill(mask_BM, -torch.inf)
    target = torch.arange(rows, device=scores.device)
    loss = torch.nn.functional.cross_entropy(scores, target)
    if symmetric:
        loss = (loss + torch.nn.functional.cross_entropy(scores[:, :rows].T, target)) / 2
    return loss


def chance_loss(mask_BM: Tensor, symmetric: bool = False) -> float:
    """The loss of a batch whose embeddings tell nothing apart: the mean log of the number of unmasked candidates."""
    rows, candidates = mask_BM.shape
    loss = (candidates - mask_BM.sum(1)).double().log().mean()
    if symmetric:
        loss = (loss + (rows - mask_BM[:, :rows].sum(0)).double().log().mean()) / 2
    return float(loss)
