"""The story of a search as plain data: every candidate with its scores on both halves, every attempt with what was
shown and refused.

Takes candidates, attempts and the scorer; decides nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stm.search_prompts.halves import Halves
from stm.search_prompts.proposer import Attempt
from stm.search_prompts.scoring import Scorer
from stm.tasks import Task


@dataclass(frozen=True)
class Candidate:
    """An instruction that was scored, and where it comes from."""

    instruction: str
    origin: str  # seed, pool or reflection
    parent: str | None = None


def tell(
    candidates: Sequence[Candidate],
    attempts: Sequence[Attempt],
    accepted: Sequence[str],
    scorer: Scorer,
    halves: Halves,
) -> dict[str, Any]:
    """Return the trajectory: candidates (in the order of their making, `parent` is an index), attempts, sizes and
    cost.
    """
    places: dict[str, int] = {}
    for index, candidate in enumerate(candidates):
        places.setdefault(candidate.instruction, index)
    first = candidates[0].instruction
    return {
        "metric": "ndcg_at_10, mean over queries",
        "candidates": [_candidate(candidate, places, accepted, scorer, halves) for candidate in candidates],
        "attempts": [_attempt(attempt, places) for attempt in attempts],
        "queries": {"search": len(halves[0]), "guard": len(halves[1])},
        "tasks": {name: _sizes(task, halves) for name, task in sorted(scorer.tasks.items())},
        "cost": {
            "passages_encoded": scorer.encoded_passages,
            "queries_encoded": scorer.encoded_queries,
            "reencoding_ratio": scorer.reencoding_ratio(first, [*halves[0], *halves[1]]),
        },
    }


def _candidate(
    candidate: Candidate, places: Mapping[str, int], accepted: Sequence[str], scorer: Scorer, halves: Halves
) -> dict[str, Any]:
    text = candidate.instruction
    scores = {
        half: {"mean": scorer.mean(text, items), "tasks": scorer.by_task(text, items)}
        for half, items in zip(("search", "guard"), halves, strict=True)
    }
    return {
        "index": places[text],
        "instruction": text,
        "origin": candidate.origin,
        "parent": None if candidate.parent is None else places[candidate.parent],
        "in_gepa_population": text in accepted,
        **scores,
    }


def _attempt(attempt: Attempt, places: Mapping[str, int]) -> dict[str, Any]:
    return {
        "parent": places[attempt.parent],
        "candidate": None if attempt.proposal is None else places[attempt.proposal],
        "origin": attempt.origin,
        "feedback": [dict(record) for record in attempt.feedback],
        "refused": [dict(refusal) for refusal in attempt.refused],
    }


def _sizes(task: Task, halves: Halves) -> dict[str, int]:
    used = [sum(item.task == task.name for item in items) for items in halves]
    full = {key: int(task.notes[key]) for key in ("full_queries", "full_passages") if key in task.notes}
    return {"search_queries": used[0], "guard_queries": used[1], "passages": len(task.corpus), **full}
