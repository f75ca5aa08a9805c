"""The search for one split's query instruction: seed, generic pool and GEPA on the search half, one verdict on the
guard half.

Takes tasks, an encoder, a language model to ask and the params; returns the instruction, the pool and a report that
tells the whole story. Does not know files, endpoints or other splits.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stm.params.search_prompts import SearchPromptsParams
from stm.progress import say
from stm.search_prompts.adapter import RetrievalAdapter, run_gepa
from stm.search_prompts.budgets import BUDGETS
from stm.search_prompts.copying import CopyGuard
from stm.search_prompts.halves import Halves, split_halves
from stm.search_prompts.instructions import key_of
from stm.search_prompts.ledger import Ledger
from stm.search_prompts.pool import Pool, write_pool
from stm.search_prompts.proposer import Proposer
from stm.search_prompts.scoring import PassageEncoder, Scorer
from stm.search_prompts.trajectory import Candidate, tell
from stm.tasks import Task


@dataclass(frozen=True)
class Found:
    """The result of a search."""

    instruction: str
    pool: list[str]
    report: dict[str, Any]


def search_instruction(
    tasks: Sequence[Task],
    seed_instruction: str,
    encoder: PassageEncoder,
    render: Callable[[str], str],
    ledger: Ledger,
    params: SearchPromptsParams,
) -> Found:
    """Search a query instruction for a model on dev tasks.

    `render` turns an instruction into the prompt before a query. The candidate with the best mean nDCG@10 on the
    search half replaces the seed only if it also beats the seed on the guard half by more than `params.min_gain`.
    Raises `DataError` for tasks with fewer than two usable queries, and what the endpoint raises.
    """
    budget = BUDGETS[params.budget]
    halves = split_halves(tasks, budget.queries, params.seed)
    _say_shortfall(params, len(halves[0]))
    pool = write_pool(params.pool_size, params.seed, params.pool_rounds, ledger)
    copied = CopyGuard(tasks, seed_instruction, params.copy_words).copied
    scorer = Scorer(tasks, encoder, render)
    candidates = _screened(seed_instruction, pool.instructions, copied, budget.screened)
    start = best_of(candidates, scorer, halves)
    tried = {key_of(candidate.instruction) for candidate in candidates}
    spare = deque(text for text in pool.instructions if key_of(text) not in tried)
    proposer = Proposer(ledger, params.samples, copied, spare, tried)
    adapter = RetrievalAdapter(scorer, proposer, params.feedback_characters)
    gepa = run_gepa(start.instruction, halves[0], adapter, budget, params.seed)
    attempts = proposer.attempts
    candidates += [Candidate(a.proposal, a.origin, a.parent) for a in attempts if a.proposal is not None]
    winner, reason = judge(candidates, scorer, halves, params.min_gain)
    if len(candidates) == 1 and ledger.answered and not ledger.failures:
        reason = f"kept the seed instruction: no reply of the LLM was a usable instruction in English{_most(pool)}"
    report = tell(candidates, attempts, gepa["accepted"], scorer, halves)
    report |= {"instruction": winner.instruction, "chosen": candidates.index(winner), "reason": reason}
    report |= {"seed_instruction": seed_instruction, "budget": params.budget}
    report |= {"gepa": {**gepa, "start": candidates.index(start)}, "pool": pool.as_report(), "llm": ledger.as_report()}
    return Found(winner.instruction, pool.instructions, report)


def _most(pool: Pool) -> str:
    """Why most replies were refused, with what to do about empty ones."""
    if not pool.refused:
        return ""
    (reason, count), more = pool.refused.most_common(1)[0], ""
    if reason == "empty":
        more = "; a model that reasons needs a larger search_prompts.endpoint.max_tokens"
    return f" ({count} of the pool's replies: {reason}{more})"


def _say_shortfall(params: SearchPromptsParams, queries: int) -> None:
    """Say where the dev tasks or the pool are smaller than the budget allows for."""
    budget = BUDGETS[params.budget]
    for has, wants, what, where in (
        (queries, budget.queries, "dev queries per half", "max_queries and tasks"),
        (params.pool_size, budget.screened, "pool instructions", "pool_size"),
    ):
        if has < wants:
            say(f"search_prompts: the budget {params.budget} allows {wants} {what}, of which there are {has} ({where})")


def _screened(
    seed_instruction: str, pool: Sequence[str], copied: Callable[[str], str | None], count: int
) -> list[Candidate]:
    """The candidates that are scored before GEPA starts: the seed, and the first `count` usable pool instructions."""
    seed_key = key_of(seed_instruction)
    usable = [text for text in pool if key_of(text) != seed_key and not copied(text)]
    return [Candidate(seed_instruction, "seed"), *(Candidate(text, "pool") for text in usable[:count])]


def best_of(candidates: Sequence[Candidate], scorer: Scorer, halves: Halves) -> Candidate:
    """The best on the search half; of equals the first, so that the seed wins ties."""
    return max(candidates, key=lambda candidate: scorer.mean(candidate.instruction, halves[0]))


def judge(candidates: Sequence[Candidate], scorer: Scorer, halves: Halves, min_gain: float) -> tuple[Candidate, str]:
    """Put the best of the search half to the guard half, once; return the winner (the first candidate is the seed)
    and why.
    """
    seed, best = candidates[0], best_of(candidates, scorer, halves)
    if best is seed:
        return seed, "kept the seed instruction: no candidate beat it on the search half"
    was, now = ([scorer.mean(candidate.instruction, half) for half in halves] for candidate in (seed, best))
    figures = f"search half {was[0]:.4f} -> {now[0]:.4f}, guard half {was[1]:.4f} -> {now[1]:.4f}"
    if now[1] > was[1] + min_gain:
        return best, f"replaced the seed instruction: better on both halves ({figures})"
    margin = f" by more than {min_gain}" if min_gain else ""
    return seed, f"kept the seed instruction: the best candidate does not beat it{margin} on the guard half ({figures})"
