"""Asks an OpenAI-compatible endpoint for many chat completions; every answer is stored the moment it arrives.

Requests go in, answers or failures come out in the same order; what the store holds is not asked again. Knows nothing
of what the texts are for.
"""

import asyncio
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import aiohttp
import httpx2
import openai

from stm.errors import EndpointError
from stm.llm.answers import (
    BUDGET_REACHED,
    CHECK_REQUESTS,
    FEW,
    Answer,
    Budget,
    Failure,
    Outcome,
    Request,
    canonical_request,
    common_failure,
    request_content,
    request_key,
    reservation,
    take_known,
)
from stm.llm.batch import complete_batch
from stm.llm.connect import open_async_client, read_key
from stm.llm.faults import FaultError, backoff_seconds, explain_error, read_answer
from stm.llm.pace import Pace
from stm.llm.server import serve
from stm.llm.store import AnswerStore
from stm.params.llm import Endpoint
from stm.progress import Meter

Queue = Iterator[tuple[int, tuple[Request, Outcome | None]]]
OUTAGES = ("connection", "rate_limited")  # which no single request is at fault for
REFUSALS = 8  # refused requests before any answer, after which the requests as such are taken to be wrong


def complete_all(
    requests: Sequence[Request],
    endpoint: Endpoint,
    store: AnswerStore,
    description: str = "llm",
    budget: Budget | None = None,
) -> list[Outcome]:
    """Return an answer or a failure for each request, in order.

    Equal requests are asked once. Raises `EndpointError` if the endpoint as such does not work (unreachable, wrong key,
    no such model, no API at that address), refuses all requests of a job or stops working; all answers up to then are
    in the store, so the same call goes on from there.
    """
    budget = budget or Budget()
    keys = [request_key(canonical_request(request, endpoint)) for request in requests]
    asked = dict(zip(keys, requests, strict=True))
    stored = store.get(sorted(asked))
    # What this job has used before is paid for, and takes no part in its limits again.
    before = {key: stored[key] for key in asked if key in budget.counted and key in stored}
    asked = {key: request for key, request in asked.items() if key not in before}
    if endpoint.batch and not endpoint.is_embedded:
        outcomes = complete_batch(asked, stored, endpoint, store, budget)
    else:
        outcomes = _complete_live(asked, stored, endpoint, store, description, budget)
    answered = [key for key, outcome in outcomes.items() if isinstance(outcome, Answer)]
    refused = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Failure) and outcome.is_refusal}
    store.keep_refusals({canonical_request(asked[key], endpoint): refusal for key, refusal in refused.items()})
    store.mark_used([*answered, *refused])
    budget.counted.update(answered)
    outcomes |= before
    return [outcomes[key] for key in keys]


def _complete_live(
    asked: Mapping[str, Request], stored: Mapping[str, Outcome], endpoint: Endpoint, store: AnswerStore,
    description: str, budget: Budget,
) -> dict[str, Outcome]:  # fmt: skip
    """What the store and a live endpoint answer, by key. Without a limit the job sees only what is not stored."""
    outcomes = take_known(asked, stored, endpoint, budget)
    todo = {key: request for key, request in asked.items() if key not in outcomes}
    if not todo:
        return outcomes
    with serve(endpoint) as live, Meter(description, len(todo)) as meter:
        # From a copy: the job spends in the order in which answers come, what counts is the order of the requests.
        job = _Job(live, store, dataclasses.replace(budget), meter)
        asyncio.run(job.run([(request, stored.get(key)) for key, request in todo.items()]))
    outcomes |= take_known(todo, dict(zip(todo, job.outcomes, strict=True)), endpoint, budget)
    where = f"LLM endpoint {endpoint.base_url or '(the embedded server)'}"
    if job.stop:
        raise EndpointError(f"{where}: {job.stop.detail}; {_advise(job.stop, job.answered, endpoint)}")
    if failure := common_failure(outcomes, budget):
        raise EndpointError(f"{where}: {failure}")
    return outcomes


def _advise(fault: FaultError, answered: int, endpoint: Endpoint) -> str:
    if answered:
        return f"{answered} new answers are kept, run the same command to go on"
    if fault.reason == "rejected":
        return CHECK_REQUESTS
    key = f", and the key in the environment variable {endpoint.api_key_env}" if endpoint.api_key_env else ""
    is_unset = " (which is not set)" if key and not read_key(endpoint) else ""
    return f"nothing was answered; see that it runs, that base_url and model in params.yaml are right{key}{is_unset}"


class _Job:
    """One run of `complete_all` against a live endpoint; lives inside one event loop."""

    def __init__(self, endpoint: Endpoint, store: AnswerStore, budget: Budget, meter: Meter) -> None:
        self.endpoint, self.store, self.budget, self.meter = endpoint, store, budget, meter
        self.url = f"{endpoint.base_url}/chat/completions"  # whole, so that nothing is joined per request
        # Given, so that the openai client, whose type for them is private, does not copy its defaults per request.
        self.options: Any = {"headers": {}, "params": {}, "max_retries": 0, "timeout": endpoint.timeout_seconds}
        self.outcomes: list[Outcome] = []
        self.answered = self.tokens = self.broken = self.refused = self.in_flight = 0
        self.stop: FaultError | None = None

    async def run(self, todo: Sequence[tuple[Request, Outcome | None]]) -> None:
        """Settle the requests; those with a stored outcome take their turn, and are not sent."""
        self.outcomes = [Failure("stopped", "not asked")] * len(todo)
        self.pace = Pace(self.endpoint.concurrency)
        self.turn, self.freed = asyncio.Lock(), asyncio.Event()
        self.client, self.secret = open_async_client(self.endpoint), read_key(self.endpoint)
        queue = iter(enumerate(todo))
        async with self.client:
            # One request goes first and alone, so that a wrong address or key costs one call and not a storm.
            while not self._is_proven and await self._step(queue):
                pass
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(self.endpoint.concurrency, len(todo))):
                        group.create_task(self._work(queue))
            except ExceptionGroup as group_error:  # such as a full disk under the store: one error, as of one worker
                raise group_error.exceptions[0] from None

    @property
    def _is_proven(self) -> bool:
        """Whether the endpoint works: it gave an answer, or refused a request of a job that has answers."""
        return self.answered > 0 or (self.refused > 0 and self.budget.answers > 0)

    async def _work(self, queue: Queue) -> None:
        # Workers share one iterator: memory holds only what is in flight. After a stop they end by themselves.
        while await self._step(queue):
            pass

    async def _step(self, queue: Queue) -> bool:
        """Settle the next request; False if there is none or the job stops."""
        if self.stop or (entry := next(queue, None)) is None:
            return False
        index, (request, stored) = entry
        self.outcomes[index] = await self._settle(request, stored)
        self.meter.advance(note=f"{self.tokens} tokens")
        return True

    async def _settle(self, request: Request, stored: Outcome | None) -> Outcome:
        reserved = reservation(request, self.endpoint)
        if not await self._reserve(reserved):
            return Failure("budget", BUDGET_REACHED)
        outcome = stored
        try:
            outcome = outcome or await self._answer(request)
        except FaultError as fault:
            return self._fail(fault)
        finally:
            self.budget.settle(reserved, outcome)
            self.in_flight -= 1
            self.freed.set()
        return outcome

    async def _answer(self, request: Request) -> Answer:
        """Ask, and store what comes."""
        canonical = canonical_request(request, self.endpoint)
        content = request_content(request, self.endpoint, canonical)
        answer = self.store.put(canonical, await self._retry(request, content))
        self.answered, self.broken = self.answered + 1, 0
        self.tokens += answer.tokens_in + answer.tokens_out
        return answer

    async def _reserve(self, tokens: tuple[int, int]) -> bool:
        """Set tokens aside in the order of the requests; what does not fit waits for reservations to become answers."""
        async with self.turn:
            while not self.budget.reserve(*tokens):
                if self.budget.is_exhausted or not self.in_flight:
                    self.budget.is_exhausted = True
                    return False
                self.freed.clear()
                await self.freed.wait()
            self.in_flight += 1
            return True

    def _fail(self, fault: FaultError) -> Failure:
        """Record a request that is given up; too many in a row mean that the endpoint itself is broken."""
        if fault.remedy == "retry":
            self.broken += 1
        else:
            self.refused += 1
        patience = 1
        if self._is_proven:
            patience = max(8, 2 * self.endpoint.concurrency)
        elif self.budget.answers and fault.reason not in OUTAGES:
            patience = FEW + 1  # what is open beside stored answers may be what always fails
        refuses_all = self.refused >= REFUSALS and not self.budget.answers
        if fault.remedy == "stop" or self.broken >= patience or refuses_all:
            self.stop = self.stop or fault
            self.pace.end()  # an hour that a Retry-After asked for would only delay the error
        return Failure(fault.reason, fault.detail)

    async def _retry(self, request: Request, content: bytes) -> Answer:
        """Ask until there is an answer; raises the fault of the last attempt that is worth it."""
        attempt = 0
        while True:
            try:
                return await self._ask(request, content)
            except FaultError as fault:
                if fault.remedy != "retry" or self.stop or attempt == self.endpoint.retries:
                    raise
                pause = max(fault.retry_after, backoff_seconds(self.endpoint.retry_seconds, attempt))
            await self.pace.pause(pause)
            attempt += 1

    async def _ask(self, request: Request, content: bytes) -> Answer:
        async with self.pace:
            if self.stop:
                raise self.stop
            try:
                answer = await self._send(request, content)
            except FaultError as fault:
                if fault.reason == "rate_limited":
                    self.pace.throttle(fault.retry_after)
                raise
            self.pace.succeed()
            return answer

    async def _send(self, request: Request, content: bytes) -> Answer:
        try:
            async with asyncio.timeout(self.endpoint.timeout_seconds):
                # The plain response: the client's own models would cost more than everything else here.
                response = await self.client.post(
                    self.url, cast_to=httpx2.Response, content=content, options=self.options
                )
        except (openai.OpenAIError, aiohttp.ClientError, TimeoutError, OSError) as error:
            raise explain_error(error, self.endpoint.api_key_env, self.secret) from None
        return read_answer(response.content, request, self.secret)
