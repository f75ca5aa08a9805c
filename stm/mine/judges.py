"""Judges of the false-negative guard: a cross-encoder, an LLM, both or none look at what mining would keep.

Questions go in, a reason per question comes out, empty where the passage does not answer the query. Knows nothing of
how candidates were found.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from stm.llm.answers import Budget, estimate_tokens
from stm.llm.store import AnswerStore
from stm.params.mine import JudgeParams
from stm.synthesize.prompt import Triplet

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

    from stm.synthesize.judge import Opinions

ENCODER_BATCH = 64  # pairs per forward pass
LIMIT_REACHED = (
    "the judge's limit of tokens or money is reached; the other negatives are kept unjudged. "
    "To go on, raise mine.judge.max_total_tokens or mine.judge.max_cost: answers so far cost nothing again"
)


@dataclass(frozen=True)
class Question:
    """May this passage be a negative of a row?"""

    instruction: str
    query: str
    positive: str
    passage: str


class Judge(Protocol):
    """One reason per question, in order; empty if the passage may stay. Changes no input and keeps no question."""

    def judge(self, questions: Sequence[Question]) -> list[str]:
        """Judge the questions together; raises an `STMError` if the judge itself does not work."""

    def report(self) -> dict[str, Any]:
        """What was asked so far, as plain data."""


@dataclass
class EncoderJudge:
    """Refuses a passage whose cross-encoder score (0 to 1) is not clearly below that of the row's positive.

    `name` is what messages call the model.
    """

    model: "CrossEncoder"
    max_ratio: float
    name: str
    asked: int = 0

    def judge(self, questions: Sequence[Question]) -> list[str]:
        """Score each distinct pair of query and text once; `DataError` if a score is not finite."""
        pairs = {(q.query, text) for q in questions for text in (q.positive, q.passage)}
        scores = self._score(sorted(pairs))
        self.asked += len(questions)
        limits = [self.max_ratio * scores[q.query, q.positive] for q in questions]
        return [
            "cross_encoder" if scores[q.query, q.passage] >= limit else ""
            for q, limit in zip(questions, limits, strict=True)
        ]

    def _score(self, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], float]:
        import torch

        from stm.named_models import check_finite

        # Bare logits first: a sigmoid would turn an infinite one into a score like any other.
        logits = self.model.predict(
            list(pairs), batch_size=ENCODER_BATCH, show_progress_bar=False, activation_fn=torch.nn.Identity()
        )
        finite = check_finite(np.asarray(logits, dtype=np.float32), self.name)
        return dict(zip(pairs, torch.from_numpy(finite).sigmoid().tolist(), strict=True))

    def report(self) -> dict[str, Any]:
        """Count of questions."""
        return {"asked": self.asked}


@dataclass
class LlmJudge:
    """Refuses a passage that an LLM takes for an answer, or on which it gives no clear answer.

    At the limit of tokens or money the remaining passages stay, and are counted as `unasked`.
    """

    opinions: "Opinions"
    asked: int = 0
    unasked: int = 0

    def judge(self, questions: Sequence[Question]) -> list[str]:
        """Ask the LLM, or the answer store where it was asked before."""
        rows = [Triplet(q.instruction, q.query, q.positive, "") for q in questions]
        reasons = self.opinions.judge([q.passage for q in questions], rows)
        self.unasked += reasons.count("budget")
        self.asked += len(reasons) - reasons.count("budget")
        return ["" if reason == "budget" else reason for reason in reasons]

    def report(self) -> dict[str, Any]:
        """Counts, tokens and money."""
        return {"asked": self.asked, "unasked": self.unasked, **self.opinions.budget.as_report()}


def describe_cost(rows: pl.DataFrame, most: int, params: JudgeParams) -> str:
    """One line on what judging `most` negatives of each row can cost at most, before the first call."""
    from stm.synthesize.judge import PROMPT

    texts = (*rows["anchor"], *rows["positive"], *rows["instruction"])
    tokens = sum(estimate_tokens(text[: params.max_passage_chars]) for text in texts)
    each = estimate_tokens(PROMPT) + tokens // max(1, rows.height)
    asked = rows.height * most
    cost = Budget.of(params).price(asked * each, asked * params.endpoint.max_tokens)
    price = f", up to {cost:.4g} money units" if cost else ""
    return f"up to {asked} questions to the judge, about {asked * each} prompt tokens{price}; refused ones cost another"


def make_judges(params: JudgeParams, store: AnswerStore) -> dict[str, Judge]:
    """The judges that the params name, the cheaper one first."""
    judges: dict[str, Judge] = {}
    # Imported here: mining without judges must load neither torch nor an LLM client.
    if params.cross_encoder:
        from stm.named_models import load_cross_encoder

        model = load_cross_encoder(params.cross_encoder, params.revision)
        judges["cross_encoder"] = EncoderJudge(model, params.max_ratio, params.cross_encoder)
    if params.llm:
        from stm.synthesize.judge import Opinions

        judges["llm"] = LlmJudge(Opinions(params.endpoint, store, Budget.of(params), params.max_passage_chars))
    return judges
