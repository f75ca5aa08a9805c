"""The reflection step of GEPA: failed dev queries in, one new instruction out.

Asks the language model for several rewrites, takes the first that is an instruction, is new and copies nothing, and
falls back on the next unused pool instruction when there is none. Keeps a record of every attempt. Does not know
scores.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stm.llm.answers import Request
from stm.search_prompts.copying import shared_run, spread
from stm.search_prompts.instructions import extract, fault, key_of
from stm.search_prompts.ledger import Ledger
from stm.search_prompts.messages import WISH, reflection_messages

COMPONENT = "instruction"  # GEPA's name for the text that is searched
ECHO_WORDS = 4
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Attempt:
    """One proposal: what was shown, what came back, what became of it."""

    parent: str
    feedback: Sequence[Record]
    proposal: str | None  # None: nothing of use, and the pool is used up
    origin: str  # reflection, pool or none
    refused: Sequence[Mapping[str, str]]  # text and reason


@dataclass
class Proposer:
    """GEPA's `propose_new_texts`; an error ends the search through `failure`, for GEPA itself would go on."""

    ledger: Ledger
    samples: int
    copied: Callable[[str], str | None]
    spare: deque[str]  # pool instructions that have not been tried
    known: set[str]  # keys of what has been tried
    attempts: list[Attempt] = field(default_factory=list)
    failure: Exception | None = None
    asked: Counter[str] = field(default_factory=Counter)  # how often the same messages were sent

    def __call__(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Record]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        """Return {"instruction": new text}, or {} when there is nothing to propose."""
        parent, records = candidate[COMPONENT], list(reflective_dataset[COMPONENT])
        messages = reflection_messages(parent, records)
        first = self.asked[str(messages)]  # the same messages again are to bring other replies
        self.asked[str(messages)] += self.samples
        try:
            replies = self.ledger.ask([Request(messages, attempt=first + number) for number in range(self.samples)])
        except Exception as error:
            # GEPA logs what a proposer raises and goes on; an endpoint that is down must not pass unseen.
            self.failure = error
            return {}
        refused: list[dict[str, str]] = []
        text, origin = self._first_valid(replies, refused), "reflection"
        if text is None:
            text, origin = self._next_spare(refused), "pool"
        self.attempts.append(Attempt(parent, records, text, origin if text else "none", refused))
        if text is None:
            return {}
        self.known.add(key_of(text))
        return {COMPONENT: text}

    def _reason(self, text: str) -> str | None:
        if reason := fault(text):
            return reason
        if run := self.copied(text):
            return f"copies dev content: {run}"
        if shared_run(text, spread(WISH), ECHO_WORDS):
            return "repeats the request"
        return "tried before" if key_of(text) in self.known else None

    def _first_valid(self, replies: Iterable[str], refused: list[dict[str, str]]) -> str | None:
        for reply in replies:
            texts = extract(reply)
            reasons = [self._reason(text) for text in texts]
            valid = next((text for text, reason in zip(texts, reasons, strict=True) if reason is None), None)
            if valid is not None:
                return valid
            refused.append({"text": reply[:300], "reason": next((reason for reason in reasons if reason), "empty")})
        return None

    def _next_spare(self, refused: list[dict[str, str]]) -> str | None:
        while self.spare:
            text = self.spare.popleft()
            reason = self._reason(text)
            if reason is None:
                return text
            refused.append({"text": text, "reason": reason})
        return None
