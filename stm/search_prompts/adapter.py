"""The bridge to the `gepa` package: evaluates an instruction on dev queries and tells the reflection model what
failed.

A candidate is {"instruction": text}, an example is one dev query, its score nDCG@10. Knows neither the language model
nor the choice at the end.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from gepa.api import optimize
from gepa.core.adapter import EvaluationBatch, ProposalFn
from gepa.core.result import GEPAResult

from stm.search_prompts.budgets import Budget
from stm.search_prompts.halves import Item
from stm.search_prompts.proposer import COMPONENT, Proposer
from stm.search_prompts.scoring import Outcome, Scorer
from stm.synthesize.prompt import as_data, strip_controls

_LOG = logging.getLogger(__name__)
Trace = tuple[Item, Outcome]
PERFECT = 1 - 1e-9  # nDCG of an ideal order, rounding aside


class RetrievalAdapter:
    """A `gepa.core.adapter.GEPAAdapter` over a scorer."""

    def __init__(self, scorer: Scorer, proposer: Proposer, feedback_characters: int) -> None:
        self._scorer, self._characters = scorer, feedback_characters
        self.proposer = proposer
        self.propose_new_texts: ProposalFn | None = proposer

    def evaluate(
        self, batch: list[Item], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Trace, Outcome]:
        """Score every query of the batch; what has been scored before costs nothing."""
        outcomes = self._scorer.outcomes(candidate[COMPONENT], batch)
        traces = list(zip(batch, outcomes, strict=True)) if capture_traces else None
        return EvaluationBatch(outputs=outcomes, scores=[outcome.score for outcome in outcomes], trajectories=traces)

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: EvaluationBatch[Trace, Outcome], components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return the queries that fail, worst first: the query, what was wanted, what came up instead."""
        # GEPA fills its last minibatch up with queries that are in it already.
        failed = {item: outcome for item, outcome in eval_batch.trajectories or [] if outcome.score < PERFECT}
        ordered = sorted(failed, key=lambda item: (failed[item].score, item))
        try:
            return {COMPONENT: [self._record(item, failed[item]) for item in ordered]}
        except Exception as error:  # which GEPA would log, and go on
            self.proposer.failure = error
            raise

    def _record(self, item: Item, outcome: Outcome) -> dict[str, Any]:
        task = self._scorer.tasks[item.task]
        grades = task.qrels[item.query_id]
        lower = (passage_id for passage_id in outcome.top if grades.get(passage_id, 0) < grades[outcome.wanted])
        instead = next(lower, None)
        return {
            "query": self._cut(task.queries[item.query_id]),
            "wanted": self._cut(task.corpus[outcome.wanted].full_text()),
            "found": self._cut(task.corpus[instead].full_text()) if instead else "nothing else among the first",
            "feedback": f"The wanted passage came at rank {outcome.position} of {len(task.corpus)}.",
        }

    def _cut(self, text: str) -> str:
        shown = as_data(text, self._characters)
        return shown if len(strip_controls(text)) <= self._characters else f"{shown} ..."


class _Log:
    def log(self, message: str) -> None:
        _LOG.debug(message)


def run_gepa(start: str, items: Sequence[Item], adapter: RetrievalAdapter, budget: Budget, seed: int) -> dict[str, Any]:
    """Run GEPA from `start` on the items until the budget's proposals are made; return its accepted candidates and
    counts.

    The examples serve both reflection and the Pareto front; whether a candidate holds is decided on others, outside.
    Candidates that tie on a minibatch are accepted, since three queries tie often and a full score is cheap. Raises
    the error that ended the search, if one did.
    """
    proposer = adapter.proposer

    def is_done(iterations: int) -> bool:
        # An iteration whose minibatch is perfect proposes nothing, hence the second limit.
        is_spent = len(proposer.attempts) >= budget.proposals or iterations >= 3 * budget.proposals
        return is_spent or proposer.ledger.is_spent or proposer.failure is not None

    result: GEPAResult[Outcome, int] = optimize(
        seed_candidate={COMPONENT: start},
        trainset=list(items),
        valset=list(items),
        adapter=adapter,
        reflection_minibatch_size=min(budget.minibatch, len(items)),
        acceptance_criterion="improvement_or_equal",
        stop_callbacks=lambda state: is_done(state.i + 1),
        logger=_Log(),
        perfect_score=PERFECT,
        track_best_outputs=False,
        seed=seed,
        raise_on_exception=True,
    )
    if proposer.failure is not None:
        raise proposer.failure
    accepted = [candidate[COMPONENT] for candidate in result.candidates]
    return {
        "accepted": accepted,
        "metric_calls": result.total_metric_calls,
        "full_evaluations": result.num_full_val_evals,
    }
