"""How alike the experts' task vectors are: norms and cosines, computed from the low-rank factors, no delta formed.

Reads adapters; knows nothing of scores.
"""

import math
from collections.abc import Mapping

from stm.deltas import Adapter, Factors


def inner_product(first: Factors, second: Factors) -> float:
    """The Frobenius inner product `<s1 B1 A1, s2 B2 A2> = s1 s2 sum((B1' B2) * (A1 A2'))`, in float64."""
    outer = first.b.double().T @ second.b.double()
    inner = first.a.double() @ second.a.double().T
    return first.scale * second.scale * float((outer * inner).sum())


def compare_experts(adapters: Mapping[str, Adapter]) -> dict[str, dict[str, float]]:
    """Per expert its `norm` (L2, over all tensors) and the cosine of its task vector with that of each other, whose
    targets are the same.
    """
    products = {
        (one, other): math.fsum(
            inner_product(factors, adapters[other].factors[name]) for name, factors in adapter.factors.items()
        )
        for one, adapter in adapters.items()
        for other in adapters
    }
    norms = {name: math.sqrt(max(0.0, products[name, name])) for name in adapters}
    return {
        one: {"norm": norms[one]}
        | {f"cosine_{other}": products[one, other] / (norms[one] * norms[other]) for other in adapters if other != one}
        for one in adapters
    }
