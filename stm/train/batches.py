"""Rows and prompts in, a fixed sequence of batches of texts out.

The whole order follows from the rows, the params and the seed, so that a resumed training sees the same batches. Knows
nothing of models.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import polars as pl
import torch
from torch import Tensor

from stm.errors import DataError
from stm.params.train import TrainParams
from stm.progress import track
from stm.prompts import render
from stm.train.objective import BatchIds
from stm.words import fingerprint, normalise


@dataclass(frozen=True)
class Example:
    """One row as it is trained on: prompts applied, `passage_prompt` to all passages; negatives cut to the number
    used.
    """

    id: str
    anchor: str
    query: str
    positive: str
    negatives: tuple[str, ...]
    concept: str
    passage_prompt: str = ""
    answers: frozenset[int] = frozenset()  # fingerprints of passages that answer the query

    def form(self, passage: str) -> str:
        """The form in which one of its passages is compared with other texts."""
        return _form(passage.removeprefix(self.passage_prompt))


@dataclass(frozen=True)
class Batch:
    """The distinct texts of a step, where the queries [B] and candidates [M] (positives first) lie among them, and of
    which row each candidate is [M].
    """

    texts: list[str]
    queries: Tensor
    candidates: Tensor
    owners: Tensor
    ids: BatchIds
    row_ids: list[str]


@dataclass(frozen=True)
class PromptSource:
    """Where a row's query prompt comes from."""

    template: str
    passage_prompt: str
    instruction: str
    pool: Sequence[str] = ()


def make_examples(rows: pl.DataFrame, prompts: PromptSource, params: TrainParams) -> list[Example]:
    """Render the prompts of all rows.

    `DataError` if a pool is asked for and empty, or a negative equals its positive.
    """
    if params.instruction_from == "pool" and not prompts.pool:
        raise DataError(
            "the instructions are to be drawn from the split's pool, which is empty: the LLM wrote none of use "
            "(reports/search_prompts says why); raise search_prompts.pool_size, or train with the seed instruction"
        )
    examples, shared = [], dict[tuple[int, ...], frozenset[int]]()  # rows of one query share their known answers
    for row in track(rows.iter_rows(named=True), "read rows", rows.height):
        if row["positive"] in row["negatives"]:
            raise DataError(f"row {row['id']!r}: a negative equals the positive; mine the split again")
        instruction = _instruction(row, prompts, params)
        query = render(prompts.template, instruction).query + row["anchor"]
        negatives = tuple(prompts.passage_prompt + text for text in row["negatives"][: params.negatives])
        positive = prompts.passage_prompt + row["positive"]
        answers = shared.setdefault(tuple(row["answers"]), frozenset(row["answers"]))
        known = row["concept"], prompts.passage_prompt, answers
        examples.append(Example(row["id"], row["anchor"], query, positive, negatives, *known))
    return examples


def _instruction(row: dict[str, str], prompts: PromptSource, params: TrainParams) -> str:
    if params.instruction_from == "row":
        return row["instruction"] or prompts.instruction
    if params.instruction_from == "pool":
        return random.Random(f"{params.seed}:{row['id']}").choice(sorted(prompts.pool))
    return prompts.instruction


def check_count(count: int) -> None:
    """`DataError` if there are fewer than two rows, since nothing could be contrasted."""
    if count < 2:
        raise DataError(f"contrastive training needs at least 2 rows, the split has {count}; add data to the split")


def plan_steps(count: int, params: TrainParams) -> list[list[int]]:
    """Return the row indices of every step: `epochs` shuffled passes, rows that fill no batch left over.

    Data smaller than a batch makes one batch of all rows.
    """
    check_count(count)
    size = min(params.batch_size, count)
    steps: list[list[int]] = []
    for epoch in range(params.epochs):
        order = list(range(count))
        random.Random(f"{params.seed}:{epoch}").shuffle(order)
        steps += [order[start : start + size] for start in range(0, count - size + 1, size)]
    return steps[: params.max_steps] if params.max_steps else steps


def plan_together(counts: Sequence[int], params: TrainParams) -> list[list[int]]:
    """Return the row indices of every step of a training on several splits, whose rows follow each other.

    It has each row as often as a training on its split alone has it, and as many steps as these have in sum. Every
    batch mixes the splits in the shares that they have in the whole. One split gives `plan_steps`.
    """
    plans = [plan_steps(count, params) for count in counts]
    if len(plans) == 1:
        return plans[0]
    begins = accumulate(counts, initial=0)
    uses = [[begin + row for step in plan for row in step] for begin, plan in zip(begins, plans, strict=False)]
    order: list[int] = []
    for epoch in range(params.epochs):  # a pass of one split may be longer than the whole training of another
        parts = (rows[len(rows) * epoch // params.epochs : len(rows) * (epoch + 1) // params.epochs] for rows in uses)
        mixed = sorted(chain.from_iterable(parts))
        random.Random(f"{params.seed}:{epoch}").shuffle(mixed)
        order += mixed
    steps = sum(len(plan) for plan in plans)
    return [order[len(order) * step // steps : len(order) * (step + 1) // steps] for step in range(steps)]


def _form(text: str) -> str:
    return normalise(text) or text  # signs alone are no words, and differ


def _number(values: Sequence[str]) -> list[int]:
    """The place of each value among the distinct ones, in the order in which they first occur."""
    seen: dict[str, int] = {}
    return [seen.setdefault(value, len(seen)) for value in values]


def _answers_in(examples: Sequence[Example], numbers: Mapping[str, int]) -> Tensor:
    """Pairs [A, 2] of a row and the number of a text of the batch that is known to answer it."""
    if not any(example.answers for example in examples):
        return torch.empty(0, 2, dtype=torch.long)
    named = {fingerprint(form): number for form, number in numbers.items()}
    found = [sorted(example.answers & named.keys()) for example in examples]
    pairs = [(row, named[key]) for row, keys in enumerate(found) for key in keys]
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def make_batch(examples: Sequence[Example]) -> Batch:
    """Collect the distinct texts of the examples, so that a text that occurs twice is encoded once."""
    count = len(examples)
    texts = [example.query for example in examples] + [example.positive for example in examples]
    texts += [text for example in examples for text in example.negatives]
    places = torch.tensor(_number(texts))
    concepts = _number([example.concept for example in examples])
    known = [number if example.concept else -1 for number, example in zip(concepts, examples, strict=True)]
    forms = [_form(example.anchor) for example in examples]
    forms += [example.form(example.positive) for example in examples]
    forms += [example.form(text) for example in examples for text in example.negatives]
    numbers = _number(forms)
    answers = _answers_in(examples, dict(zip(forms, numbers, strict=True)))
    ids = BatchIds(torch.tensor(numbers[:count]), torch.tensor(numbers[count:]), torch.tensor(known), answers)
    owners = [*range(count), *(row for row, example in enumerate(examples) for _ in example.negatives)]
    row_ids = [example.id for example in examples]
    return Batch(list(dict.fromkeys(texts)), places[:count], places[count:], torch.tensor(owners), ids, row_ids)
