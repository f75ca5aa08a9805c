"""Turns recipes into finished trials: mix in memory, encode the reduced dev tasks, score, account for the cost.

Owns the one loaded model while a merge runs. Each distinct model is evaluated once, whatever methods lead to it. Does
not decide which recipes are tried.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from stm.errors import DataError
from stm.merge.dev import CountingEncoder, DevSet, Scores, embed, score_embeddings
from stm.merge.memory import Memories, Memory
from stm.merge.mixer import Mixer
from stm.merge.prompt import PromptScore, best_prompt, score_prompts
from stm.merge.recipe import Recipe
from stm.merge.rungs import Rung
from stm.merge.trials import Trial
from stm.text_encoder import Floats

Key = tuple[str, str]
BASE = "base"


class Evaluator:
    """Evaluates with the prompts last chosen; what it embeds goes into `memories`."""

    def __init__(
        self, mixer: Mixer, encoder: CountingEncoder, dev: DevSet, prompts: Mapping[str, Mapping[str, str]],
        memories: Memories | None = None,
    ) -> None:  # fmt: skip
        """`prompts`: proposer -> texts "query" and "document"; the first is used until others are chosen."""
        self._mixer, self._encoder, self._candidates = mixer, encoder, prompts
        self.dev = dev
        self.prompts: Mapping[str, str] = next(iter(prompts.values()))
        self._memories = memories or Memories()
        self._choices: list[Memory] = []
        self._others: list[Memory] = []
        self._known: dict[Key, Trial] = {}

    def _key(self, recipe: Recipe | None) -> Key:
        prompts = "\0".join(f"{name}={text}" for name, text in sorted(self.prompts.items()))
        return (recipe.key() if recipe is not None else BASE), prompts

    def choose_prompts(self, recipe: Recipe, is_guarded: bool = False) -> list[PromptScore]:
        """Score all candidate prompts with the mix of `recipe` and use the best from now on; guarded, only one that
        holds on the other half against those in use.
        """
        started, before = time.perf_counter(), self._encoder.tokens
        self._mixer.mix(recipe)
        scored = score_prompts(self.dev, self._encoder, self._candidates)
        best = best_prompt(scored, self.prompts if is_guarded else None)
        self.prompts = best.as_model_prompts()
        spent = Memory((), self._encoder.tokens - before, time.perf_counter() - started)
        self._choices.append(spent)
        self._known[self._key(recipe)] = Trial("", recipe, best.scores, spent.tokens, spent.seconds)
        return scored

    def evaluate(self, origin: str, recipe: Recipe) -> Trial:
        """Mix, encode and score one recipe, unless that model is known with these prompts; then it costs nothing
        more.
        """
        key = self._key(recipe)
        if key not in self._known:
            embedded = self._embed(recipe)
            scores = _score(recipe, self.dev, *embedded.arrays)
            self._known[key] = Trial(origin, recipe, scores, embedded.tokens, embedded.seconds)
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
        found = self._memories.find(*key, rung.name)
        if found is None:
            embedded = self._memories.find(*key)
            started, before = time.perf_counter(), self._encoder.tokens
            if embedded is not None:
                queries, passages = embedded.arrays
                scores = _score(recipe, rung.dev, queries[rung.queries], passages[rung.passages])
            else:
                self._mixer.mix(recipe)
                scores = _score(recipe, rung.dev, *embed(rung.dev, self._encoder, self.prompts))
            score = np.array([scores.mean("search")])
            found = Memory((score,), self._encoder.tokens - before, time.perf_counter() - started)
            self._memories.keep(found, *key, rung.name)
        return float(found.arrays[0][0])

    def embeddings(self, recipe: Recipe | None) -> tuple[Floats, Floats]:
        """The embeddings of queries and passages by one recipe's model (None: the base), computed where they are not
        remembered.
        """
        queries, passages = self._embed(recipe).arrays
        return queries, passages

    def has_embeddings(self, recipe: Recipe) -> bool:
        """Whether the embeddings of that model are at hand."""
        return self._memories.find(*self._key(recipe)) is not None

    def add_cost(self, tokens: int, seconds: float) -> None:
        """Count what was spent elsewhere, such as in learning; it is no evaluation."""
        self._others.append(Memory((), tokens, seconds))

    def cost(self) -> dict[str, float]:
        """What was spent, before interruptions too: evaluations of dev, tokens encoded, the tokens in units of one
        evaluation, seconds.
        """
        spent = [*self._choices, *self._others, *self._memories]
        whole = [memory.tokens for memory in self._memories if len(memory.arrays) != 1]  # of one array: a rung's score
        tokens, evaluations = sum(memory.tokens for memory in spent), len(self._choices) + len(whole)
        return {
            "evaluations": evaluations,
            "full_evaluation_equivalents": round(tokens / max(whole), 2) if any(whole) else float(evaluations),
            "tokens": tokens,
            "seconds": round(sum(memory.seconds for memory in spent), 3),
        }

    def _embed(self, recipe: Recipe | None) -> Memory:
        key = self._key(recipe)
        found = self._memories.find(*key)
        if found is None:
            started, before = time.perf_counter(), self._encoder.tokens
            if recipe is None:
                self._mixer.restore()
            else:
                self._mixer.mix(recipe)
            arrays = embed(self.dev, self._encoder, self.prompts)
            found = Memory(arrays, self._encoder.tokens - before, time.perf_counter() - started)
            self._memories.keep(found, *key)
        return found


def _score(recipe: Recipe, dev: DevSet, queries_QD: Floats, passages_PD: Floats) -> Scores:
    """What `score_embeddings` gives; its `DataError`, as for embeddings that are not finite, names the mix."""
    try:
        return score_embeddings(dev, queries_QD, passages_PD)
    except DataError as error:
        raise DataError(f"the mix by {recipe.method} with weights {dict(recipe.weights)}: {error}") from error
