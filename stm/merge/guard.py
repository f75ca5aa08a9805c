"""The overfit guard: the winner of the search half must hold against uniform weights on the half that this search has
not seen.

Takes finished trials and returns a decision with its reasons; changes and evaluates nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stm.merge.dev import HALVES, Scores
from stm.merge.trials import Trial


@dataclass(frozen=True)
class Decision:
    """The trial whose model is taken, the winner of the search, and why."""

    taken: Trial
    winner: Trial
    simplest: Trial
    reason: str

    def rescore(self, scores: Scores) -> "Decision":
        """The same decision with the scores of what is taken under the prompts that are written with it."""
        return replace(self, taken=replace(self.taken, scores=scores))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the trace: both halves of winner and simplest, their paired differences, the reason."""
        return {
            "taken": self.taken.as_dict(),
            "winner": self.winner.as_dict(),
            "uniform": self.simplest.as_dict(),
            "difference": {half: compare(self.winner.scores, self.simplest.scores, half) for half in HALVES},
            "is_uniform_taken": self.taken is self.simplest,
            "reason": self.reason,
        }


def compare(ours: Scores, theirs: Scores, half: str) -> dict[str, float]:
    """Difference of the means over tasks, and its standard error from single queries' differences within tasks."""
    difference = ours.mean(half) - theirs.mean(half)
    variance = 0.0
    for task, scores in ours.per_query.items():
        paired = [scores[half][query] - theirs.per_query[task][half][query] for query in scores[half]]
        middle = math.fsum(paired) / len(paired)
        if len(paired) > 1:
            variance += math.fsum((value - middle) ** 2 for value in paired) / (len(paired) - 1) / len(paired)
    return {"mean": difference, "standard_error": math.sqrt(variance) / len(ours.per_query)}


def decide(trials: Sequence[Trial]) -> Decision:
    """Choose by the search half, then let the other half confirm.

    The winner has the best mean nDCG@10 on the search half; among equals the earliest, and the fixed rows come first.
    It is taken if its mean on the other half is at least that of uniform weights (of the first method); otherwise
    uniform weights are.
    """
    winner = max(trials, key=lambda trial: trial.value)
    simplest = next(trial for trial in trials if trial.origin == "uniform")
    if winner is simplest:
        return Decision(simplest, winner, simplest, "uniform weights are the best of the search half")
    ours, theirs = winner.scores.mean("holdout"), simplest.scores.mean("holdout")
    if ours >= theirs:
        reason = f"the winner holds on the half that this search has not seen: {ours:.4f} against {theirs:.4f}"
        return Decision(winner, winner, simplest, reason)
    reason = (
        f"the winner does not hold on the half that this search has not seen ({ours:.4f} against {theirs:.4f}): "
        "uniform weights are taken"
    )
    return Decision(simplest, winner, simplest, reason)
