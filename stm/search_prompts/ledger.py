"""The seam to the language model: a function from requests to answers, and a count of what went through it.

Counts requests, tokens and refusals, all of them functions of the answers, so that a replay gives the same figures (it
asks again for what was refused, which no store keeps). Does not know which endpoint answers.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from stm.errors import EndpointError
from stm.llm.answers import Answer, Budget, Failure, Outcome, Request
from stm.progress import say

Ask = Callable[[Sequence[Request]], Sequence[Outcome]]  # in the order of the requests; raises EndpointError


def _reply(outcome: Outcome) -> str:
    """The text of an answer, up to its last whole sentence where the token limit cut it; "" for a failure."""
    if isinstance(outcome, Failure):
        return ""
    text = outcome.text
    is_cut = outcome.finish_reason == "length"
    return text[: 1 + max(text.rfind(end) for end in ".!?\n")] if is_cut else text


class Ledger:
    """Asks, and keeps the sums; `budget` is the one that `ask` spends from."""

    def __init__(self, ask: Ask, budget: Budget | None = None) -> None:
        self._ask, self._budget = ask, budget or Budget()
        self.requests = self.tokens_in = self.tokens_out = self.answered = 0
        self.failures: Counter[str] = Counter()

    def ask(self, requests: Sequence[Request]) -> list[str]:
        """Return the reply texts in the order of the requests, "" where the endpoint refused one or the budget did.

        A reply that the token limit cut ends with its last whole sentence. Raises what the endpoint raises, and
        `EndpointError` where a request failed in a way that may pass, or none has been answered at all.
        """
        if self.is_spent:
            return [""] * len(requests)
        outcomes = self._ask(requests)
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        self.requests += len(outcomes)
        self.answered += len(answers)
        self.tokens_in += sum(answer.tokens_in for answer in answers)
        self.tokens_out += sum(answer.tokens_out for answer in answers)
        self._count([outcome for outcome in outcomes if isinstance(outcome, Failure)])
        return [_reply(outcome) for outcome in outcomes]

    def _count(self, failures: Sequence[Failure]) -> None:
        """Count failures beside all answers of their call, then check one of each reason, what may pass first."""
        known = set(self.failures)
        self.failures.update(failure.reason for failure in failures)
        first = {failure.reason: failure for failure in reversed(failures)}
        for failure in sorted(first.values(), key=lambda failure: failure.is_final):
            text = self._check(failure)
            if failure.reason not in known:
                say(text)

    def _check(self, failure: Failure) -> str:
        """What to say of a refusal; an error where asking again may help, or where nothing has worked so far."""
        if not failure.is_final:
            raise EndpointError(
                f"a request got no answer ({failure.reason}: {failure.detail}); the answers that came are kept, run "
                "the same command to go on"
            )
        if failure.reason == "budget":
            return self._check_budget()
        if not self.answered:
            raise EndpointError(
                f"the endpoint refuses what it is asked ({failure.detail}); mend search_prompts.endpoint in params.yaml"
            )
        return f"the endpoint refused a request, which counts as an empty reply: {failure.detail}"

    def _check_budget(self) -> str:
        raise_it = "raise search_prompts.max_total_tokens or search_prompts.max_cost"
        if not self.answered:
            raise EndpointError(f"the limit of tokens or money does not allow for a single answer; {raise_it}")
        return (
            "the limit of tokens or money is reached; the search ends with what it has. To go on, "
            f"{raise_it}: answers so far cost nothing again"
        )

    @property
    def is_spent(self) -> bool:
        """Whether the budget is at its end, and every further reply empty."""
        return self._budget.is_exhausted

    def as_report(self) -> dict[str, object]:
        """The sums as plain data."""
        return {
            "requests": self.requests,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost": round(self._budget.cost(), 6),
            "is_budget_exhausted": self.is_spent,
            "failures": dict(sorted(self.failures.items())),
        }
