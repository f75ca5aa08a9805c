"""The stand-in of the multi-fidelity search: scores of any mixes from the embeddings of those already evaluated.

Joins the interpolation of embeddings with their bulk scoring. The more has been evaluated, the better it knows the
space; how far it is right is measured on each mix as predicted from the others.
"""

from collections.abc import Sequence

import numpy as np

from stm.merge.evaluator import Evaluator
from stm.merge.interpolation import Doubles, Places, cardinal_weights, places_of, unseen_weights
from stm.merge.methods import find_method
from stm.merge.recipe import Recipe
from stm.merge.space import Point, Space
from stm.merge.surrogate import Surrogate
from stm.merge.trials import Trial


class StandIn:
    """The stand-in of one space, fed by one evaluator; see the protocol `fidelity.RanksPoints`."""

    def __init__(self, space: Space, evaluator: Evaluator) -> None:
        self._space, self._evaluator = space, evaluator
        self._keys: list[str] = []

    def score(self, points: Sequence[Point], done: Sequence[Trial]) -> Doubles:
        """Mean nDCG@10 of the search half for each point, higher is better."""
        self._update(done)
        return self._surrogate.score(cardinal_weights(self._places(points), self._anchors))

    def score_unseen(self, done: Sequence[Trial]) -> Doubles:
        """The score of each trial as predicted from all others; of one whose embeddings are not at hand, from all."""
        self._update(done)
        places = places_of([trial.recipe for trial in done], self._space.experts)
        weights = cardinal_weights(places, self._anchors)
        unseen = unseen_weights(self._anchors)
        for row, trial in enumerate(done):
            if trial.recipe.key() in self._keys:
                weights[row] = unseen[self._keys.index(trial.recipe.key())]
        return self._surrogate.score(weights)

    def _places(self, points: Sequence[Point]) -> Places:
        """The places of the points' recipes, which are too many to be made one by one."""
        names, space = self._space.experts, self._space
        weights = np.array([[point[f"weight.{name}"] for name in names] for point in points])
        if space.is_normalised:
            weights /= weights.sum(axis=1, keepdims=True)
        kept = space.density if find_method(space.method).uses_density else 1.0
        densities = np.array([[point.get(f"density.{name}", kept) for name in names] for point in points])
        return Places(space.scale * weights, densities)

    def _recipes(self, done: Sequence[Trial]) -> dict[str, Recipe | None]:
        """The anchors: the base where weights need not sum to 1, each expert alone, and what is remembered of the
        rest.
        """
        singles = [self._space.recipe(self._space.point({name: 1.0})) for name in self._space.experts]
        rest = [trial.recipe for trial in done if self._evaluator.has_embeddings(trial.recipe)]
        base: dict[str, Recipe | None] = {} if self._space.is_normalised else {"base": None}
        return base | {recipe.key(): recipe for recipe in [*singles, *rest]}

    def _update(self, done: Sequence[Trial]) -> None:
        recipes = self._recipes(done)
        if list(recipes) == self._keys:
            return
        self._keys = list(recipes)
        self._anchors = places_of(list(recipes.values()), self._space.experts)
        embeddings = [self._evaluator.embeddings(recipe) for recipe in recipes.values()]
        self._surrogate = Surrogate(self._evaluator.dev, embeddings)
