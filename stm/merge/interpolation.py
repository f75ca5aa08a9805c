"""Embeddings of mixes that have not been evaluated, as weighted sums of the embeddings of those that have.

A text's embedding is a smooth function of the factors of the deltas. The prior is its Taylor series around the base: a
Gaussian process with the kernel `exp(<f, g> / REACH)`, whose terms of order d have the variance `1 / (d! REACH^d)`.
From the base and each expert alone it is nearly first-order merging (the mix of the experts' embeddings); every further
evaluation adds curvature where it is. Takes recipes and gives numbers: no models, no texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stm.merge.recipe import Recipe

Doubles = npt.NDArray[np.float64]
REACH = 4.0  # on the embedded experts between 1 and 16 makes no difference; wider ones lose digits in the inverse
JITTER = 1e-11  # relative to the diagonal, for the solver alone: what is known is interpolated, not smoothed
MOST = 40.0  # exponent in the kernel: its exponential, and that times an inverse, are numbers in float32
DENSITY_LENGTH = 0.3  # densities this far apart make an expert's effect correlate by exp(-1/2)


@dataclass(frozen=True)
class Places:
    """Where N mixes lie: `factors` [N, K] of the deltas, and the `densities` [N, K] at which they were thinned."""

    factors: Doubles
    densities: Doubles


def places_of(recipes: Sequence[Recipe | None], experts: Sequence[str]) -> Places:
    """The places of recipes; None is the base, where no delta has a factor."""
    factors = [[r.factors().get(name, 0.0) if r else 0.0 for name in experts] for r in recipes]
    densities = [[r.density_of(name) if r else 1.0 for name in experts] for r in recipes]
    shape = (len(recipes), len(experts))
    return Places(np.array(factors, dtype=float).reshape(shape), np.array(densities, dtype=float).reshape(shape))


def kernel(one: Places, other: Places) -> Doubles:
    """The prior covariance [N, M]: `exp(sum_k f_k g_k c_k / REACH)`, with c_k for the densities of expert k."""
    product = np.zeros((len(one.factors), len(other.factors)))
    ones, others = _near(one.factors), _near(other.factors)
    for f, p, g, q in zip(ones.T, one.densities.T, others.T, other.densities.T, strict=True):
        apart = (p[:, None] - q[None, :]) / DENSITY_LENGTH
        product += f[:, None] * g[None, :] * np.exp(-(apart**2) / 2)
    covariance: Doubles = np.exp(product / REACH)
    return covariance


def _near(factors: Doubles) -> Doubles:
    """The factors [N, K], drawn in to a ball where weights nearly cancel out and factors have no bound: their kernel
    would overflow, and one that is cut entry by entry would be none.
    """
    lengths = np.linalg.norm(factors, axis=1, keepdims=True)
    near: Doubles = factors * np.minimum(1.0, np.sqrt(MOST * REACH) / np.maximum(lengths, 1e-300))
    return near


def _inverse(anchors: Places) -> Doubles:
    covariance = kernel(anchors, anchors)
    return np.asarray(np.linalg.inv(covariance + JITTER * np.diag(np.diag(covariance))), dtype=np.float64)


def cardinal_weights(points: Places, anchors: Places) -> Doubles:
    """The weight [N, A] of each anchor's embedding in that of each point; at an anchor 1 there and 0 elsewhere."""
    weights: Doubles = kernel(points, anchors) @ _inverse(anchors)
    return weights


def unseen_weights(anchors: Places) -> Doubles:
    """The weights [A, A] by which each anchor is predicted from all others (Dubrule 1983, leave-one-out in closed
    form).
    """
    inverse = _inverse(anchors)
    weights: Doubles = -inverse / np.diag(inverse)[:, None]
    np.fill_diagonal(weights, 0.0)
    return weights
