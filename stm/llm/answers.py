"""The values of LLM work: a request, its canonical form and key, an answer, a failure, a budget.

Pure values; knows nothing of HTTP, of stores or of what the texts are for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stm.files import sha256_text
from stm.params.llm import Endpoint, Limits

Messages = Sequence[Mapping[str, str]]
CHARS_PER_TOKEN = 3.5  # English prose is nearer to 4.5; a budget should rather stop early
TOKENS_PER_MESSAGE = 8
FEW = 2  # requests that may fail by themselves in a call that answers none, as where only these are left
BUDGET_REACHED = "the limit of tokens or money is reached"
CHECK_REQUESTS = "see that the endpoint's model, token_limit_field, max_tokens and extra in params.yaml suit it"


@dataclass(frozen=True)
class Request:
    """One chat completion; `None` means the endpoint's own setting.

    `attempt` 0, 1, 2, ... asks for independent samples of the same messages: it moves the seed and is part of the key.
    """

    messages: Messages
    attempt: int = 0
    max_tokens: int | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Answer:
    """What the model wrote. Tokens are those that the endpoint reported, estimated from the text where it did not."""

    text: str
    finish_reason: str
    tokens_in: int
    tokens_out: int
    is_replayed: bool = False


@dataclass(frozen=True)
class Failure:
    """A request that ended without an answer; `reason` is one word, `detail` one line without secrets."""

    reason: str
    detail: str

    @property
    def is_refusal(self) -> bool:
        """Whether the endpoint took the request and refused it, as a filter does, or a limit of the model's length."""
        return self.reason == "rejected"

    @property
    def is_final(self) -> bool:
        """Whether asking again would change nothing: the endpoint refused it, or the budget is at its end."""
        return self.is_refusal or self.reason == "budget"


Outcome = Answer | Failure


def estimate_tokens(text: str) -> int:
    """Rough number of tokens of a text; only for estimates and reservations."""
    return int(len(text.encode("utf-8", "replace")) / CHARS_PER_TOKEN) + 1


def estimate_prompt(messages: Messages) -> int:
    """Rough number of prompt tokens."""
    return sum(estimate_tokens(message["content"]) + TOKENS_PER_MESSAGE for message in messages)


def answer_limit(request: Request, endpoint: Endpoint) -> int:
    """The longest answer that the request allows, in tokens."""
    return request.max_tokens or endpoint.max_tokens


def reservation(request: Request, endpoint: Endpoint) -> tuple[int, int]:
    """The prompt and answer tokens that are set aside before a request is sent."""
    return estimate_prompt(request.messages), answer_limit(request, endpoint)


def request_body(request: Request, endpoint: Endpoint) -> dict[str, Any]:
    """The JSON body that is sent; everything in it is part of the key."""
    temperature = endpoint.temperature if request.temperature is None else request.temperature
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [{"role": m["role"], "content": m["content"]} for m in request.messages],
        endpoint.token_limit_field: answer_limit(request, endpoint),
        "temperature": temperature,
        "top_p": endpoint.top_p,
        "seed": None if endpoint.seed is None else endpoint.seed + request.attempt,
        **endpoint.extra,
    }
    return {name: value for name, value in body.items() if value is not None}


def canonical_request(request: Request, endpoint: Endpoint) -> str:
    """The one JSON text of a request; its hash is the key. The address of the endpoint is no part of it."""
    body = request_body(request, endpoint)
    if "seed" not in body:
        body["attempt"] = request.attempt
    return _dump(body)


def request_content(request: Request, endpoint: Endpoint, canonical: str) -> bytes:
    """The bytes that are sent: the canonical text, unless that names an attempt, which no endpoint knows."""
    return (_dump(request_body(request, endpoint)) if endpoint.seed is None else canonical).encode()


def _dump(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def request_key(canonical: str) -> str:
    """Key of a canonical request in the answer store."""
    return sha256_text(canonical)


@dataclass
class Budget:
    """A hard limit in tokens or money (0: none) over all answers of a job, those replayed from the store included.

    Room for the longest possible answer is reserved before a request is sent, so the limit is passed by no more than
    what the endpoint counts for the prompts in flight beyond their estimates; a request that times out is counted by
    nobody. Replays are admitted in the order of the requests by the same test, and a job is at its end when the next
    request does not fit beside what all before it took: so it ends at the same place whichever of its answers are there
    already.
    """

    max_tokens: int = 0
    max_cost: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    is_exhausted: bool = False
    answers: int = 0  # how many were counted
    counted: set[str] = field(default_factory=set, init=False)  # their keys: for a later call of the job they are paid

    @classmethod
    def of(cls, limits: Limits) -> "Budget":
        """A budget of those limits at their endpoint's prices."""
        return cls(limits.max_total_tokens, limits.max_cost, limits.endpoint.price_in, limits.endpoint.price_out)

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at all."""
        return bool(self.max_tokens or self.max_cost)

    def cost(self) -> float:
        """Money spent or reserved so far."""
        return self.price(self.tokens_in, self.tokens_out)

    def price(self, tokens_in: int, tokens_out: int) -> float:
        """Money for so many tokens."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    @property
    def left(self) -> float:
        """The share of the limits that is neither spent nor reserved; 1 without limits."""
        shares = [(self.tokens_in + self.tokens_out) / self.max_tokens] if self.max_tokens else []
        shares += [self.cost() / self.max_cost] if self.max_cost else []
        return 1 - max(shares, default=0.0)

    def reserve(self, tokens_in: int, tokens_out: int) -> bool:
        """Set tokens aside; False if they do not fit now, or the budget is exhausted, which whoever asks decides."""
        all_in, all_out = self.tokens_in + tokens_in, self.tokens_out + tokens_out
        over_tokens = bool(self.max_tokens) and all_in + all_out > self.max_tokens
        over_cost = bool(self.max_cost) and self.price(all_in, all_out) > self.max_cost
        if self.is_exhausted or over_tokens or over_cost:
            return False
        self.tokens_in, self.tokens_out = all_in, all_out
        return True

    def settle(self, reserved: tuple[int, int], outcome: Outcome | None) -> None:
        """Replace a reservation by what the answer took; without an answer nothing was taken."""
        self.tokens_in -= reserved[0]
        self.tokens_out -= reserved[1]
        if isinstance(outcome, Answer):
            self.tokens_in += outcome.tokens_in
            self.tokens_out += outcome.tokens_out
            self.answers += 1

    def as_report(self) -> dict[str, Any]:
        """What was spent, and whether that was all, ready for JSON."""
        return {
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost": round(self.cost(), 6),
            "is_budget_exhausted": self.is_exhausted,
        }


def take_known(
    asked: Mapping[str, Request], known: Mapping[str, Outcome], endpoint: Endpoint, budget: Budget
) -> dict[str, Outcome]:
    """Let the budget admit the known outcomes, in the order in which they were asked for; return those settled.

    Under a limit this ends at the first request whose outcome is not known, as what comes later must not take the room
    that it may need. Where the budget ends, all further requests are failures.
    """
    taken: dict[str, Outcome] = {}
    for key, request in asked.items():
        if key not in known and not budget.is_limited:
            continue
        tokens = reservation(request, endpoint) if budget.is_limited else (0, 0)
        if not budget.reserve(*tokens):
            budget.is_exhausted = True
            return taken | {key: Failure("budget", BUDGET_REACHED) for key in asked if key not in taken}
        outcome = known.get(key)
        budget.settle(tokens, outcome)
        if outcome is None:
            break
        taken[key] = outcome
    return taken


def common_failure(outcomes: Mapping[str, Outcome], budget: Budget) -> str:
    """One line where it is not single requests that are at fault but what all have in common; else empty.

    That is so where most requests of a call failed in a way that may pass, and where several were refused and the job
    has no answer at all, those of earlier calls and of the store included.
    """
    failures = [found for found in outcomes.values() if isinstance(found, Failure) and found.reason != "budget"]
    answers = sum(isinstance(found, Answer) for found in outcomes.values())
    passing = [found for found in failures if not found.is_final]
    if len(passing) > max(answers, FEW if budget.answers else 1):
        return f"{len(passing)} requests got no answer ({passing[0].detail}); run the same command to ask again"
    if not (budget.answers or answers) and len(failures) > 1:
        return f"all {len(failures)} requests were refused ({failures[0].detail}); {CHECK_REQUESTS}"
    return ""
