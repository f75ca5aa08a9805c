"""How much a prompt search may spend, as rows of a table.

Light, medium and heavy have the paper's sizes: 100 / 200 / 300 examples to learn from, as many to validate,
minibatches of 3 / 5 / 8. The paper does not give the numbers of proposals; these grow with the examples. Small is what
two slow cores do in seconds.
"""

from dataclasses import dataclass

from stm.params.search_prompts import BudgetName


@dataclass(frozen=True)
class Budget:
    """Limits of one search."""

    queries: int  # dev queries in each half, search and guard
    minibatch: int  # queries per reflection
    screened: int  # pool instructions scored before GEPA starts
    proposals: int  # new candidates that GEPA asks for


BUDGETS: dict[BudgetName, Budget] = {
    "small": Budget(queries=48, minibatch=3, screened=3, proposals=3),
    "light": Budget(queries=100, minibatch=3, screened=10, proposals=10),
    "medium": Budget(queries=200, minibatch=5, screened=20, proposals=18),
    "heavy": Budget(queries=300, minibatch=8, screened=50, proposals=27),
}
