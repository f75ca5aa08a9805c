"""What mining did: counts by origin and reason, and how hard the negatives are.

Collects row by row and gives plain data for JSON. Writes nothing itself.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from stm.hardness import summarise
from stm.mine.pool import Candidate


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
