"""Turns recipes into finished trials: mix in memory, encode the reduced dev tasks, score, account for the cost.

Owns the one loaded model while a merge runs. Does not decide which recipes are tried.
"""

import time
from collections.abc import Mapping

from stm.merge.dev import DevSet, Encodes, Floats, embed, score_embeddings
from stm.merge.mixer import Mixer
from stm.merge.prompt import PromptScore, best_prompt, score_prompts
from stm.merge.recipe import Recipe
from stm.merge.trials import Trial


class Evaluator:
    """Evaluates with the prompts last chosen; `tokens`, `seconds` and `evaluations` are totals over its life."""

    def __init__(self, mixer: Mixer, encoder: Encodes, dev: DevSet, prompts: Mapping[str, Mapping[str, str]]) -> None:
        """`prompts`: proposer -> texts "query" and "document"; the first is used until others are chosen."""
        self._mixer, self._encoder, self._dev, self._candidates = mixer, encoder, dev, prompts
        self.prompts: Mapping[str, str] = next(iter(prompts.values()))
        self.seconds, self.evaluations = 0.0, 0
        self._known: dict[tuple[str, str], Trial] = {}
        self._embeddings: dict[tuple[str, str], tuple[Floats, Floats]] = {}

    def _key(self, recipe: Recipe) -> tuple[str, str]:
        return recipe.key(), "\0".join(f"{name}={text}" for name, text in sorted(self.prompts.items()))

    def choose_prompts(self, recipe: Recipe) -> list[PromptScore]:
        """Score all candidate prompts with the mix of `recipe` and use the best from now on."""
        started, before = time.perf_counter(), self._encoder.tokens
        self._mixer.mix(recipe)
        scored = score_prompts(self._dev, self._encoder, self._candidates)
        best = best_prompt(scored)
        self.prompts = best.as_model_prompts()
        tokens, seconds = self._spend(started, before)
        self._known[self._key(recipe)] = Trial("", recipe, best.scores, tokens, seconds)
        return scored

    def evaluate(self, origin: str, recipe: Recipe) -> Trial:
        """Mix, encode and score one recipe, unless that has been done with these prompts."""
        known = self._known.get(self._key(recipe))
        if known is None:
            started, before = time.perf_counter(), self._encoder.tokens
            self._mixer.mix(recipe)
            embeddings = embed(self._dev, self._encoder, self.prompts)
            scores = score_embeddings(self._dev, *embeddings)
            known = Trial(origin, recipe, scores, *self._spend(started, before))
            self._known[self._key(recipe)] = known
            if len(recipe.experts) == 1:
                self._embeddings[self._key(recipe)] = embeddings
        return Trial(origin, recipe, known.scores, known.tokens, known.seconds)

    def embeddings(self, recipe: Recipe | None) -> tuple[Floats, Floats]:
        """The embeddings of queries and passages by one recipe's model (None: the base); single experts' are
        remembered.
        """
        key = self._key(recipe) if recipe is not None else ("base", "")
        if key not in self._embeddings:
            started, before = time.perf_counter(), self._encoder.tokens
            if recipe is None:
                self._mixer.restore()
            else:
                self._mixer.mix(recipe)
            self._embeddings[key] = embed(self._dev, self._encoder, self.prompts)
            self._spend(started, before)
        return self._embeddings[key]

    def cost(self) -> dict[str, float]:
        """What was spent so far: evaluations of dev, tokens encoded, seconds."""
        return {"evaluations": self.evaluations, "tokens": self._encoder.tokens, "seconds": round(self.seconds, 3)}

    def _spend(self, started: float, before: int) -> tuple[int, float]:
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self.evaluations += 1
        return self._encoder.tokens - before, seconds
