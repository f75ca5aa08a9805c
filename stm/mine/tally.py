"""What mining did: counts by origin and reason, and how hard the negatives are.

Collects row by row and gives plain data for JSON. Writes nothing itself.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from stm.mine.pool import Candidate

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 12  # of width 0.1; the last one holds everything from 1.1 on


class Tally:
    """Counts and score ratios for the report."""

    def __init__(self) -> None:
        self.origins: Counter[str] = Counter()
        self.guarded: dict[str, Counter[str]] = defaultdict(Counter)
        self.ratios: dict[str, list[float]] = defaultdict(list)
        self.per_row: Counter[int] = Counter()
        self.unscored = 0

    def refuse(self, origin: str, reason: str) -> None:
        """Count a candidate that may not be a negative."""
        self.guarded[origin][reason] += 1

    def add(self, kept: Sequence[Candidate], positive_score: float) -> None:
        """Count the negatives of one row."""
        self.per_row[len(kept)] += 1
        self.unscored += positive_score <= 0
        for candidate in kept:
            self.origins[candidate.origin] += 1
            if positive_score > 0:
                self.ratios[candidate.origin].append(candidate.score / positive_score)

    def report(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        everything = [ratio for ratios in self.ratios.values() for ratio in ratios]
        return {
            "rows": self.per_row.total(),
            "negatives": self.origins.total(),
            "negatives_by_origin": dict(sorted(self.origins.items())),
            "rows_by_negatives": {str(count): rows for count, rows in sorted(self.per_row.items())},
            "rows_without_negatives": self.per_row[0],
            "rows_with_unscored_positive": self.unscored,
            "guarded_out": {origin: dict(sorted(c.items())) for origin, c in sorted(self.guarded.items())},
            "hardness": {name: summarise(r) for name, r in [("all", everything), *sorted(self.ratios.items())]},
        }


def summarise(ratios: Sequence[float]) -> dict[str, Any]:
    """Quantiles and a histogram (bins of width 0.1) of score(negative) / score(positive)."""
    if not ratios:
        return {"count": 0, "quantiles": {}, "histogram": [0] * BINS}
    values = np.asarray(ratios, dtype=np.float64)
    bins = np.bincount(np.clip((values * 10).astype(int), 0, BINS - 1), minlength=BINS)
    quantiles = {f"{q:g}": round(float(np.quantile(values, q)), 4) for q in QUANTILES}
    return {"count": len(ratios), "quantiles": quantiles, "histogram": bins.tolist()}
