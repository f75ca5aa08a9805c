"""What the stage `synthesize` says about its work: counts, reasons, samples, tokens, cost, hardness.

Collects while answers are judged and gives plain data for JSON; sample texts are cut. Writes nothing itself.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from stm.llm.answers import Answer, Budget

SAMPLE_CHARS = 240


def cut(text: str) -> str:
    """A text short enough for a report."""
    return text if len(text) <= SAMPLE_CHARS else text[:SAMPLE_CHARS] + "..."


def describe_outcome(report: dict[str, Any]) -> list[str]:
    """What a user is told at the end: one line, and at the budget's limit one more on how to go on."""
    lines = [
        f"{report['accepted']} of {report['rows_asked']} rows got a synthetic negative, "
        f"{report['tokens_in']} + {report['tokens_out']} tokens, "
        f"{report['answers_replayed']} of {report['answers']} answers replayed"
    ]
    if "queries" in report:
        queries = report["queries"]
        lines.insert(0, "{accepted} of {asked} written queries find their passage again".format(**queries))
        if gone := ", ".join(f"{count} of {source}" for source, count in queries["replaced"].items()):
            lines.insert(1, f"they stand in the place of rows: {gone}")
    if report["released"]:
        lines.append(f"{report['released']} rows came with a released negative and were not asked for")
    if report["is_budget_exhausted"]:
        lines.append(
            "the limit of tokens or money is reached; the other rows keep their mined negatives. To go on, raise "
            "synthesize.max_total_tokens or synthesize.max_cost: answers so far cost nothing again"
        )
    return lines


@dataclass
class Tally:
    """Counts over all answers of a split."""

    max_samples: int
    outcomes: Counter[str] = field(default_factory=Counter)  # answers by reason; "accepted" for the good ones
    failures: Counter[str] = field(default_factory=Counter)  # requests without an answer
    samples: dict[str, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))
    answers: int = 0
    replayed: int = 0

    def count(self, answer: Answer, row_id: str, query: str, text: str, reason: str) -> None:
        """Count one judged answer and keep it as a sample while there is room."""
        reason = reason or "accepted"
        self.answers, self.replayed = self.answers + 1, self.replayed + answer.is_replayed
        self.outcomes[reason] += 1
        if len(self.samples[reason]) < self.max_samples:
            self.samples[reason].append({"id": row_id, "query": cut(query), "text": cut(text)})

    def report(self, asked: int, accepted: int, regenerations: int, budget: Budget) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "rows_asked": asked,
            "accepted": accepted,
            "fallbacks": asked - accepted,
            "acceptance_rate": round(accepted / asked, 4) if asked else 0.0,
            "answers": self.answers,
            "answers_replayed": self.replayed,
            "regenerations": regenerations,
            "rejected": {reason: count for reason, count in sorted(self.outcomes.items()) if reason != "accepted"},
            "failed": dict(sorted(self.failures.items())),
            "samples": dict(sorted(self.samples.items())),
            **budget.as_report(),
        }
