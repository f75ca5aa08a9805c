"""Opens openai clients for an endpoint: key from the environment, no proxy before loopback.

Knows nothing of requests.
"""

import os
from typing import Any, cast

import httpx2
import openai

from stm.errors import EndpointError
from stm.params.llm import Endpoint

NO_KEY = "none"
# Headers that describe this machine to the endpoint; building them costs a sixth of the CPU of a request.
TELEMETRY = ("Lang", "Package-Version", "OS", "Arch", "Runtime", "Runtime-Version", "Async")
ENCODINGS = "gzip, deflate"  # of answers; what the transport would offer else depends on the packages that it finds
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def read_key(endpoint: Endpoint) -> str:
    """The key without blanks around it, empty if there is none; it must never be shown.

    `EndpointError` for one that no header can hold: libraries would show it in their messages.
    """
    key = os.environ.get(endpoint.api_key_env, "").strip() if endpoint.api_key_env else ""
    if not (key.isascii() and key.isprintable()):
        raise EndpointError(
            f"the key in the environment variable {endpoint.api_key_env} holds a character that no key has (a line "
            "break, a typographic quote); set it again"
        )
    return key


def _trusts_proxies(endpoint: Endpoint) -> bool:
    return not endpoint.base_url.split("://", 1)[-1].startswith(LOOPBACK)


class LeanClient(openai.DefaultAioHttpClient):
    """An HTTP client that sends what the openai client gives it, as it is.

    The openai client names the whole address and all headers of each request; parsing and merging them once more would
    cost a fifth of the CPU of a request.
    """

    _parsed: tuple[str, httpx2.URL] = ("", httpx2.URL())  # the address of the last request, nearly always the next one

    def build_request(
        self, method: str, url: httpx2.URL | str, *, content: Any = None, headers: Any = None, timeout: Any = None,
        **others: Any,
    ) -> httpx2.Request:  # fmt: skip
        """A request whose body is bytes; any other is left to the library."""
        if not isinstance(content, bytes) or any(others.values()):
            return super().build_request(method, url, content=content, headers=headers, timeout=timeout, **others)
        if self._parsed[0] != url:
            self._parsed = (str(url), httpx2.URL(url))
        limits = {"timeout": httpx2.Timeout(timeout).as_dict()}
        return httpx2.Request(method, self._parsed[1], content=content, headers=headers, extensions=limits)


class LeanOpenAI(openai.AsyncOpenAI):
    """An openai client that parses the address of its requests once; it costs a twentieth of the CPU of a request."""

    _prepared: tuple[str, httpx2.URL] = ("", httpx2.URL())

    def _prepare_url(self, url: str) -> httpx2.URL:
        if self._prepared[0] != url:
            self._prepared = (url, super()._prepare_url(url))
        return self._prepared[1]


def open_async_client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    """A client for many requests at once, without retries of its own.

    Its transport is aiohttp, which takes a good deal less time of the CPU per request than the default one.
    """
    return LeanOpenAI(
        base_url=endpoint.base_url,
        api_key=read_key(endpoint) or NO_KEY,
        organization="",
        max_retries=0,
        timeout=endpoint.timeout_seconds,
        # Leaving a header out is allowed here, though the client's types say so only per request.
        default_headers=cast(
            "dict[str, str]",
            {"Accept-Encoding": ENCODINGS, **{f"X-Stainless-{name}": openai.omit for name in TELEMETRY}},
        ),
        http_client=LeanClient(trust_env=_trusts_proxies(endpoint)),
    )


def open_client(endpoint: Endpoint) -> openai.OpenAI:
    """A client for single calls, with retries; `EndpointError` for a proxy of a kind that it cannot use (socks)."""
    try:
        transport = openai.DefaultHttpx2Client(trust_env=_trusts_proxies(endpoint))
    except ImportError as error:
        raise EndpointError(f"the proxy that the environment names cannot be used: {error}") from error
    return openai.OpenAI(
        base_url=endpoint.base_url,
        api_key=read_key(endpoint) or NO_KEY,
        organization="",
        max_retries=endpoint.retries,
        timeout=endpoint.timeout_seconds,
        http_client=transport,
    )
