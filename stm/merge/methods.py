"""Merge methods as rows of one table: deltas of one tensor from several experts in, one merged delta out.

Everything is fp32 and tensor by tensor; the merged weight is `base + lambda * merged delta`. The reference of all
formulas is mergekit 0.1.5 (its defaults); docs/merging.md lists where that, PEFT 0.21 and the papers differ. Does not
know files, models or scores.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stm.errors import ParamsError

Rescale = Literal["l1", "density"]


@dataclass(frozen=True)
class Part:
    """One expert's share of one tensor: `delta` (fp32), its weight, the fraction kept, and the seed of its own random
    mask.
    """

    delta: Tensor
    weight: float
    density: float
    seed: int


def kept_count(size: int, density: float) -> int:
    """How many of `size` values magnitude pruning keeps: `max(1, int(density * size))`, all where density is 1."""
    return size if density >= 1 else min(size, max(1, int(density * size)))


def keep_largest(delta: Tensor, density: float) -> Tensor:
    """Keep the `kept_count` values of largest magnitude and zero the rest; among equal magnitudes the first in memory
    order stay.

    The trim step of TIES (arXiv 2306.01708, section 3.1).
    """
    kept = kept_count(delta.numel(), density)
    if kept == delta.numel():
        return delta
    magnitudes = delta.abs().flatten()
    threshold = magnitudes.kthvalue(magnitudes.numel() - kept + 1).values
    mask = magnitudes > threshold
    # Equal magnitudes at the cut: fill up in memory order, so that the count is exact and the result does not depend
    # on the sort.
    at_cut = (magnitudes == threshold).nonzero().flatten()
    mask[at_cut[: kept - int(mask.sum())]] = True
    return delta * mask.view_as(delta)


def keep_random(delta: Tensor, density: float, seed: int, rescale: Rescale) -> Tensor:
    """Keep each value with probability `density` and rescale what is left (DARE, arXiv 2311.03099, section 3.1).

    `rescale="density"` divides by the density, as the paper and PEFT do; `"l1"` restores the tensor's L1 norm, as
    mergekit does. The mask depends on `seed` alone.
    """
    if density >= 1:
        return delta
    generator = torch.Generator(device="cpu").manual_seed(seed)
    mask = (torch.rand(delta.shape, generator=generator) < density).to(delta.device)
    masked = delta * mask
    if rescale == "density":
        return masked / density
    before, after = delta.abs().sum(), masked.abs().sum()
    # mergekit's guard: a tensor that is almost zero before or after stays as it is.
    return masked if before < 1e-7 or after < 1e-7 else masked * (before / after)


def add(deltas: list[Tensor], weights: list[float], normalize: bool) -> Tensor:
    """Return `sum_k w_k d_k`, divided by `sum_k w_k` where `normalize`.

    Not normalised: task arithmetic (arXiv 2212.04089, eq. of section 2). Normalised: linear interpolation (arXiv
    2203.05482), for which `sum_k w_k theta_k / sum_k w_k` is the same as the base plus this.
    """
    total = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        total.add_(delta, alpha=weight)
    return total.div_(sum(weights)) if normalize else total


def elect(deltas: list[Tensor], weights: list[float], normalize: bool) -> Tensor:
    """Return the sum of the weighted deltas that agree with the elected sign, divided by the sum of their weights
    where `normalize`.

    Elect and disjoint merge of TIES (arXiv 2306.01708, section 3) as mergekit weighs them: the sign of
    `sum_k w_k d_k` wins, zero counts as positive, and the divisor is the sum of the agreeing weights (1 where that is
    0).
    """
    positive = add(deltas, weights, normalize=False) >= 0
    merged, divisor = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        weighted = delta * weight
        agrees = torch.where(positive, weighted > 0, weighted < 0)
        merged.add_(weighted * agrees)
        divisor.add_(agrees, alpha=weight)
    if normalize:
        merged.div_(torch.where(divisor == 0, 1.0, divisor))
    return merged


@dataclass(frozen=True)
class Method:
    """One row: how each delta is thinned, how the deltas are combined, and whether the result is normalised by the
    weights.
    """

    name: str
    combine: Callable[[list[Tensor], list[float], bool], Tensor]
    normalize: bool
    thin: Literal["none", "magnitude", "random"]

    @property
    def uses_density(self) -> bool:
        """Whether a density changes anything."""
        return self.thin != "none"

    @property
    def is_sum(self) -> bool:
        """Whether the thinned deltas are only added up, so that the result is linear in them."""
        return self.combine is add


METHODS: Mapping[str, Method] = {
    row.name: row
    for row in (
        Method("linear", add, True, "none"),  # arXiv 2203.05482
        Method("task_arithmetic", add, False, "none"),  # arXiv 2212.04089
        Method("ties", elect, True, "magnitude"),  # arXiv 2306.01708
        Method("dare_linear", add, False, "random"),  # arXiv 2311.03099
        Method("dare_ties", elect, False, "random"),  # arXiv 2311.03099 and 2306.01708
    )
}


def find_method(name: str) -> Method:
    """The row of that name; `ParamsError` lists the rows."""
    if name not in METHODS:
        raise ParamsError(f"there is no merge method {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]


def mask_seed(seed: int, expert: str, tensor: str) -> int:
    """The seed of one expert's random mask for one tensor; it does not depend on the order of experts, tensors or
    shards.
    """
    digest = hashlib.sha256(f"{seed}\0{expert}\0{tensor}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def merge_parts(method: Method, parts: list[Part], rescale: Rescale = "l1") -> Tensor:
    """Combine the parts of one tensor by `method`; the parts are not changed. `ParamsError` for weights or densities
    out of range.
    """
    thinned = [_thin(method, part, rescale) for part in parts]
    return method.combine(thinned, [part.weight for part in parts], method.normalize)


def _thin(method: Method, part: Part, rescale: Rescale) -> Tensor:
    if method.thin == "magnitude":
        return keep_largest(part.delta, part.density)
    if method.thin == "random":
        return keep_random(part.delta, part.density, part.seed, rescale)
    return part.delta
