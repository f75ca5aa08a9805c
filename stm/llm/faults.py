"""What can go wrong with one HTTP exchange, and what to do about it: a table from error to reason and remedy.

Takes exceptions of the openai client and raw bodies, gives faults with one line of text each; never lets a key through.
Sends nothing itself.
"""

import email.utils
import json
import random
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import openai

from stm.llm.answers import Answer, Request, estimate_prompt, estimate_tokens

Remedy = Literal["retry", "give_up", "stop"]  # the same request again; this request fails; the whole job ends
DETAIL_CHARS = 160
LONGEST_BACKOFF_SECONDS = 60.0  # between two attempts, where the endpoint asks for no pause of its own
LONGEST_PAUSE_SECONDS = 600.0  # an endpoint that asks for more wants the job to end
PASSING = (408, 409, 425, 429)  # the only statuses from 400 to 499 after which the same request may be answered
# What gateways say where a row's text, and not the key, is forbidden: OpenRouter answers HTTP 403 then.
MODERATED = re.compile(
    r"flagged_input|requires moderation|\b(?:input|prompt|content|text|message)s? (?:was|were|is|has been) flagged|"
    r"content[ _]?(?:policy|filter)",
    re.IGNORECASE,
)
THOUGHT = re.compile(r"^[ \t]*</think>[ \t]*$", re.MULTILINE)
MOST_TOKENS = 2**63 - 1  # what the answer store and its files can hold


@dataclass
class FaultError(Exception):
    """One failed attempt."""

    reason: str
    detail: str
    remedy: Remedy = "retry"
    retry_after: float = 0.0  # seconds


def one_line(text: str, secret: str) -> str:
    """Cut foreign text to one short printable line without the secret."""
    if secret:
        text = text.replace(secret, "[key]")
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * DETAIL_CHARS]).split())
    return line if len(line) <= DETAIL_CHARS else line[:DETAIL_CHARS] + "..."


def show_json(data: Any, secret: str) -> str:
    """Foreign data as one short line without the secret."""
    try:
        return one_line(json.dumps(data), secret)
    except RecursionError:
        return "JSON that is nested without end"


def backoff_seconds(first_seconds: float, attempt: int) -> float:
    """The pause after the failed attempt of this number, counted from 0: exponential with full jitter."""
    return random.uniform(0, min(LONGEST_BACKOFF_SECONDS, first_seconds * 2**attempt))


def parse_retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the endpoint asks to wait (`retry-after-ms`, `Retry-After` in seconds or as a date); 0 if none."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            return max(0.0, float(value) / unit)
        except ValueError:
            pass
        date = email.utils.parsedate_tz(value)
        if date:
            return max(0.0, email.utils.mktime_tz(date) - time.time())
    return 0.0


def _status_fault(error: openai.APIStatusError, key_env: str, secret: str) -> FaultError:
    status, text = error.status_code, one_line(error.response.text, secret)
    if status == 403 and MODERATED.search(error.response.text):
        return FaultError("rejected", f"HTTP 403: {text}", "give_up")
    if status in (401, 403):
        hint = f"check the environment variable {key_env}" if key_env else "name the key's variable in api_key_env"
        return FaultError("unauthorised", f"HTTP {status}: the key is missing, wrong or not allowed; {hint}", "stop")
    if status == 404:
        return FaultError("not_found", f"HTTP 404: {text}; check base_url (it should end in /v1) and model", "stop")
    if status == 402 or "insufficient_quota" in error.response.text:
        return FaultError("no_credit", f"HTTP {status}: the account has no credit left", "stop")
    retry_after = parse_retry_after(error.response.headers)
    if retry_after > LONGEST_PAUSE_SECONDS:
        return FaultError("rate_limited", f"HTTP {status}: asks to wait {retry_after:.0f} s; run again then", "stop")
    if status == 429:
        return FaultError("rate_limited", f"HTTP 429: {text}", "retry", retry_after)
    if status >= 500 or status in PASSING:
        return FaultError("server_error", f"HTTP {status}: {text}", "retry", retry_after)
    return FaultError("rejected", f"HTTP {status}: {text}", "give_up")


def explain_error(error: Exception, key_env: str, secret: str) -> FaultError:
    """Turn an exception of one attempt into a fault."""
    if isinstance(error, openai.APIStatusError):
        return _status_fault(error, key_env, secret)
    chain = list(_causes(error))
    if any(isinstance(link, TimeoutError) for link in chain):
        return FaultError("timeout", "no answer in time")
    cause = chain[-1]
    return FaultError("connection", one_line(f"{type(cause).__name__}: {cause}", secret))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from; the libraries' own names call a closed connection a timeout."""
    while error:
        yield error
        error = error.__cause__


def read_answer(body: bytes, request: Request, secret: str) -> Answer:
    """Parse a chat completion; a `FaultError` if it is something else."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):  # the second for JSON that is nested without end
        text = body[:1000].decode("utf-8", "replace")
        kind = "HTML" if "<html" in text.lower() or "<!doctype" in text.lower() else "no JSON"
        raise FaultError("not_json", f"the endpoint answered {kind}: {one_line(text, secret)}") from None
    return read_completion(data, request, secret)


def read_completion(data: Any, request: Request, secret: str) -> Answer:
    """The answer in a chat completion that is parsed already; a `FaultError` if it is something else."""
    choices = data.get("choices") if isinstance(data, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(first, dict) or not isinstance(message, dict):
        raise FaultError("no_choices", f"the answer holds no choices: {show_json(data, secret)}")
    reason = _clean_text(first.get("finish_reason"))
    if first.get("error") or reason == "error":  # a gateway whose model failed after it had answered HTTP 200
        raise FaultError("server_error", f"the model failed: {show_json(first.get('error'), secret)}")
    written = _join_parts(message.get("content"))
    usage = data.get("usage") if isinstance(data.get("usage"), dict) else {}
    tokens_in = _count(usage, "prompt_tokens", estimate_prompt(request.messages))
    tokens_out = _count(usage, "completion_tokens", estimate_tokens(written))
    # Some endpoints count what the model thinks in the total alone (xAI; gateways to Gemini), and bill it.
    is_told = isinstance(usage.get("prompt_tokens"), int)
    thought = _count(usage, "total_tokens", 0) - tokens_in if is_told else 0
    return Answer(_cut_thinking(written), reason, tokens_in, max(tokens_out, thought))


def _join_parts(content: Any) -> str:
    """The text of a message, which some endpoints give in parts, those of the thinking among them."""
    if not isinstance(content, list):
        return _clean_text(content)
    texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
    return "".join(map(_clean_text, texts))


def _cut_thinking(text: str) -> str:
    """What a model wrote after it thought, where a server leaves the thinking in the text; empty if it never ended.

    Some templates open the thinking in the prompt; then its end stands alone on a line.
    """
    if text.lstrip().startswith("<think>"):
        return text.partition("</think>")[2].strip()
    return THOUGHT.split(text, maxsplit=1)[-1].strip() if THOUGHT.search(text) else text


def _clean_text(value: Any) -> str:
    # A lone surrogate could be neither stored nor written; it is no text.
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""


def _count(usage: Mapping[str, Any], name: str, default: int) -> int:
    value = usage.get(name)
    if isinstance(value, int) and value > MOST_TOKENS:
        raise FaultError("bad_usage", f"the answer claims more than {MOST_TOKENS} {name}")
    return value if isinstance(value, int) and value >= 0 else default
