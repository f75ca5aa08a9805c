"""How a dense model copes with queries that differ from those of the test tasks: typos, capitals, a missing or a wrong
prompt.

Takes an opened model and a task and returns nDCG@10 per kind on a seeded sample of queries, beside the score of the
same queries as they are. The passages' vectors are those that the evaluation proper makes, a slice at a time, so that
only queries are encoded and no passage twice. Changes nothing of the evaluation proper.
"""

import random
from collections.abc import Callable, Sequence
from functools import cached_property

from stm.evaluate.models import DenseModel
from stm.metrics import mean, ndcg_at_k, order_passages, rank
from stm.tasks import Task
from stm.text_encoder import Floats

DEPTH = 10
LETTERS = 4  # a word of fewer letters is left alone by typos
SHARE = 0.3  # of the longer words get a typo; at least one per query
FOREIGN = "Find a song with the same mood\nQuery: "


def add_typos(text: str, rng: random.Random) -> str:
    """Swap, drop or double a letter inside some of the longer words; the first letter of a word stays."""
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) >= LETTERS]
    for index in rng.sample(long, min(len(long), max(1, round(SHARE * len(long))))):
        word, place = words[index], rng.randrange(1, len(words[index]) - 1)
        edits = (
            word[:place] + word[place + 1] + word[place] + word[place + 2 :],
            word[:place] + word[place + 1 :],
            word[:place] + word[place] + word[place:],
        )
        words[index] = rng.choice(edits)
    return " ".join(words)


def _identity(text: str, _: random.Random) -> str:
    return text


def _capitals(text: str, _: random.Random) -> str:
    return text.upper()


# kind -> (change of the query text, prompt in place of the model's own query prompt; None: its own)
KINDS: dict[str, tuple[Callable[[str, random.Random], str], str | None]] = {
    "as it is": (_identity, None),
    "typos": (add_typos, None),
    "capitals": (_capitals, None),
    "no prompt": (_identity, ""),
    "wrong prompt": (_identity, FOREIGN),
}


def sample_queries(task: Task, count: int, seed: int) -> list[str]:
    """Return at most `count` judged query ids, chosen by `seed` and the task's name, in sorted order."""
    judged = sorted(query_id for query_id, passages in task.qrels.items() if passages)
    return judged if len(judged) <= count else sorted(random.Random(f"{seed}:{task.name}").sample(judged, count))


class ChangedQueries:
    """Queries of one task in every kind, and the best passages of each, out of passages that come a slice at a time.

    Without queries, for a `count` of 0, it asks nothing; a model without a query prompt is not asked with another one.
    """

    def __init__(self, model: DenseModel, task: Task, count: int, seed: int) -> None:
        self._model, self._task, self._seed = model, task, seed
        self._ids = sample_queries(task, count, seed)
        self._runs: dict[str, dict[str, dict[str, float]]] = {}

    @cached_property
    def _vectors(self) -> dict[str, Floats]:
        """Query vectors by kind."""
        prompt, name = self._model.prompts["query"], self._task.name
        found = {}
        for kind, (change, other) in KINDS.items():
            if self._ids and (other is None or prompt):
                rng = random.Random(f"{self._seed}:{name}:{kind}")
                texts = [change(self._task.queries[query_id], rng) for query_id in self._ids]
                asked = prompt if other is None else other
                found[kind] = self._model.encoder.encode(texts, asked, f"{name}: {kind}")
        return found

    def search(self, keys: Sequence[str], passages_PD: Floats) -> None:
        """Search passages with these ids beside those before; the queries are encoded at the first call."""
        ignores = self._task.ignores_identical_ids
        for kind, queries_QD in self._vectors.items():
            run = self._runs.setdefault(kind, {query_id: {} for query_id in self._ids})
            found = rank(queries_QD, passages_PD, self._ids, keys, DEPTH, ignore_identical_ids=ignores)
            for query_id, before in run.items():
                best = {**before, **found[query_id]}
                run[query_id] = {key: best[key] for key in order_passages(best, DEPTH, query_id)}

    def scores(self) -> dict[str, float]:
        """Mean nDCG@10 by kind over the passages so far."""
        qrels = {query_id: self._task.qrels[query_id] for query_id in self._ids}
        return {kind: mean(ndcg_at_k(qrels, run, DEPTH)) for kind, run in self._runs.items()}
