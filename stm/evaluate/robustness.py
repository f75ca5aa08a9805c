"""How a dense model bears queries that are not as the test tasks have them: typos, capitals, a missing or a wrong
prompt.

Takes an opened model and tasks and returns nDCG@10 per kind and task on a seeded sample of queries, beside the score
of the same queries as they are. The passages come from the embedding store where there is one, so that only queries
are encoded, and in slices, so that their vectors are never all in memory. Changes nothing of the evaluation proper.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from stm.evaluate.models import SLICE, DenseModel
from stm.metrics import mean, ndcg_at_k, order_passages, rank
from stm.tasks import Passage, Task

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


def score_kinds(model: DenseModel, tasks: Iterable[Task], count: int, seed: int) -> dict[str, dict[str, float]]:
    """Return `scores[kind][task]`, nDCG@10 of up to `count` queries per task; no kinds for `count` 0.

    A model without a query prompt is not asked with another one.
    """
    scores: dict[str, dict[str, float]] = {}
    for task in tasks if count else ():
        ids = sample_queries(task, count, seed)
        qrels = {query_id: task.qrels[query_id] for query_id in ids}
        for kind, run in _search(model, task, ids, seed).items():
            scores.setdefault(kind, {})[task.name] = mean(ndcg_at_k(qrels, run, DEPTH))
    return scores


def _slices(corpus: Mapping[str, Passage]) -> Iterator[tuple[list[str], list[str]]]:
    """Ids and texts of the passages, a slice at a time."""
    items = iter(corpus.items())
    while rows := list(islice(items, SLICE)):
        yield [key for key, _ in rows], [passage.full_text() for _, passage in rows]


def _search(model: DenseModel, task: Task, ids: list[str], seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """The best passages of each query in each kind: `run[kind][query_id][passage_id] = score`."""
    prompt, ignores = model.prompts["query"], task.ignores_identical_ids
    queries = {}
    for kind, (change, other) in KINDS.items():
        if other is None or prompt:
            rng = random.Random(f"{seed}:{task.name}:{kind}")
            texts = [change(task.queries[query_id], rng) for query_id in ids]
            queries[kind] = model.encoder.encode(texts, prompt if other is None else other, f"{task.name}: {kind}")
    runs: dict[str, dict[str, dict[str, float]]] = {kind: {query_id: {} for query_id in ids} for kind in queries}
    for keys, texts in _slices(task.corpus):
        passages_PD = model.encoder.encode(texts, model.prompts["document"], f"{task.name}: passages")
        for kind, queries_QD in queries.items():
            found = rank(queries_QD, passages_PD, ids, keys, DEPTH, ignore_identical_ids=ignores)
            for query_id, best in runs[kind].items():
                best |= found[query_id]
                runs[kind][query_id] = {key: best[key] for key in order_passages(best, DEPTH, query_id)}
    return runs
