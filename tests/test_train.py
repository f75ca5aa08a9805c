"""Training: the objective equals the written formula, the folded layer equals peft's, a killed run ends in the same
bytes.
"""

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from stm.errors import DataError, ModelError
from stm.files import read_json, sha256_tree, write_json
from stm.models import load_model
from stm.params.train import TrainParams
from stm.prompts import read_prompts
from stm.schema import ROWS, write_rows
from stm.train import adapter, loop, lora
from stm.train.adapter import describe_origin, train_adapter
from stm.train.batches import Example, PromptSource, make_batch, make_examples, plan_steps, plan_together
from stm.train.checkpoint import only_training, read_checkpoint
from stm.train.expert import Share, train_expert
from stm.train.finished import find_same, record_training
from stm.train.loop import learning_rate
from stm.train.lora import Folds, become_folded, fold, group_alike
from stm.train.objective import BatchIds, chance_loss, false_negatives, info_nce
from stm.train.step import Step
from stm.words import fingerprint
from tests.pico import pico_backbone

PARAMS = TrainParams(
    rank=4,
    alpha=8,
    learning_rate=1e-2,
    warmup_steps=2,
    weight_decay=0.01,
    max_grad_norm=1.0,
    batch_size=8,
    epochs=2,
    max_steps=6,
    negatives=1,
    temperature=0.05,
    symmetric=False,
    instruction_from="instruction",
    chunk_tokens=256,
    cache_gradients=False,
    checkpoint_steps=1,
    seed=3,
)


def note(seen: set[str], batch: Any, texts: Iterable[str]) -> Any:
    """The batch, of which some texts are taken down."""
    seen.update(texts)
    return batch


def examples(count: int = 32) -> list[Example]:
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefgh") for _ in range(5)) for _ in range(3 * count)]
    return [
        Example(f"r{i}", words[i], f"find {words[i]}", f"{words[i]} {words[count + i]}", (words[2 * count + i],), "")
        for i in range(count)
    ]


def unit(*shape: int, seed: int) -> torch.Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


def ids(anchors: list[int], texts: list[int], concepts: list[int]) -> BatchIds:
    return BatchIds(torch.tensor(anchors), torch.tensor(texts), torch.tensor(concepts))


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(2, 6), negatives=st.integers(0, 2), seed=st.integers(0, 99))
def test_the_objective_equals_that_of_sentence_transformers_without_duplicates(
    rows: int, negatives: int, seed: int
) -> None:
    queries, passages = unit(rows, 8, seed=seed), unit(rows * (1 + negatives), 8, seed=seed + 1000)
    reference = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0)
    expected = reference.compute_loss_from_embeddings([queries, *torch.split(passages, rows)], torch.zeros(0))
    mask = torch.zeros(rows, len(passages), dtype=torch.bool)
    assert torch.allclose(info_nce(queries, passages, mask, 0.05), expected, atol=1e-5)


def test_the_objective_equals_the_written_formula_with_masks_and_the_symmetric_term() -> None:
    q, p, t = unit(2, 4, seed=1), unit(3, 4, seed=2), 0.1
    mask = torch.tensor([[False, False, True], [False, False, False]])
    s = (q @ p.T / t).double()
    forward = -(s[0, 0] - torch.logsumexp(s[0, :2], 0) + s[1, 1] - torch.logsumexp(s[1], 0)) / 2
    back = -(s[0, 0] - torch.logsumexp(s[:, 0], 0) + s[1, 1] - torch.logsumexp(s[:, 1], 0)) / 2
    assert info_nce(q, p, mask, t).item() == pytest.approx(forward.item(), abs=1e-5)
    assert info_nce(q, p, mask, t, symmetric=True).item() == pytest.approx((forward + back).item() / 2, abs=1e-5)


def test_false_negatives_are_same_text_same_concept_and_same_anchor_but_never_the_own_positive() -> None:
    mask = false_negatives(ids([0, 1, 2], [10, 11, 12, 10, 13], [5, -1, 5]))
    same = false_negatives(ids([0, 1, 0], [10, 11, 12, 10, 13], [-1, -1, -1]))
    expected = [
        [False, False, True, True, False],  # row 2 has the concept, or the anchor; candidate 3 is row 0's positive
        [False, False, False, False, False],
        [True, False, False, True, False],
    ]
    assert mask.tolist() == same.tolist() == expected


def test_answers_known_from_elsewhere_are_not_contrasted() -> None:
    answers = frozenset(map(fingerprint, ("Passage one", "Passage two!", "a negative", "not in the batch")))
    first = Example("1", "q1", "find: q1", "text: passage one", ("text: a negative",), "", "text: ", answers)
    second = Example("2", "q2", "find: q2", "text: passage two", ("text: another",), "", "text: ")
    mask = false_negatives(make_batch([first, second]).ids)
    assert mask.tolist() == [[False, True, True, False], [False, False, False, False]]


def test_a_query_is_not_contrasted_with_itself() -> None:
    assert false_negatives(ids([0, 1], [1, 2, 0], [-1, -1])).tolist() == [[False, False, True], [True, False, False]]


@pytest.mark.parametrize("symmetric", [False, True])
def test_chance_is_the_loss_where_all_embeddings_are_equal(symmetric: bool) -> None:
    known = ids([0, 1, 2, 0], [10, 11, 12, 12, 13, 14], [5, -1, 5, -1])
    mask, (q, p) = false_negatives(known), (torch.ones(n, 1) for n in (4, 6))
    expected = info_nce(q, p, mask, 0.05, symmetric).item()
    assert chance_loss(mask, symmetric) == pytest.approx(expected, abs=1e-5)
    assert expected < math.log(6), "what is masked does not count"


def test_batches_encode_a_text_once_and_number_what_is_equal() -> None:
    one = Example("a", "x", "find x", "P", ("N",), "c")
    two = Example("b", "x", "find x", "Q", ("P",), "")
    batch = make_batch([one, two])
    assert batch.texts == ["find x", "P", "Q", "N"]
    assert batch.queries.tolist() == [0, 0]
    assert batch.candidates.tolist() == [1, 2, 3, 1]
    mask = false_negatives(batch.ids)
    assert mask.tolist() == [[False, True, False, True], [True, False, False, True]]


def test_texts_that_mining_counts_as_one_are_one_here_too() -> None:
    one = Example("a", "Fever", "find Fever", "passage: P.", ("passage: N",), "", "passage: ")
    two = Example("b", "fever!", "find fever!", "passage: Q", ("passage: p", "passage: (Fever)"), "", "passage: ")
    assert false_negatives(make_batch([one, two]).ids).tolist() == [
        [False, True, False, True, True],
        [True, False, False, True, True],
    ]
    signs = [Example(sign, name, f"find {name}", sign, (), "") for sign, name in (("+", "plus"), ("-", "minus"))]
    assert not false_negatives(make_batch(signs).ids).any(), "without a word they are compared as they are"


def test_steps_cover_every_row_once_per_epoch_and_repeat_by_seed() -> None:
    steps = plan_steps(16, PARAMS.model_copy(update={"max_steps": 0}))
    assert [sorted(steps[0] + steps[1]), sorted(steps[2] + steps[3])] == [list(range(16))] * 2
    assert steps[0] + steps[1] != steps[2] + steps[3]
    assert plan_steps(16, PARAMS) == plan_steps(16, PARAMS)
    assert plan_steps(5, PARAMS.model_copy(update={"max_steps": 1})) == [plan_steps(5, PARAMS)[0]]
    with pytest.raises(DataError, match="at least 2 rows"):
        plan_steps(1, PARAMS)


def frame(**changes: object) -> pl.DataFrame:
    row = {
        "id": "r1", "anchor": "fever", "positive": "A high temperature.", "negatives": ["A cough."],
        "origins": ["given"], "instruction": "Own words", "source": "test", "concept": "", "answers": [],
    }  # fmt: skip
    return pl.DataFrame([{**row, **changes}], schema=ROWS)


def test_prompts_come_from_the_split_the_pool_or_the_row() -> None:
    source = PromptSource("{instruction}: ", "passage: ", "Split's words", ["Pool a", "Pool b"])
    (example,) = make_examples(frame(), source, PARAMS)
    assert (example.query, example.positive) == ("Split's words: fever", "passage: A high temperature.")
    by = {}
    for origin in ("row", "pool"):
        params = PARAMS.model_copy(update={"instruction_from": origin})
        by[origin] = make_examples(frame(), source, params)[0].query
    assert by["row"] == "Own words: fever"
    assert by["pool"] in ("Pool a: fever", "Pool b: fever")
    of_rows = PARAMS.model_copy(update={"instruction_from": "row"})
    assert make_examples(frame(instruction=""), source, of_rows)[0].query == "Split's words: fever", "it has none"
    with pytest.raises(DataError, match="pool, which is empty"):
        make_examples(frame(), PromptSource("", "", "x"), PARAMS.model_copy(update={"instruction_from": "pool"}))


def test_a_negative_that_equals_its_positive_is_refused_with_the_row() -> None:
    with pytest.raises(DataError, match="'r1'"):
        make_examples(frame(negatives=["A high temperature."]), PromptSource("", "", "x"), PARAMS)


def test_the_folded_layer_equals_pefts_in_values_and_gradients() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(12, 20))
    adapted = get_peft_model(net, LoraConfig(r=4, lora_alpha=8, target_modules=["0"]))
    layer = adapted.base_model.model[0]
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    x = torch.randn(3, 5, 12, requires_grad=True)
    expected = layer(x)
    expected.square().sum().backward()
    grads = [t.grad.clone() for t in (x, a, b)]
    for tensor in (x, a, b):
        tensor.grad = None
    peft_forward = layer.forward
    become_folded(layer)
    folds = Folds([layer])
    folds.refresh()
    folded = layer(x)
    folded.square().sum().backward()
    assert torch.allclose(folded, expected, atol=1e-5)
    for tensor, grad in zip((x, a, b), grads, strict=True):
        assert torch.allclose(tensor.grad, grad, rtol=1e-4, atol=1e-4)
    kept = layer.folded._version
    folds.refresh()
    assert layer.folded._version == kept  # the factors are as they were
    torch.optim.SGD([b], lr=0.1).step()
    folds.refresh()
    assert torch.allclose(layer(x), peft_forward(x), atol=1e-5)


def test_layers_folded_together_are_those_folded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Linear(12, out) for out in (20, 6, 20, 6, 20)))
    adapted = get_peft_model(net, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    layers = list(adapted.base_model.model)
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B["default"].weight)
        become_folded(layer)
    monkeypatch.setattr(lora, "TOGETHER", 2 * 20 * 12)
    groups = group_alike(layers)
    assert [[layers.index(layer) for layer in group] for group in groups] == [[0, 2], [4], [1, 3]]
    with torch.no_grad():
        for group in groups:
            fold(group)
    for layer in layers:
        a, b, scale = layer.factors()
        assert torch.allclose(layer.folded, layer.base_layer.weight + scale * b @ a, atol=1e-6)


def test_gradient_caching_gives_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base")
    found = []
    for cached in (False, True):
        model = load_model(base)
        parameter = model[0].model.layers[0].mlp.up_proj.weight
        step = Step(model, PARAMS.model_copy(update={"cache_gradients": cached, "chunk_tokens": 64}))
        loss, _ = step.run(step.prepare(make_batch(examples(8))))
        found.append((float(loss), parameter.grad))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


def test_dropout_of_a_backbone_is_off_in_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pico_backbone(tmp_path / "base")
    config = read_json(base / "config.json")
    write_json(base / "config.json", {**config, "attention_dropout": 0.5})
    cached, plain = (
        train(base, tmp_path / name, tmp_path / "work", cache_gradients=name == "cached")
        for name in ("cached", "plain")
    )
    losses = [[entry["loss"] for entry in report["history"]] for report in (cached, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = [learning_rate(step, 10, PARAMS) for step in range(11)]
    assert rates[:3] == [0.005, 0.01, 0.01]
    assert rates[10] == 0
    assert all(late < early for early, late in pairwise(rates[2:]))


def train(base: Path, out: Path, work: Path, **changes: object) -> dict[str, Any]:
    params = PARAMS.model_copy(update=changes)
    return train_adapter(base, [examples()], read_prompts(base), params, out, work, "pico")


@contextmanager
def broken_off_after(steps: int) -> Iterator[None]:
    """A context whose training makes so many steps and ends in an error."""
    left, advance = iter(range(steps)), loop.advance

    def some(*args: Any) -> Any:
        if next(left, None) is None:
            raise InterruptedError
        return advance(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "advance", some)
        with pytest.raises(InterruptedError):
            yield


def test_training_lowers_the_loss_and_is_the_same_twice(tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base")
    first = train(base, tmp_path / "1/a", tmp_path / "wa", max_steps=24, epochs=8)
    train(base, tmp_path / "2/a", tmp_path / "wb", max_steps=24, epochs=8)
    losses = [entry["loss"] for entry in first["history"]]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    rates = [learning_rate(step, 24, PARAMS) for step in range(24)]
    assert [entry["learning_rate"] for entry in first["history"]] == rates
    for name in ("adapter_model.safetensors", "adapter_config.json", "prompts.json", "training.json"):
        assert (tmp_path / "1/a" / name).read_bytes() == (tmp_path / "2/a" / name).read_bytes()
    assert not (tmp_path / "wa").exists()


def test_a_finished_training_of_the_same_inputs_is_taken_over_and_of_others_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = pico_backbone(tmp_path / "base"), tmp_path / "experts"
    first = train(base, out / "a", tmp_path / "w")
    other = train(base, out / "b", tmp_path / "w", seed=4)
    assert "same_as" not in other
    monkeypatch.setattr("stm.train.step.Step.run", lambda self, batch: pytest.fail("trained again"))
    same = train(base, out / "c", tmp_path / "w")
    assert (same["same_as"], same["history"], same["seconds"]) == ("a", first["history"], 0.0)
    assert sha256_tree(out / "c") == sha256_tree(out / "a")
    (out / "a" / "adapter_model.safetensors").write_bytes(b"changed")
    assert train(base, out / "d", tmp_path / "w")["same_as"] == "c"
    monkeypatch.setattr("stm.train.adapter.hash_code", lambda *_: "of a later version")
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        train(base, out / "e", tmp_path / "w")


def test_what_is_at_its_own_place_comes_before_siblings_and_these_by_name(tmp_path: Path) -> None:
    for name in "ecadb":
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"weights")
        record_training(tmp_path / name, {"base": "one"}, [])
    for name, expected in {**{name: name for name in "abcde"}, "new": "a"}.items():
        found = find_same(tmp_path / name, {"base": "one"})
        assert found is not None
        assert found.folder.name == expected


def test_a_training_in_another_precision_is_neither_taken_over_nor_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, origins = pico_backbone(tmp_path / "base"), []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(adapter, "compute_dtype", lambda dtype=dtype: dtype)
        origins.append(describe_origin(base, [examples()], PARAMS))
    assert [key for key in origins[0] if origins[0][key] != origins[1][key]] == ["precision"]


def test_a_prompt_as_long_as_the_model_stops_the_training(tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base")
    long = [replace(row, query="x" * 60 + row.anchor) for row in examples()]
    with pytest.raises(DataError, match="a prompt takes 61 tokens and leaves none of the 48"):
        train_adapter(base, [long], read_prompts(base), PARAMS, tmp_path / "1/a", tmp_path / "w", "a")


def test_several_splits_together_have_the_budget_of_one_training_on_each() -> None:
    params = PARAMS.model_copy(update={"max_steps": 0, "epochs": 1})
    assert plan_together([16, 24], params) == plan_steps(40, params), "whole passes of all are a pass of the whole"
    params = params.model_copy(update={"max_steps": 5, "epochs": 3})
    counts = [96, 11, 4]  # five steps of 8, three of 8, three of 4
    alone = [plan_steps(count, params) for count in counts]
    together = plan_together(counts, params)
    assert len(together) == sum(len(plan) for plan in alone) == 11
    begins = [0, 96, 107]
    uses = sorted(begin + row for begin, plan in zip(begins, alone, strict=True) for step in plan for row in step)
    assert sorted(row for step in together for row in step) == uses
    assert {len(step) for step in together} <= {6, 7, 8}, "of one size"
    large = [sum(row < 96 for row in step) for step in together]
    assert max(sum(large[:4]), sum(large[-4:])) < 25, "no split comes first or last alone"


def share(folder: Path, name: str, anchors: Sequence[str]) -> Share:
    rest = {"negatives": [], "origins": [], "instruction": "", "source": "t", "concept": "", "answers": []}
    rows = [{"id": f"{name}{i}", "anchor": a, "positive": f"p {a}", **rest} for i, a in enumerate(anchors)]
    write_rows(pl.DataFrame(rows, schema=ROWS), folder / f"{name}.parquet")
    return Share(folder / f"{name}.parquet")


def test_a_training_on_all_splits_sees_as_many_tokens_as_the_experts(tmp_path: Path) -> None:
    base, params = pico_backbone(tmp_path / "base"), PARAMS.model_copy(update={"max_steps": 3, "epochs": 1})
    short = share(tmp_path, "short", [f"q{i}" for i in range(100, 180)])
    long = share(tmp_path, "long", [f"a far longer question {i}" for i in range(100, 124)])
    found = [
        train_expert(base, shares, params, tmp_path / f"{number}/out", tmp_path / "work", "pico")
        for number, shares in enumerate([[short], [long], [short, long]])
    ]
    assert [one["steps"] for one in found] == [3, 3, 6]
    assert found[2]["tokens"] == found[0]["tokens"] + found[1]["tokens"]


def test_the_split_with_a_fault_is_named(tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base")
    shares = [share(tmp_path, "good", ["q1", "q2"]), share(tmp_path, "small", ["q1"])]
    with pytest.raises(DataError, match="small: contrastive training needs at least 2 rows, the split has 1"):
        train_expert(base, shares, PARAMS, tmp_path / "out", tmp_path / "work", "pico")


RUN = """
import sys, time
from pathlib import Path
from tests import test_train as t
import stm.train.loop as loop
plain = loop.advance
def slow(*args):
    time.sleep(0.2)
    return plain(*args)
loop.advance = slow
t.train(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    base, work = pico_backbone(tmp_path / "base"), tmp_path / "work"
    train(base, tmp_path / "1/whole", tmp_path / "w")
    command = [sys.executable, "-c", RUN, str(base), str(tmp_path / "2/resumed"), str(work)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": "."})
    deadline = time.monotonic() + 120
    while (found := read_checkpoint(work)) is None or len(found[0]["history"]) < 2:
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "2/resumed").exists()
    train(base, tmp_path / "2/resumed", work)
    whole, resumed = (tmp_path / n / "adapter_model.safetensors" for n in ("1/whole", "2/resumed"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_a_checkpoint_of_other_params_is_refused_with_the_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, work = pico_backbone(tmp_path / "base"), tmp_path / "work"
    monkeypatch.setattr("stm.train.adapter.remove_directory", lambda folder: None)
    train(base, tmp_path / "a", work)
    with pytest.raises(ModelError, match=r"temperature = 0\.05, not 0\.1"):
        train(base, tmp_path / "b", work, temperature=0.1)


def test_a_checkpoint_is_replaced_at_once_and_a_damaged_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, work = pico_backbone(tmp_path / "base"), tmp_path / "work"
    replace, done = os.replace, []

    def fail(source: Path, target: Path) -> None:
        if Path(target).parent == work and len(done) == 2:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr("stm.files.os.replace", fail)
    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "a", work)
    found = read_checkpoint(work)
    assert found
    assert len(found[0]["history"]) == 2 * PARAMS.checkpoint_steps
    path = work / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        ModelError, match=r"state\.safetensors cannot be read .*; delete .*work to train from the start"
    ):
        train(base, tmp_path / "a", work)


def test_a_checkpoint_that_was_left_behind_goes_when_its_training_is_found_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, work = pico_backbone(tmp_path / "base"), tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.setattr("stm.train.adapter.remove_directory", lambda folder: None)
        train(base, tmp_path / "a", work)
    assert work.exists()
    train(base, tmp_path / "a", work)
    assert not work.exists()


def test_one_checkpoint_has_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, work = pico_backbone(tmp_path / "base"), tmp_path / "work"
    monkeypatch.setattr("stm.train.checkpoint.PATIENCE_SECONDS", 0.3)
    with only_training(work), pytest.raises(ModelError, match=r"another process is training with .*work"):
        train(base, tmp_path / "a", work)
    assert train(base, tmp_path / "a", work)["steps"] == PARAMS.max_steps


def test_one_share_carries_its_instruction_and_several_the_bases(tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base")
    rows = pl.concat([frame(id=f"r{i}", anchor=f"a{i}", positive=f"p{i}") for i in range(8)])
    write_rows(rows, tmp_path / "rows.parquet")
    (tmp_path / "i.json").write_text('{"instruction": "Find the sign", "pool": []}')
    share = Share(tmp_path / "rows.parquet", tmp_path / "i.json")
    report = train_expert(base, [share], PARAMS, tmp_path / "one", tmp_path / "w", "one")
    assert read_prompts(tmp_path / "one").query == "Find the sign\nQuery: "
    assert (report["rows"], report["instruction"]) == (8, "Find the sign")
    train_expert(base, [share, share], PARAMS, tmp_path / "two", tmp_path / "w", "two")
    assert read_prompts(tmp_path / "two") == read_prompts(base)
