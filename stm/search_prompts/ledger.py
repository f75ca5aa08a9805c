"""The seam to the language model: a function from requests to answers, and a count of what went through it.

Counts requests, tokens and failures, all of them functions of the answers, so that a replay gives the same figures.
Does not know which endpoint answers.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from stm.llm.answers import Answer, Failure, Request

Ask = Callable[
    [Sequence[Request]], Sequence[Answer | Failure]
]  # answers in the order of the requests; raises EndpointError


class Ledger:
    """Asks, and keeps the sums."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.requests = self.tokens_in = self.tokens_out = 0
        self.failures: Counter[str] = Counter()

    def ask(self, requests: Sequence[Request]) -> list[str]:
        """Return the reply texts in the order of the requests, "" where one failed; raises what the endpoint
        raises.
        """
        texts = []
        for answer in self._ask(requests) if requests else ():
            self.requests += 1
            if isinstance(answer, Answer):
                self.tokens_in += answer.tokens_in
                self.tokens_out += answer.tokens_out
                texts.append(answer.text)
            else:
                self.failures[answer.reason] += 1
                texts.append("")
        return texts

    def as_report(self) -> dict[str, object]:
        """The sums as plain data."""
        sums: dict[str, object] = {
            "requests": self.requests,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
        }
        return {**sums, "failures": dict(sorted(self.failures.items()))}
