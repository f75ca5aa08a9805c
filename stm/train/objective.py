"""InfoNCE over in-batch positives and hard negatives, with the false negatives of the batch masked.

Embeddings in, a scalar out. Does not know models or texts, only which rows and passages are the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchIds:
    """What is the same in a batch of B rows and M >= B candidates, whose first B are the rows' positives.

    `anchors_B` and `texts_M` are ids of equal texts, `concepts_M` ids of equal concepts, -1 where unknown.
    """

    anchors_B: Tensor
    texts_M: Tensor
    concepts_M: Tensor


def false_negatives(ids: BatchIds) -> Tensor:
    """Return the mask [B, M] of candidates that must not be contrasted with a row.

    Masked are candidates with the text or the concept of the row's positive, and the positives of rows with the same
    anchor. A row's own positive is never masked.
    """
    rows = ids.anchors_B.shape[0]
    same_text = ids.texts_M[:rows, None] == ids.texts_M[None, :]
    concepts = ids.concepts_M[:rows, None]
    same_concept = (concepts == ids.concepts_M[None, :]) & (concepts >= 0)
    mask = same_text | same_concept
    mask[:, :rows] |= ids.anchors_B[:, None] == ids.anchors_B[None, :]
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


def chance_loss(ids: BatchIds, symmetric: bool = False) -> float:
    """The loss of a batch whose embeddings tell nothing apart: the mean log of the number of unmasked candidates."""
    rows, candidates = len(ids.anchors_B), len(ids.texts_M)
    return float(info_nce(torch.zeros(rows, 1), torch.zeros(candidates, 1), false_negatives(ids), 1.0, symmetric))
