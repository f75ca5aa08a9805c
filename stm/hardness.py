"""How hard negatives are: score(negative) / score(positive) for the same query, as the reports keep it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
PER_UNIT, BINS = 10, 12  # of the histogram, whose last bin holds everything from 1.1 on


def summarise(ratios: Sequence[float]) -> dict[str, Any]:
    """Count, quantiles and histogram of the ratios (unitless, at least 0)."""
    if not ratios:
        return {"count": 0, "quantiles": {}, "histogram": [0] * BINS}
    values = np.asarray(ratios, dtype=np.float64)
    bins = np.bincount(np.clip((values * PER_UNIT).astype(int), 0, BINS - 1), minlength=BINS)
    quantiles = {f"{q:g}": round(float(np.quantile(values, q)), 4) for q in QUANTILES}
    return {"count": len(ratios), "quantiles": quantiles, "histogram": bins.tolist()}
