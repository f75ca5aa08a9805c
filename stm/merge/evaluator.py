"""Turns recipes into finished trials: mix in memory, encode the reduced dev tasks, score, account for the cost.

Owns the one loaded model while a merge runs. Each distinct model is evaluated once, whatever methods lead to it. Does
not decide which recipes are tried.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stm.merge.dev import DevSet, Encodes, Floats, embed, score_embeddings
from stm.merge.mixer import Mixer
from stm.merge.prompt import PromptScore, best_prompt, score_prompts
from stm.merge.recipe import Recipe
from stm.merge.rungs import Rung
from stm.merge.trials import Trial

MEMORY = 2 * 10**9  # bytes of embeddings that are remembered
Key = tuple[str, str]
BASE = "base"


class Evaluator:
    """Evaluates with the prompts last chosen; `tokens`, `seconds` and `evaluations` are totals over its life."""

    def __init__(self, mixer: Mixer, encoder: Encodes, dev: DevSet, prompts: Mapping[str, Mapping[str, str]]) -> None:
        """`prompts`: proposer -> texts "query" and "document"; the first is used until others are chosen."""
        self._mixer, self._encoder, self._candidates = mixer, encoder, prompts
        self.dev = dev
        self.prompts: Mapping[str, str] = next(iter(prompts.values()))
        self.seconds, self.evaluations, self.full_tokens = 0.0, 0, 0
        self._known: dict[Key, Trial] = {}
        self._embeddings: dict[Key, tuple[Floats, Floats]] = {}
        self._rungs: dict[tuple[Key, str], float] = {}

    def _key(self, recipe: Recipe | None) -> Key:
        prompts = "\0".join(f"{name}={text}" for name, text in sorted(self.prompts.items()))
        return (recipe.key() if recipe is not None else BASE), prompts

    def choose_prompts(self, recipe: Recipe) -> list[PromptScore]:
        """Score all candidate prompts with the mix of `recipe` and use the best from now on."""
        started, before = time.perf_counter(), self._encoder.tokens
        self._mixer.mix(recipe)
        scored = score_prompts(self.dev, self._encoder, self._candidates)
        best = best_prompt(scored)
        self.prompts = best.as_model_prompts()
        tokens, seconds = self._spend(started, before)
        self._known[self._key(recipe)] = Trial("", recipe, best.scores, tokens, seconds)
        return scored

    def evaluate(self, origin: str, recipe: Recipe) -> Trial:
        """Mix, encode and score one recipe, unless that model is known with these prompts; then it costs nothing
        more.
        """
        key = self._key(recipe)
        if key not in self._known:
            before, started = self._encoder.tokens, time.perf_counter()
            scores = score_embeddings(self.dev, *self._embed(recipe))
            self.full_tokens = self._encoder.tokens - before
            self._known[key] = Trial(origin, recipe, scores, self.full_tokens, time.perf_counter() - started)
        known = self._known[key]
        self._known[key] = replace(known, tokens=0, seconds=0.0)  # the first trial that asks has the cost
        return replace(known, origin=origin, recipe=recipe)

    def remember(self, trials: Sequence[Trial]) -> None:
        """Take over trials that were evaluated elsewhere with the prompts in use."""
        for trial in trials:
            self._known[self._key(trial.recipe)] = replace(trial, tokens=0, seconds=0.0)

    def evaluate_rung(self, recipe: Recipe, rung: Rung) -> float:
        """The score of one recipe on a rung: free where its embeddings are at hand, else by encoding the rung's texts
        alone.
        """
        key = self._key(recipe)
        if (key, rung.name) not in self._rungs:
            if key in self._embeddings:
                queries, passages = self._embeddings[key]
                scores = score_embeddings(rung.dev, queries[rung.queries], passages[rung.passages])
            else:
                started, before = time.perf_counter(), self._encoder.tokens
                self._mixer.mix(recipe)
                scores = score_embeddings(rung.dev, *embed(rung.dev, self._encoder, self.prompts))
                self._spend(started, before, evaluations=0)
            self._rungs[key, rung.name] = scores.mean("search")
        return self._rungs[key, rung.name]

    def embeddings(self, recipe: Recipe | None) -> tuple[Floats, Floats]:
        """The embeddings of queries and passages by one recipe's model (None: the base), computed where they are not
        remembered.
        """
        key = self._key(recipe)
        return self._embeddings[key] if key in self._embeddings else self._embed(recipe)

    def has_embeddings(self, recipe: Recipe) -> bool:
        """Whether the embeddings of that model are at hand."""
        return self._key(recipe) in self._embeddings

    def cost(self) -> dict[str, float]:
        """What was spent so far: evaluations of dev, tokens encoded, the tokens in units of one evaluation, seconds."""
        tokens = self._encoder.tokens
        equivalents = round(tokens / self.full_tokens, 2) if self.full_tokens else float(self.evaluations)
        return {
            "evaluations": self.evaluations, "full_evaluation_equivalents": equivalents, "tokens": tokens,
            "seconds": round(self.seconds, 3),
        }  # fmt: skip

    def _embed(self, recipe: Recipe | None) -> tuple[Floats, Floats]:
        started, before = time.perf_counter(), self._encoder.tokens
        if recipe is None:
            self._mixer.restore()
        else:
            self._mixer.mix(recipe)
        queries, passages = embed(self.dev, self._encoder, self.prompts)
        self._spend(started, before)
        if (len(self._embeddings) + 1) * (queries.nbytes + passages.nbytes) <= MEMORY:
            self._embeddings[self._key(recipe)] = queries, passages
        return queries, passages

    def _spend(self, started: float, before: int, evaluations: int = 1) -> tuple[int, float]:
        seconds = time.perf_counter() - started
        self.seconds += seconds
        self.evaluations += evaluations
        return self._encoder.tokens - before, seconds
