"""The values of LLM work: a request, its canonical form and key, an answer, a failure, a budget.

Pure values; knows nothing of HTTP, of stores or of what the texts are for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stm.files import sha256_text
from stm.params.llm import Endpoint, Limits

Messages = Sequence[Mapping[str, str]]
CHARS_PER_TOKEN = 3.5  # English prose is nearer to 4.5; a budget should rather stop early
TOKENS_PER_MESSAGE = 8


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
    def is_final(self) -> bool:
        """Whether asking again would change nothing: the endpoint refused it, or the budget is at its end."""
        return self.reason in ("rejected", "budget")


def estimate_tokens(text: str) -> int:
    """Rough number of tokens of a text; only for estimates and reservations."""
    return int(len(text.encode("utf-8", "replace")) / CHARS_PER_TOKEN) + 1


def estimate_prompt(messages: Messages) -> int:
    """Rough number of prompt tokens."""
    return sum(estimate_tokens(message["content"]) + TOKENS_PER_MESSAGE for message in messages)


def answer_limit(request: Request, endpoint: Endpoint) -> int:
    """The longest answer that the request allows, in tokens."""
    return request.max_tokens or endpoint.max_tokens


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

    Room for the longest possible answer is reserved before a request is sent, so the limit is never passed, as the
    endpoint counts; a request that times out is counted by nobody. Replays count, and a job is at its end when the next
    request does not fit beside what was spent, with nothing in flight: so it ends at the same place whether or not its
    answers are there already.
    """

    max_tokens: int = 0
    max_cost: float = 0.0
    price_in: float = 0.0
    price_out: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    is_exhausted: bool = False

    @classmethod
    def of(cls, limits: Limits, endpoint: Endpoint) -> "Budget":
        """A budget of those limits at the endpoint's prices."""
        return cls(limits.max_total_tokens, limits.max_cost, endpoint.price_in, endpoint.price_out)

    def cost(self) -> float:
        """Money spent or reserved so far."""
        return self._price(self.tokens_in, self.tokens_out)

    def _price(self, tokens_in: int, tokens_out: int) -> float:
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
        over_cost = bool(self.max_cost) and self._price(all_in, all_out) > self.max_cost
        if self.is_exhausted or over_tokens or over_cost:
            return False
        self.tokens_in, self.tokens_out = all_in, all_out
        return True

    def settle(self, reserved: tuple[int, int], answer: Answer | None) -> None:
        """Replace a reservation by what the answer took; without an answer nothing was taken."""
        used = (answer.tokens_in, answer.tokens_out) if answer else (0, 0)
        self.tokens_in += used[0] - reserved[0]
        self.tokens_out += used[1] - reserved[1]
