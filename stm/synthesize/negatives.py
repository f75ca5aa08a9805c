"""The stage `synthesize`: asks for one hard negative per row, validates, asks again, falls back on the mined one.

Rows go in; the same rows come out, in order, with the accepted synthetic negative first. Where queries are written,
their rows come first into being and get negatives like all others. Knows nothing of files or of training.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from stm.hardness import summarise
from stm.llm.answers import Answer, Budget, Failure, Request
from stm.llm.client import complete_all
from stm.llm.store import AnswerStore
from stm.params.llm import REQUESTS
from stm.params.synthesize import SynthesizeParams
from stm.prepare.contamination import EvaluationIndex
from stm.progress import Meter, say
from stm.schema import explode_negatives
from stm.synthesize.estimate import describe_cost
from stm.synthesize.judge import Opinions
from stm.synthesize.prompt import Triplet, build_messages
from stm.synthesize.queries import drop_answers, drop_too_close, place_queries, write_queries
from stm.synthesize.report import Tally, describe_outcome
from stm.synthesize.similarity import DenseSimilarity, LexicalSimilarity, Similarity
from stm.synthesize.validate import validate
from stm.tasks import Task

MEASURED = 10_000  # synthetic negatives whose hardness is measured, from the first


@dataclass(frozen=True)
class Result:
    """Rows with synthetic negatives, and the report."""

    rows: pl.DataFrame
    report: dict[str, Any]


def synthesize(
    rows: pl.DataFrame,
    params: SynthesizeParams,
    store: AnswerStore,
    name: str = "rows",
    released: Mapping[str, str] | None = None,
    tasks: Sequence[Task] = (),
) -> Result:
    """Return the rows with synthetic negatives where one was accepted.

    `released` has the negatives, by row id, that somebody wrote before: they are taken as they are, and nobody is asked
    for those rows. `tasks` are the evaluation tasks, whose queries must not be written. Raises `EndpointError` if the
    endpoint does not work; answers up to then stay in `store`. At the budget's limit the rest of the rows keep their
    mined negatives and the report says so.
    """
    started = time.monotonic()
    released = released or {}
    budget, similarity = Budget.of(params), _open_similarity(rows, params)
    job = _Job(rows, released, params, store, budget, similarity)
    say(f"synthesize {name}: {describe_cost(job.requests(job.places), rows, params)}")
    queries: dict[str, Any] = {}
    if params.queries.rows:
        rows, queries = _write_queries(rows, params, store, budget, similarity, tasks)
        job = _Job(rows, released, params, store, budget, similarity)
    job.run()
    texts = job.released | job.accepted
    report = {**job.report(), "released": len(job.released), "hardness": job.hardness(texts)}
    report |= {"queries": queries} if queries else {}
    report["seconds"] = round(time.monotonic() - started, 3)
    for line in describe_outcome(report):
        say(f"synthesize {name}: {line}")
    return Result(_with_synthetic(rows, texts), report)


def _write_queries(
    rows: pl.DataFrame, params: SynthesizeParams, store: AnswerStore, budget: Budget, similarity: Similarity,
    tasks: Sequence[Task],
) -> tuple[pl.DataFrame, dict[str, Any]]:  # fmt: skip
    """The rows with those of the written queries, and the report on them."""
    settings, limit = params.queries, params.max_passage_chars
    known = EvaluationIndex(tasks, settings.max_overlap)
    written = write_queries(rows, settings, params.endpoint, store, limit, budget, params.prompt, known)
    found, dropped = drop_too_close(written.rows, similarity, params.validation.max_ratio)
    rows = drop_answers(rows, written.answers)  # a written query may be one that a row has already
    placed = place_queries(rows, found, settings.replace_rows)
    gone = Counter(rows["source"]) - Counter(placed["source"])
    return placed, {**written.report, "negatives_too_close": dropped, "replaced": dict(sorted(gone.items()))}


def released_negatives(pairs: pl.DataFrame) -> dict[str, str]:
    """The synthetic negative of each row that came with one, by row id."""
    synthetic = explode_negatives(pairs).filter(pl.col("origins") == "synthetic")
    synthetic = synthetic.unique("id", keep="first", maintain_order=True)
    return dict(synthetic.select("id", "negatives").iter_rows())


def _open_similarity(rows: pl.DataFrame, params: SynthesizeParams) -> Similarity:
    if params.validation.dense_model:
        return DenseSimilarity(params.validation.dense_model, params.validation.dense_revision)
    return LexicalSimilarity(rows["positive"].unique(maintain_order=True).to_list())


def _with_synthetic(rows: pl.DataFrame, accepted: Mapping[int, str]) -> pl.DataFrame:
    negatives, origins = rows["negatives"].to_list(), rows["origins"].to_list()
    for index, text in accepted.items():
        negatives[index] = [text, *negatives[index]]
        origins[index] = ["synthetic", *origins[index]]
    kind = pl.List(pl.String)
    return rows.with_columns(pl.Series("negatives", negatives, kind), pl.Series("origins", origins, kind))


class _Job:
    """The rounds of one split; rows are named by their place."""

    def __init__(
        self, rows: pl.DataFrame, released: Mapping[str, str], params: SynthesizeParams, store: AnswerStore,
        budget: Budget, similarity: Similarity,
    ) -> None:  # fmt: skip
        self.rows, self.params, self.store, self.budget, self.similarity = rows, params, store, budget, similarity
        self.released = {place: released[key] for place, key in enumerate(rows["id"]) if key in released}
        asked = range(min(params.rows or rows.height, rows.height))
        self.places = [place for place in asked if place not in self.released]
        self.opinions = Opinions(params.endpoint, store, budget, params.max_passage_chars)
        self.tally = Tally(params.samples)
        self.accepted: dict[int, str] = {}
        self.refused: set[int] = set()  # by the endpoint, which would refuse them again
        self.regenerations = 0

    def triplet(self, place: int) -> Triplet:
        """What the LLM is told of a row."""
        row = self.rows.row(place, named=True)
        mined = row["negatives"][0] if row["negatives"] else ""
        return Triplet(row["instruction"], row["anchor"], row["positive"], mined)

    def requests(self, places: Sequence[int], attempt: int = 0) -> Iterator[Request]:
        """The requests of rows; each attempt has a seed of its own."""
        for place in places:
            yield Request(
                build_messages(self.triplet(place), self.params.prompt, self.params.max_passage_chars), attempt
            )

    def run(self) -> None:
        """Ask, judge and ask again until all rows are accepted or out of attempts."""
        pending = list(self.places)
        for attempt in range(self.params.max_regenerations + 1):
            if not pending or self.budget.is_exhausted:
                return
            self.regenerations += len(pending) if attempt else 0
            meter = Meter(f"check negatives, attempt {attempt + 1}", len(pending))
            chunk = self.params.endpoint.requests_at_once
            for start in range(0, len(pending), chunk):
                self._ask(pending[start : start + chunk], attempt, meter)
            settled = self.accepted.keys() | self.refused
            pending = [place for place in pending if place not in settled]

    def _ask(self, pending: Sequence[int], attempt: int, meter: Meter) -> None:
        requests = list(self.requests(pending, attempt))
        description = f"write negatives, attempt {attempt + 1}"
        outcomes = complete_all(requests, self.params.endpoint, self.store, description, self.budget)
        answered: list[tuple[int, Answer]] = []
        for place, outcome in zip(pending, outcomes, strict=True):
            if isinstance(outcome, Failure):
                self.tally.failures[outcome.reason] += 1
                if outcome.is_refusal:
                    self.refused.add(place)
            else:
                answered.append((place, outcome))
        meter.done += len(pending) - len(answered)  # to be shown with those that have an answer
        self._judge(answered, meter)

    def _judge(self, answered: Sequence[tuple[int, Answer]], meter: Meter) -> None:
        rows = [self.triplet(place) for place, _ in answered]
        verdicts = self._validate([answer for _, answer in answered], rows, meter)
        if self.params.validation.judge:
            verdicts = self._ask_judge(rows, verdicts)
        for (place, answer), row, (text, reason) in zip(answered, rows, verdicts, strict=True):
            self.tally.count(answer, str(self.rows["id"][place]), row.query, text, reason)
            if not reason:
                self.accepted[place] = text

    def _validate(self, answers: Sequence[Answer], rows: Sequence[Triplet], meter: Meter) -> list[tuple[str, str]]:
        """Apply the rules, to a few thousand answers at a time so that those of batch files show progress too."""
        verdicts: list[tuple[str, str]] = []
        for start in range(0, len(answers), REQUESTS):
            part = slice(start, start + REQUESTS)
            verdicts += validate(answers[part], rows[part], self.params.validation, self.similarity)
            if meter.total > REQUESTS:  # else the endpoint's meter has just said the same numbers
                with meter:  # closed again at once: endpoint, judge and dense model show meters on the same line
                    meter.advance(len(answers[part]))
        return verdicts

    def _ask_judge(self, rows: Sequence[Triplet], verdicts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Let the judge see what all other rules accepted."""
        open_ = [place for place, (_, reason) in enumerate(verdicts) if not reason]
        texts, triplets = [verdicts[place][0] for place in open_], [rows[place] for place in open_]
        reasons = dict(zip(open_, self.opinions.judge(texts, triplets), strict=True))
        return [(text, reasons.get(place, reason)) for place, (text, reason) in enumerate(verdicts)]

    def report(self) -> dict[str, Any]:
        """Counts of the whole job."""
        return self.tally.report(len(self.places), len(self.accepted), self.regenerations, self.budget)

    def hardness(self, texts: Mapping[int, str]) -> dict[str, Any]:
        """Scores of synthetic and mined negatives of the same rows, over that of their positive."""
        rows = {place: self.triplet(place) for place in sorted(texts)[:MEASURED]}
        own = self._score(rows, {place: row.positive for place, row in rows.items()})
        negatives = {
            "synthetic": {place: texts[place] for place in rows},
            "mined": {place: row.mined for place, row in rows.items() if row.mined},
        }
        scored = {origin: self._score(rows, found) for origin, found in negatives.items()}
        return {
            origin: summarise([score / own[place] for place, score in found.items() if own[place] > 0])
            for origin, found in scored.items()
        }

    def _score(self, rows: Mapping[int, Triplet], passages: Mapping[int, str]) -> dict[int, float]:
        found = self.similarity.query_to_passage([rows[place].query for place in passages], list(passages.values()))
        return dict(zip(passages, found, strict=True))
