"""How a dense model bears queries that are not as the test tasks have them: typos, capitals, a missing or a wrong
prompt.

Takes an opened model and tasks and returns nDCG@10 per kind and task on a seeded sample of queries, beside the score
of the same queries as they are. The passages come from the embedding store where there is one, so that only queries
are encoded. Changes nothing of the evaluation proper.
"""

import random
from collections.abc import Callable, Iterable, Sequence

from stm.evaluate.models import DenseModel
from stm.metrics import mean, ndcg_at_k, rank
from stm.tasks import Task

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
    prompt = model.prompts["query"]
    for task in tasks if count else ():
        ids = sample_queries(task, count, seed)
        passages_PD = model.encoder.encode(
            [passage.full_text() for passage in task.corpus.values()],
            model.prompts["document"],
            f"{task.name}: passages",
        )
        for kind, (change, other) in KINDS.items():
            if other is not None and not prompt:
                continue
            rng = random.Random(f"{seed}:{task.name}:{kind}")
            texts = [change(task.queries[query_id], rng) for query_id in ids]
            queries_QD = model.encoder.encode(texts, prompt if other is None else other, f"{task.name}: {kind}")
            scores.setdefault(kind, {})[task.name] = _score(task, ids, rank(
                queries_QD, passages_PD, ids, list(task.corpus), DEPTH, ignore_identical_ids=_ignores(task)
            ))  # fmt: skip
    return scores


def _ignores(task: Task) -> bool:
    return bool(task.notes.get("ignore_identical_ids", False))


def _score(task: Task, ids: Sequence[str], run: dict[str, dict[str, float]]) -> float:
    return mean(ndcg_at_k({query_id: task.qrels[query_id] for query_id in ids}, run, DEPTH))
