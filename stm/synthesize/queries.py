"""Queries that an LLM writes for given passages, kept if a retriever finds the passage again (round trip).

Rows go in; new rows with the same passages and negatives and written anchors come out. So a corpus alone becomes a
training set. Knows nothing of files or of training.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from stm.bm25 import NOTHING, Index
from stm.llm.answers import Answer, Budget, Failure, Request
from stm.llm.client import complete_all
from stm.llm.store import AnswerStore
from stm.params.llm import Endpoint
from stm.params.synthesize import QueryParams
from stm.schema import ROWS
from stm.synthesize.prompt import as_data
from stm.synthesize.validate import META, REFUSAL, SELF, TAG, copied_share, tidy, words_of

NGRAM = 4
SOURCE = "written-query"


@dataclass(frozen=True)
class Kind:
    """A kind of query: the instruction that its rows carry, and what the LLM is asked for."""

    instruction: str
    ask: str


KINDS = {
    "question": Kind("Given a question, retrieve the passage that answers it", "one question that this text answers"),
    "keywords": Kind(
        "Given keywords, retrieve the passage that they describe", "three keywords to search for this text"
    ),
    "situation": Kind(
        "Given a description of a situation, retrieve the passage that helps",
        "one sentence in which a person needs this text",
    ),
    "statement": Kind(
        "Given a statement, retrieve the passage that supports it", "one short statement that this text proves"
    ),
}
PROMPT = """{passage}

Write {ask}, in other words than the text. Give only that."""


@dataclass(frozen=True)
class Written:
    """New rows, and the report."""

    rows: pl.DataFrame
    report: dict[str, Any]


Planned = tuple[dict[str, Any], str, Request]


def plan_queries(rows: pl.DataFrame, params: QueryParams, max_passage_chars: int) -> list[Planned]:
    """What is asked: a (row, kind, request) per distinct passage of the first `params.rows` rows and kind."""
    chosen = rows.head(params.rows).unique("positive", maintain_order=True).to_dicts()
    return [
        (row, kind, _request(row["positive"], kind, params, max_passage_chars))
        for row in chosen
        for kind in params.kinds
    ]


def write_queries(
    rows: pl.DataFrame,
    params: QueryParams,
    endpoint: Endpoint,
    store: AnswerStore,
    max_passage_chars: int,
    budget: Budget | None = None,
) -> Written:
    """Return a row per passage (of the first `params.rows` rows) and kind whose written query finds the passage again.

    The round trip is BM25 over all passages of `rows`. Raises `EndpointError` if the endpoint does not work.
    """
    planned = plan_queries(rows, params, max_passage_chars)
    jobs = [(row, kind) for row, kind, _ in planned]
    outcomes = complete_all([request for *_, request in planned], endpoint, store, "write queries", budget)
    texts = [tidy(o.text, is_cut=False) if isinstance(o, Answer) else "" for o in outcomes]
    reasons = [
        outcome.reason if isinstance(outcome, Failure) else check_query(text, row["positive"], params)
        for outcome, text, (row, _) in zip(outcomes, texts, jobs, strict=True)
    ]
    _check_round_trips(rows, jobs, texts, reasons, params.max_rank)
    kept = [_row(row, kind, text) for (row, kind), text, reason in zip(jobs, texts, reasons, strict=True) if not reason]
    tally = Counter(reason or "accepted" for reason in reasons)
    report = {"asked": len(jobs), "accepted": len(kept), "outcomes": dict(sorted(tally.items()))}
    return Written(pl.DataFrame(kept, schema=ROWS), report)


def _request(passage: str, kind: str, params: QueryParams, max_passage_chars: int) -> Request:
    content = PROMPT.format(passage=as_data(passage, max_passage_chars), ask=KINDS[kind].ask)
    return Request([{"role": "user", "content": content}], max_tokens=params.max_tokens)


def _row(row: dict[str, Any], kind: str, text: str) -> dict[str, Any]:
    instruction = KINDS[kind].instruction
    return {**row, "id": f"{row['id']}-{kind}", "anchor": text, "instruction": instruction, "source": SOURCE}


def check_query(text: str, passage: str, params: QueryParams) -> str:
    """Return why a text is no query for the passage, or the empty string."""
    words = words_of(text)
    if not words:
        return "empty"
    if REFUSAL.search(text):
        return "refusal"
    if META.search(text) or TAG.search(text) or (SELF.search(text) and not SELF.search(passage)):
        return "meta_text"
    if len(words) > params.max_words:
        return "too_long"
    # A keyword of one or two words has to stand in the passage; only longer queries can be copies.
    if len(words) >= NGRAM and copied_share(text, passage, NGRAM) > params.max_copy:
        return "copies_passage"
    return ""


def _check_round_trips(
    rows: pl.DataFrame,
    jobs: Sequence[tuple[dict[str, Any], str]],
    texts: Sequence[str],
    reasons: list[str],
    max_rank: int,
) -> None:
    """Give a reason to every open query that does not find its passage, and to those that repeat another one."""
    passages = rows["positive"].unique(maintain_order=True).to_list()
    place = {passage: position for position, passage in enumerate(passages)}
    open_ = [index for index, reason in enumerate(reasons) if not reason]
    found_QK, _ = Index(passages).search([texts[index] for index in open_], max_rank)
    seen: set[tuple[str, ...]] = set()
    for index, found_K in zip(open_, found_QK.tolist(), strict=True):
        form = tuple(words_of(texts[index]))
        if place[jobs[index][0]["positive"]] not in [position for position in found_K if position != NOTHING]:
            reasons[index] = "round_trip"
        elif form in seen:
            reasons[index] = "duplicate"
        seen.add(form)
