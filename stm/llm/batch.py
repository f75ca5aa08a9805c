"""The same requests as OpenAI Batch API files: submit, poll, collect, resume after a restart, retry error lines.

What was submitted is recorded beside the answers before it is sent, so a restart collects the batch instead of paying
for another. Knows nothing of what the texts are for.
"""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import openai
from openai.types import Batch, FileObject

from stm.errors import EndpointError
from stm.files import sha256_text
from stm.llm.answers import (
    BUDGET_REACHED,
    Answer,
    Budget,
    Failure,
    Outcome,
    Request,
    canonical_request,
    common_failure,
    request_body,
    reservation,
    take_known,
)
from stm.llm.batch_results import read_lines, take_line
from stm.llm.connect import open_client
from stm.llm.faults import backoff_seconds, explain_error, one_line
from stm.llm.store import AnswerStore, BatchRecord
from stm.params.llm import Endpoint
from stm.progress import say

URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
DONE = ("completed", "failed", "expired", "cancelled")  # an endpoint may have states of its own before
TAG = "stm"  # metadata key by which a batch is found again that was created just before a crash
LISTED = 100  # batches per page of the list
NO_JSON = (
    "it answers something else than JSON; see that base_url is right (it should end in /v1) and that the endpoint "
    "takes batch files, and run the same command to go on"
)
WORTH_A_BATCH = 0.1  # share of a limit that must be left for one more batch: each can take a day


def complete_batch(
    asked: Mapping[str, Request], stored: Mapping[str, Outcome], endpoint: Endpoint, store: AnswerStore, budget: Budget
) -> dict[str, Outcome]:
    """Answer through the batch API what the budget allows; `stored` are the outcomes that are there already.

    What did not fit beside the reservations of a batch follows once that is answered, unless little is left then. Under
    a limit stored outcomes take their part in such a round like those that it waits for: so it is made up of the same
    requests after a restart, which thereby finds the batches that were paid for, and in a replay.
    """
    outcomes: dict[str, Outcome] = {} if budget.is_limited else take_known(asked, stored, endpoint, budget)
    while todo := {key: request for key, request in asked.items() if key not in outcomes}:
        reserved = _reserve(todo, endpoint, budget) if budget.left >= WORTH_A_BATCH else {}
        if not reserved:
            budget.is_exhausted = True
            for record in _own(todo, endpoint, store):
                name = record.batch_id or record.tag[:12]
                say(
                    f"batch {name} of {len(record.requests)} requests is beyond the limit and is left open; its "
                    "answers are paid for and come with a higher limit, while the endpoint keeps them"
                )
            return outcomes | {key: Failure("budget", BUDGET_REACHED) for key in todo}
        outcomes |= {key: stored[key] for key in reserved if key in stored}
        outcomes |= _complete({key: todo[key] for key in reserved if key not in stored}, endpoint, store)
        for key, tokens in reserved.items():
            budget.settle(tokens, outcomes[key])
        if failure := common_failure(outcomes, budget):
            raise EndpointError(f"batch API of {endpoint.base_url}: {failure}")
    return outcomes


def _reserve(requests: Mapping[str, Request], endpoint: Endpoint, budget: Budget) -> dict[str, tuple[int, int]]:
    """What was set aside for the first requests, as many as fit."""
    reserved: dict[str, tuple[int, int]] = {}
    for key, request in requests.items():
        tokens = reservation(request, endpoint)
        if not budget.reserve(*tokens):
            break
        reserved[key] = tokens
    return reserved


def _complete(requests: Mapping[str, Request], endpoint: Endpoint, store: AnswerStore) -> dict[str, Outcome]:
    """An answer or a failure for each request."""
    if not requests:
        return {}
    with open_client(endpoint) as client:
        outcomes: dict[str, Outcome] = dict(run_batches(requests, client, endpoint, store))
    for key, outcome in store.get(list(requests)).items():
        if isinstance(outcome, Answer):  # asked for just now, or in a batch of this job before a restart
            outcomes[key] = dataclasses.replace(outcome, is_replayed=False)
    return outcomes


def run_batches(
    requests: Mapping[str, Request], client: openai.OpenAI, endpoint: Endpoint, store: AnswerStore
) -> dict[str, Failure]:
    """Answer the requests (by key) through batches into `store`; return the failures by key.

    Error lines and expired requests are submitted again, `endpoint.retries` times at most. `EndpointError` if the
    endpoint has no working batch API.
    """
    failures: dict[str, Failure] = {}
    tries: Counter[str] = Counter()  # of each request: batches that it was in, but for those that were never worked on
    try:
        while missing := _missing(requests, store):
            recorded = {key for record in _own(requests, endpoint, store) for key in record.requests}
            settled = recorded | {key for key, failure in failures.items() if failure.is_refusal}
            fresh = [key for key in missing if key not in settled and tries[key] <= endpoint.retries]
            if not (fresh or recorded):
                break
            for start in range(0, len(fresh), endpoint.batch_requests):
                _submit(fresh[start : start + endpoint.batch_requests], requests, client, endpoint, store)
            found, lost = _collect(requests, client, endpoint, store)
            failures.update(found)
            tries.update(fresh)
            tries.update(recorded - lost)
    except json.JSONDecodeError:
        raise EndpointError(f"batch API of {endpoint.base_url}: {NO_JSON}") from None
    except openai.OpenAIError as error:
        fault = explain_error(error, endpoint.api_key_env, client.api_key)
        raise EndpointError(
            f"batch API of {endpoint.base_url}: {fault.detail}; run the same command to go on"
        ) from None
    return {key: failures.get(key, Failure("expired", "no answer came in time")) for key in _missing(requests, store)}


def _missing(requests: Mapping[str, Request], store: AnswerStore) -> list[str]:
    there = store.get(list(requests))
    return [key for key in requests if key not in there]


def _own(requests: Mapping[str, Request], endpoint: Endpoint, store: AnswerStore) -> list[BatchRecord]:
    """The open batches with any of these requests; those of another job are left for it to wait for."""
    return [record for record in store.batches(endpoint.base_url) if not requests.keys().isdisjoint(record.requests)]


def _submit(
    keys: Sequence[str], requests: Mapping[str, Request], client: openai.OpenAI, endpoint: Endpoint, store: AnswerStore
) -> None:
    lines = (
        json.dumps({"custom_id": key, "method": "POST", "url": URL, "body": request_body(requests[key], endpoint)})
        for key in keys
    )
    payload = ("\n".join(lines) + "\n").encode()
    tag = sha256_text(*keys, str(time.time_ns()))
    file = client.files.create(file=(f"{tag[:12]}.jsonl", payload), purpose="batch")
    _require(file, FileObject, endpoint)
    # Before there is anything to pay for.
    store.open_batch(tag, endpoint.base_url, {key: canonical_request(requests[key], endpoint) for key in keys})
    batch = _create(file.id, tag, client, endpoint)
    _require(batch, Batch, endpoint)
    store.name_batch(tag, batch.id)
    say(f"batch {batch.id}: {len(keys)} requests submitted; it is safe to stop and run the same command later")


def _create(file_id: str, tag: str, client: openai.OpenAI, endpoint: Endpoint) -> Batch:
    """Create the batch, once: after a connection that was cut there may be one, for which the next run looks."""
    once = client.with_options(max_retries=0)
    attempt = 0
    while True:
        try:
            return once.batches.create(
                input_file_id=file_id, endpoint=URL, completion_window="24h", metadata={TAG: tag}
            )
        except openai.RateLimitError:  # which has created nothing
            if attempt == endpoint.retries:
                raise
        time.sleep(backoff_seconds(endpoint.retry_seconds, attempt))
        attempt += 1


def _require(answer: object, kind: type, endpoint: Endpoint) -> None:
    """`EndpointError` for what is no JSON, which the client hands over as text."""
    if not isinstance(answer, kind):
        raise EndpointError(f"batch API of {endpoint.base_url}: {NO_JSON}")


def _collect(
    requests: Mapping[str, Request], client: openai.OpenAI, endpoint: Endpoint, store: AnswerStore
) -> tuple[dict[str, Failure], set[str]]:
    """Wait for the open batches of these requests and store their answers.

    Returns the failures, and the keys of batches that do not exist: recorded but never created, or unknown to the
    server by now. These are forgotten, so that their requests are submitted in the next round.
    """
    failures: dict[str, Failure] = {}
    lost: set[str] = set()
    for record in _own(requests, endpoint, store):
        try:
            batch_id = record.batch_id or _find(client, record.tag)
            if not batch_id:
                lost |= record.requests.keys()
            else:
                failures.update(_collect_one(batch_id, record, requests, client, endpoint, store))
        except openai.NotFoundError:
            name = record.batch_id or record.tag[:12]
            say(f"batch {name} is unknown to {endpoint.base_url} by now; what it did not answer is submitted again")
            lost |= record.requests.keys()
        store.close_batch(record.tag)
    return failures, lost


def _find(client: openai.OpenAI, tag: str) -> str:
    seen: set[str] = set()
    for batch in client.batches.list(limit=LISTED):  # page after page
        if (batch.metadata or {}).get(TAG) == tag:
            return batch.id
        if batch.id in seen:  # an endpoint that knows no pages gives the same one again
            break
        seen.add(batch.id)
    return ""


def _look(batch_id: str, client: openai.OpenAI, endpoint: Endpoint) -> Batch:
    batch = client.batches.retrieve(batch_id)
    _require(batch, Batch, endpoint)
    return batch


def _collect_one(
    batch_id: str, record: BatchRecord, requests: Mapping[str, Request], client: openai.OpenAI, endpoint: Endpoint,
    store: AnswerStore,
) -> dict[str, Failure]:  # fmt: skip
    batch = _look(batch_id, client, endpoint)
    while batch.status not in DONE:
        time.sleep(endpoint.poll_seconds)
        batch = _look(batch_id, client, endpoint)
        done = batch.request_counts.completed if batch.request_counts else 0
        say(f"batch {batch_id}: {batch.status}, {done} done")
    failures: dict[str, Failure] = {}
    if batch.status == "failed" and not batch.output_file_id:
        store.close_batch(record.tag)  # the next run may submit again
        reasons = (batch.errors.data if batch.errors else None) or []
        text = one_line("; ".join(error.message or "" for error in reasons) or "no reason given", client.api_key)
        raise EndpointError(f"batch {batch_id} was refused: {text}; mend params.yaml and run again")
    for line in read_lines(batch, client):
        failures.update(take_line(line, record, requests, client, store))
    if batch.status == "cancelled":
        store.close_batch(record.tag)
        raise EndpointError(
            f"batch {batch_id} was cancelled at the endpoint; its answers are kept, run the same command to submit the "
            "others again"
        )
    return failures
