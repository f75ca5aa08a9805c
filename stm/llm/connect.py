"""Opens openai clients for an endpoint: key from the environment, no proxy before loopback.

Knows nothing of requests.
"""

import os
from typing import cast

import openai

from stm.params.llm import Endpoint

NO_KEY = "none"
# Headers that describe this machine to the endpoint; building them costs a sixth of the CPU of a request.
TELEMETRY = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def read_key(endpoint: Endpoint) -> str:
    """The key, empty if there is none; it must never be shown."""
    return os.environ.get(endpoint.api_key_env, "") if endpoint.api_key_env else ""


def _trusts_proxies(endpoint: Endpoint) -> bool:
    return not endpoint.base_url.split("://", 1)[-1].startswith(LOOPBACK)


def open_async_client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    """A client for many requests at once, without retries of its own.

    Its transport is aiohttp, which takes a good deal less time of the CPU per request than the default one.
    """
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=read_key(endpoint) or NO_KEY,
        organization="",
        max_retries=0,
        timeout=endpoint.timeout_seconds,
        # Leaving a header out is allowed here, though the client's types say so only per request.
        default_headers=cast("dict[str, str]", {f"X-Stainless-{name}": openai.omit for name in TELEMETRY}),
        http_client=openai.DefaultAioHttpClient(trust_env=_trusts_proxies(endpoint)),
    )


def open_client(endpoint: Endpoint) -> openai.OpenAI:
    """A client for single calls, with retries."""
    return openai.OpenAI(
        base_url=endpoint.base_url,
        api_key=read_key(endpoint) or NO_KEY,
        organization="",
        max_retries=endpoint.retries,
        timeout=endpoint.timeout_seconds,
        http_client=openai.DefaultHttpx2Client(trust_env=_trusts_proxies(endpoint)),
    )
