"""Params of an LLM endpoint, used as a field by every section that asks an LLM.

Holds what is sent and where; keys never stand here, only the name of the environment variable that has one.
"""

import json
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from stm.params.base import Section

# Fields that have params of their own, which keys and budgets count on.
RESERVED = frozenset(
    {"messages", "model", "stream", "n", "seed", "temperature", "top_p", "max_tokens", "max_completion_tokens"}
)

REQUESTS = 4096  # in memory at once


class Endpoint(Section):
    """An OpenAI-compatible chat endpoint and the sampling that it is asked for."""

    base_url: str = Field("", description="URL up to and with /v1; empty: the embedded llama.cpp server")
    model: str = Field("SmolLM2-135M-Instruct", min_length=1, description="model name as the endpoint knows it")
    temperature: float | None = Field(0.7, ge=0, le=2, description="sampling temperature; null: not sent")
    top_p: float | None = Field(0.95, gt=0, le=1, description="nucleus sampling mass; null: not sent")
    max_tokens: int = Field(72, ge=1, le=32768, description="longest answer, in tokens")
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="the body field that carries max_tokens (newer OpenAI models want the second)"
    )
    extra: dict[str, Any] = Field(default_factory=dict, description="further body fields, e.g. reasoning_effort: low")
    seed: int | None = Field(1, ge=0, description="sampling seed of the first attempt; null: not sent")
    concurrency: int = Field(1, ge=1, le=1024, description="most requests in flight; slots of the embedded server")
    timeout_seconds: float = Field(300.0, gt=0, le=3600, description="longest wait for one answer, in seconds")
    retries: int = Field(5, ge=0, le=20, description="how often a failed request is repeated")
    retry_seconds: float = Field(
        0.5, gt=0, le=60, description="first wait before a repeat, in seconds; doubles, with jitter"
    )
    batch: bool = Field(
        False, description="whether requests go as batch files (cheaper, up to a day) instead of one by one"
    )
    poll_seconds: float = Field(30.0, gt=0, le=3600, description="wait between two looks at an open batch, in seconds")
    batch_requests: int = Field(20000, ge=1, le=50000, description="most requests per batch file")
    api_key_env: str = Field("OPENAI_API_KEY", description="environment variable that holds the key; empty: no key")
    price_in: float = Field(0.0, ge=0, description="price of a million prompt tokens, in money units")
    price_out: float = Field(0.0, ge=0, description="price of a million answer tokens, in money units")
    context_tokens: int = Field(
        2048, ge=128, le=8192, description="context of each slot of the embedded server, in tokens"
    )
    threads: int = Field(
        0, ge=0, le=256, description="threads of the embedded server; 0: as many as there are idle cores"
    )

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if not url:
            return url
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url must look like https://host/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("base_url must hold no key; name an environment variable in api_key_env")
        return url.rstrip("/")

    @field_validator("extra")
    @classmethod
    def _check_extra(cls, extra: dict[str, Any]) -> dict[str, Any]:
        clash = sorted(RESERVED & set(extra))
        if clash:
            raise ValueError(f"extra must not set {', '.join(clash)}")
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra must be what JSON can hold ({error}); put quotes around a date") from error
        return extra

    @property
    def requests_at_once(self) -> int:
        """How many requests are handed over together: enough to keep it busy, and ten full files where it takes batch
        files, which it works on side by side.
        """
        return 10 * self.batch_requests if self.batch and not self.is_embedded else REQUESTS

    @property
    def is_embedded(self) -> bool:
        """Whether the embedded server answers."""
        return not self.base_url


class Limits(Section):
    """What the answers of one split may take in all, for sections that ask an endpoint per split."""

    max_total_tokens: int = Field(0, ge=0, description="hard limit per split, prompt and answer tokens; 0: none")
    max_cost: float = Field(
        0.0, ge=0, description="hard limit per split, in the money units of the endpoint's prices; 0: none"
    )
    endpoint: Endpoint = Field(default_factory=Endpoint, description="the LLM and its sampling")

    @model_validator(mode="after")
    def _check_prices(self) -> Self:
        if self.max_cost and not (self.endpoint.price_in or self.endpoint.price_out):
            raise ValueError("max_cost limits nothing without the endpoint's price_in and price_out; set them too")
        return self
