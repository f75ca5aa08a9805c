"""The stage `synthesize`: asks for one hard negative per row, validates, asks again, falls back on the mined one.

Rows go in; the same rows come out, in order, with the accepted synthetic negative first. Knows nothing of files or of
training.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from stm.llm.answers import Answer, Budget, Failure, Request, canonical_request, estimate_prompt, request_key
from stm.llm.client import complete_all
from stm.llm.server import serve
from stm.llm.store import AnswerStore
from stm.params.llm import Endpoint
from stm.params.synthesize import SynthesizeParams
from stm.progress import say
from stm.synthesize.judge import judge
from stm.synthesize.prompt import Triplet, build_messages
from stm.synthesize.queries import write_queries
from stm.synthesize.report import Tally, summarise_ratios
from stm.synthesize.similarity import DenseSimilarity, LexicalSimilarity, Similarity
from stm.synthesize.validate import validate

CHUNK = 4096  # rows whose prompts are in memory at once


@dataclass(frozen=True)
class Result:
    """Rows with synthetic negatives, and the report."""

    rows: pl.DataFrame
    report: dict[str, Any]


def synthesize(rows: pl.DataFrame, params: SynthesizeParams, store: AnswerStore, name: str = "rows") -> Result:
    """Return the rows with synthetic negatives where one was accepted.

    Raises `EndpointError` if the endpoint does not work; answers up to then stay in `store`. At the budget's limit the
    rest of the rows keep their mined negatives and the report says so.
    """
    started = time.monotonic()
    chosen = rows.head(params.rows) if params.rows else rows
    triplets = [_triplet(row) for row in chosen.iter_rows(named=True)]
    job = _Job(chosen["id"].to_list(), triplets, params, store, _open_similarity(rows, params))
    _say_estimate(name, job)
    # One server for all rounds, and none at all when every first answer is in the store already.
    if job.is_replay() or not triplets:
        job.run(params.endpoint)
    else:
        with serve(params.endpoint) as endpoint:
            job.run(endpoint)
    report = job.report()
    report["seconds"] = round(time.monotonic() - started, 3)
    _say_outcome(name, report)
    result = Result(_with_synthetic(rows, job.accepted), report)
    return _add_queries(result, rows, params, store) if params.queries.rows else result


def _add_queries(result: Result, rows: pl.DataFrame, params: SynthesizeParams, store: AnswerStore) -> Result:
    """Append rows with written queries; they keep the mined negatives of their passage."""
    written = write_queries(rows, params.queries, params.endpoint, store, params.max_passage_chars)
    report = {**result.report, "queries": written.report}
    return Result(pl.concat([result.rows, written.rows]), report)


def _triplet(row: dict[str, Any]) -> Triplet:
    return Triplet(row["instruction"], row["anchor"], row["positive"], row["negatives"][0] if row["negatives"] else "")


def _open_similarity(rows: pl.DataFrame, params: SynthesizeParams) -> Similarity:
    if params.validation.dense_model:
        return DenseSimilarity(params.validation.dense_model)
    return LexicalSimilarity(rows["positive"].unique(maintain_order=True).to_list())


def _say_estimate(name: str, job: "_Job") -> None:
    endpoint, requests = job.params.endpoint, [job.request(index, 0) for index in range(len(job.triplets))]
    tokens_in = sum(estimate_prompt(request.messages) for request in requests)
    tokens_out = len(requests) * endpoint.max_tokens
    cost = (tokens_in * endpoint.price_in + tokens_out * endpoint.price_out) / 1e6
    price = f", up to {cost:.2f} money units" if cost else ""
    tokens = f"about {tokens_in} prompt and up to {tokens_out} answer tokens{price}"
    again = f"refused rows are asked again up to {job.params.max_regenerations} times"
    say(f"synthesize {name}: {len(requests)} rows, {tokens}; {again}")


def _say_outcome(name: str, report: dict[str, Any]) -> None:
    say(
        f"synthesize {name}: {report['accepted']} of {report['rows_asked']} rows got a synthetic negative, "
        f"{report['tokens_in']} + {report['tokens_out']} tokens, "
        f"{report['answers_replayed']} of {report['answers']} answers replayed"
    )
    if report["is_budget_exhausted"]:
        say(
            f"synthesize {name}: the limit of tokens or money is reached; the other rows keep their mined negatives. "
            "To go on, raise synthesize.max_total_tokens or synthesize.max_cost: answers so far cost nothing again"
        )


def _with_synthetic(rows: pl.DataFrame, accepted: dict[int, str]) -> pl.DataFrame:
    negatives, origins = rows["negatives"].to_list(), rows["origins"].to_list()
    for index, text in accepted.items():
        negatives[index] = [text, *negatives[index]]
        origins[index] = ["synthetic", *origins[index]]
    kind = pl.List(pl.String)
    return rows.with_columns(pl.Series("negatives", negatives, kind), pl.Series("origins", origins, kind))


class _Job:
    """The rounds of one split."""

    def __init__(
        self,
        ids: Sequence[str],
        triplets: Sequence[Triplet],
        params: SynthesizeParams,
        store: AnswerStore,
        similarity: Similarity,
    ) -> None:
        self.ids, self.triplets, self.params, self.store, self.similarity = ids, triplets, params, store, similarity
        endpoint = params.endpoint
        self.budget = Budget(params.max_total_tokens, params.max_cost, endpoint.price_in, endpoint.price_out)
        self.tally = Tally(params.samples)
        self.accepted: dict[int, str] = {}
        self.regenerations = 0

    def request(self, index: int, attempt: int) -> Request:
        """The request of a row; each attempt has a seed of its own."""
        messages = build_messages(self.triplets[index], self.params.prompt, self.params.max_passage_chars)
        return Request(messages, attempt)

    def is_replay(self) -> bool:
        """Whether the store answers the whole first round."""
        endpoint = self.params.endpoint
        requests = (self.request(index, 0) for index in range(len(self.triplets)))
        keys = {request_key(canonical_request(request, endpoint)) for request in requests}
        return len(self.store.get(sorted(keys))) == len(keys)

    def run(self, endpoint: Endpoint) -> None:
        """Ask, judge and ask again until all rows are accepted or out of attempts."""
        pending = list(range(len(self.triplets)))
        for attempt in range(self.params.max_regenerations + 1):
            if not pending or self.budget.is_exhausted:
                return
            self.regenerations += len(pending) if attempt else 0
            pending = self._round(endpoint, pending, attempt)

    def _round(self, endpoint: Endpoint, pending: Sequence[int], attempt: int) -> list[int]:
        for start in range(0, len(pending), CHUNK):
            self._ask(endpoint, pending[start : start + CHUNK], attempt)
        return [index for index in pending if index not in self.accepted]

    def _ask(self, endpoint: Endpoint, pending: Sequence[int], attempt: int) -> None:
        requests = [self.request(index, attempt) for index in pending]
        description = f"write negatives, attempt {attempt + 1}"
        outcomes = complete_all(requests, endpoint, self.store, description, self.budget)
        answered: list[tuple[int, Answer]] = []
        for index, outcome in zip(pending, outcomes, strict=True):
            if isinstance(outcome, Failure):
                self.tally.failures[outcome.reason] += 1
            else:
                answered.append((index, outcome))
        self._judge(endpoint, answered)

    def _judge(self, endpoint: Endpoint, answered: Sequence[tuple[int, Answer]]) -> None:
        rows = [self.triplets[index] for index, _ in answered]
        verdicts = validate([answer for _, answer in answered], rows, self.params.validation, self.similarity)
        if self.params.validation.judge:
            verdicts = self._ask_judge(endpoint, rows, verdicts)
        for (index, answer), (text, reason) in zip(answered, verdicts, strict=True):
            self.tally.count(answer, self.ids[index], self.triplets[index].query, text, reason)
            if not reason:
                self.accepted[index] = text

    def _ask_judge(
        self, endpoint: Endpoint, rows: Sequence[Triplet], verdicts: Sequence[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        """Let the judge see what all other rules accepted."""
        open_ = [place for place, (_, reason) in enumerate(verdicts) if not reason]
        texts, triplets = [verdicts[place][0] for place in open_], [rows[place] for place in open_]
        limit = self.params.max_passage_chars
        reasons = dict(zip(open_, judge(texts, triplets, endpoint, self.store, self.budget, limit), strict=True))
        return [(text, reasons.get(place, reason)) for place, (text, reason) in enumerate(verdicts)]

    def report(self) -> dict[str, Any]:
        """The report of the whole job, with the hardness of synthetic and mined negatives of the same rows."""
        report = self.tally.report(len(self.triplets), len(self.accepted), self.regenerations, self.budget)
        indices = sorted(self.accepted)
        rows = [self.triplets[index] for index in indices]
        queries = [row.query for row in rows]
        positive = self.similarity.query_to_passage(queries, [row.positive for row in rows])
        texts = {"synthetic": [self.accepted[index] for index in indices], "mined": [row.mined for row in rows]}
        report["hardness"] = {
            origin: summarise_ratios(self.similarity.query_to_passage(queries, passages), positive)
            for origin, passages in texts.items()
        }
        return report
