"""Merge methods as rows of one table: deltas of one tensor from several experts in, one merged delta out.

Everything is fp32 and tensor by tensor; the merged weight is `base + lambda * merged delta`. The reference of all
formulas is mergekit 0.1.5 (its defaults); docs/merging.md lists where that, PEFT 0.21 and the papers differ. Does not
know files, models or scores.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stm.errors import ParamsError

Rescale = Literal["l1", "density"]
Thin = Literal["none", "magnitude", "random"]
RESIDUE = 1e-6  # a sum of weights below it is what float32 leaves of 0; weights are steps of hundredths and more


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


def find_largest(delta: Tensor, density: float) -> Tensor:
    """Return the mask of the `kept_count` values of largest magnitude; among equal magnitudes the first in memory order
    stay.

    The trim step of TIES (arXiv 2306.01708, section 3.1).
    """
    magnitudes = delta.abs().flatten()
    kept = kept_count(delta.numel(), density)
    place = magnitudes.numel() - kept
    if delta.is_cuda:
        threshold = magnitudes.kthvalue(place + 1).values
    else:  # the same value in a fraction of the time
        threshold = torch.tensor(np.partition(magnitudes.numpy(), place)[place])
    mask = magnitudes > threshold
    # Equal magnitudes at the cut: fill up in memory order, so that the count is exact and the result does not depend
    # on the sort.
    at_cut = (magnitudes == threshold).nonzero().flatten()
    mask[at_cut[: kept - int(mask.sum())]] = True
    return mask.view_as(delta)


def draw_mask(shape: torch.Size, density: float, seed: int) -> Tensor:
    """Return a mask that keeps each value with probability `density` (DARE, arXiv 2311.03099, section 3.1).

    It is drawn on the CPU, so that it depends on `seed` alone.
    """
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def make_mask(thin: Thin, part: Part) -> Tensor:
    """Return which values [the delta's shape, bool] of a part stay when it is thinned."""
    if thin == "magnitude":
        return find_largest(part.delta, part.density)
    return draw_mask(part.delta.shape, part.density, part.seed).to(part.delta.device)


class KeptMasks:
    """`make_mask` with a memory of one bit per value: most candidates of a search differ in their weights alone.

    Of each delta, which its seed tells from others, the last mask stays.
    """

    def __init__(self) -> None:
        self._last: dict[int, tuple[Thin, float, npt.NDArray[np.uint8]]] = {}

    def __call__(self, thin: Thin, part: Part) -> Tensor:
        """Return the mask, made only where the last one was of another kind or density."""
        found = self._last.get(part.seed)
        if found is not None and found[:2] == (thin, part.density):
            mask = np.unpackbits(found[2], count=part.delta.numel()).view(bool)
            return torch.from_numpy(mask).view_as(part.delta).to(part.delta.device)
        made = make_mask(thin, part)
        self._last[part.seed] = thin, part.density, np.packbits(made.cpu().numpy())
        return made


def rescale_masked(masked: Tensor, delta: Tensor, density: float, rescale: Rescale) -> Tensor:
    """Rescale in place what DARE has left of `delta`: "density" divides by the density, as the paper and PEFT do; "l1"
    restores the tensor's L1 norm, as mergekit does.
    """
    if rescale == "density":
        return masked.div_(density)
    before, after = delta.abs().sum(), masked.abs().sum()
    # mergekit's guard: a tensor that is almost zero before or after stays as it is.
    return masked if before < 1e-7 or after < 1e-7 else masked.mul_(before / after)


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
    0, or what rounding leaves of 0 where weights are negative).
    """
    signs = (add(deltas, weights, normalize=False) >= 0) * 2.0 - 1.0
    merged, divisor = torch.zeros_like(deltas[0]), torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights, strict=True):
        agreeing = (delta * weight).mul_(signs).clamp_min_(0)
        merged.add_(agreeing)
        if normalize:
            divisor.add_(agreeing > 0, alpha=weight)
    merged.mul_(signs)
    return merged.div_(divisor.masked_fill_(divisor.abs() < RESIDUE, 1.0)) if normalize else merged


@dataclass(frozen=True)
class Method:
    """One row: how each delta is thinned, how the deltas are combined, and whether the result is normalised by the
    weights.
    """

    name: str
    combine: Callable[[list[Tensor], list[float], bool], Tensor]
    normalize: bool
    thin: Thin

    @property
    def uses_density(self) -> bool:
        """Whether a density changes anything."""
        return self.thin != "none"

    @property
    def is_sum(self) -> bool:
        """Whether the thinned deltas are only added up, so that the result is linear in them."""
        return self.combine is add

    def divisor(self, weights: Iterable[float]) -> float:
        """What the weighted deltas' sum is divided by: the sum of the weights where the method normalises, else 1."""
        return math.fsum(weights) if self.normalize else 1.0

    def can_divide(self, weights: Iterable[float]) -> bool:
        """Whether the divisor of these weights is not 0, but for rounding."""
        return abs(self.divisor(weights)) >= 1e-8


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


def merge_parts(
    method: Method, parts: list[Part], rescale: Rescale = "l1", mask_of: Callable[[Thin, Part], Tensor] = make_mask
) -> Tensor:
    """Combine the parts of one tensor by `method`; the parts are not changed. `mask_of` is `make_mask` or does the
    same.
    """
    thinned = [_thin(method, part, rescale, mask_of) for part in parts]
    return method.combine(thinned, [part.weight for part in parts], method.normalize)


def _thin(method: Method, part: Part, rescale: Rescale, mask_of: Callable[[Thin, Part], Tensor]) -> Tensor:
    if method.thin == "none" or part.density >= 1:
        return part.delta
    masked = part.delta * mask_of(method.thin, part)
    return rescale_masked(masked, part.delta, part.density, rescale) if method.thin == "random" else masked
