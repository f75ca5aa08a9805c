"""Held-out rows: who is held out, which step is kept, when training stops, and that a resumed one decides the same."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stm.errors import DataError, ParamsError
from stm.params.base import parse_section
from stm.params.train import TrainParams
from stm.prompts import read_prompts
from stm.train.adapter import train_adapter
from stm.train.batches import Example
from stm.train.checkpoint import read_checkpoint
from stm.train.dev import best_step, hold_out, is_stale, why_unlearned
from stm.train.step import Step
from tests.pico import pico_backbone
from tests.test_train import PARAMS, broken_off_after, examples, note

DEV = {"dev_rows": 6, "dev_steps": 2, "epochs": 8, "max_steps": 8}


def train(base: Path, out: Path, work: Path, **changes: object) -> dict[str, Any]:
    params = PARAMS.model_copy(update={**DEV, **changes})
    return train_adapter(base, [examples()], read_prompts(base), params, out, work, "pico")


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def entries(*losses: float | None) -> list[dict[str, float]]:
    return [{"loss": 1.0} if value is None else {"loss": 1.0, "dev_loss": value} for value in losses]


def test_rows_of_one_concept_or_positive_are_held_out_together() -> None:
    rows = [Example(f"r{i}", f"a{i}", f"q{i}", f"p{i // 2}", (), "c" if i > 15 else "") for i in range(20)]
    train_rows, held = hold_out(rows, 5, seed=1)
    assert sorted(r.id for r in [*train_rows, *held]) == sorted(r.id for r in rows)
    assert len(held) in (6, 8)
    assert not {r.positive for r in held} & {r.positive for r in train_rows}
    assert len({r.concept for r in rows[16:]} & {r.concept for r in held} & {r.concept for r in train_rows} - {""}) == 0
    assert hold_out(rows, 5, seed=1) == (train_rows, held)
    assert hold_out(rows, 5, seed=2)[1] != held
    assert hold_out(rows, 0, seed=1) == (rows, [])
    tied = [Example(f"r{i}", f"a{i}", f"q{i}", f"p{i // 2}", (), f"c{i // 4}" if i % 2 else "") for i in range(40)]
    train_rows, held = hold_out(tied, 5, seed=1)
    assert len(held) == 8, "four rows are tied by two positives and a concept"
    assert not {r.positive for r in held} & {r.positive for r in train_rows}
    with pytest.raises(DataError, match=r"of 20 rows, in 9 groups .* 0 would be left"):
        hold_out(rows, 19, seed=1)


def test_large_groups_are_held_out_only_where_small_ones_are_not_enough() -> None:
    rows = [Example(f"r{i}", f"a{i}", f"q{i}", f"p{i}", (), "big" if i < 50 else "") for i in range(70)]
    for seed in range(8):
        assert len(hold_out(rows, 8, seed)[1]) == 8
    mixed = [Example(f"r{i}", f"a{i}", f"q{i}", f"p{i}", (), "" if i < 20 else f"pair {i // 2}") for i in range(60)]
    held = [row.concept for seed in range(8) for row in hold_out(mixed, 4, seed)[1]]
    assert set(map(bool, held)) == {True, False}, "single rows and pairs are both small: the seed decides"
    thirds = [Example(f"r{i}", f"a{i}", f"q{i}", f"p{i}", (), f"c{0 if i < 30 else i // 20}") for i in range(70)]
    assert {r.concept for r in hold_out(thirds, 8, seed=1)[1]} == {"c1"}, "the ten rows, not twenty or thirty"


def one_concept_each(rows: list[Example], size: int) -> list[Example]:
    """The rows without hard negatives, `size` of them of one concept."""
    return [replace(row, negatives=(), concept=f"c{i // size}") for i, row in enumerate(rows)]


def test_rows_with_nothing_to_contrast_are_no_measure_and_no_lesson(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = pico_backbone(tmp_path / "base")
    tied = one_concept_each(examples(32), 8)
    params = PARAMS.model_copy(update={"dev_rows": 4, "dev_steps": 1})
    with pytest.raises(DataError, match="a: the 8 held-out rows are of one concept, without hard negatives"):
        train_adapter(base, [tied], read_prompts(base), params, tmp_path / "1/a", tmp_path / "w", "a")
    tied = [replace(row, negatives=("n",)) for row in one_concept_each(examples(32), 11)]
    train_adapter(base, [tied], read_prompts(base), params, tmp_path / "2/a", tmp_path / "w", "a")
    assert "a: 10 rows are held out" in capsys.readouterr().err
    same = one_concept_each(examples(16), 16)
    report = train_adapter(base, [same], read_prompts(base), PARAMS, tmp_path / "3/a", tmp_path / "v", "a")
    assert "nothing to contrast" in report["unlearned"]


def test_the_best_step_is_the_first_of_the_lowest_and_patience_counts_from_it() -> None:
    assert best_step(entries(None, None)) == 0
    history = entries(None, 0.5, None, 0.4, None, 0.4, 0.6)
    assert best_step(history) == 4
    assert [is_stale(history, patience) for patience in (0, 1, 2, 3)] == [False, True, True, False]
    assert not is_stale(entries(0.5), 1)


def test_a_training_that_tells_nothing_apart_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = [{"loss": loss, "chance": 3.0} for loss in (3.1, 3.0, 2.5)]
    assert not why_unlearned(learned)
    assert "lower learning rate" in why_unlearned(learned[:2])
    assert "train longer" in why_unlearned([{"loss": 6.0, "chance": 3.0}])
    assert "lower" not in why_unlearned([{"loss": 6.0, "chance": 3.0}]), "on its way down, only not there yet"
    assert not why_unlearned([{"loss": 3.0, "chance": 3.0}, *[{"loss": 1.0, "chance": 3.0}] * 10])
    assert not why_unlearned([])
    assert not why_unlearned([{"loss": loss, "chance": 3.0} for loss in (2.7, 2.6, 2.95)])
    diverged = [{"loss": loss, "chance": 3.0, "dev_loss": loss} for loss in (3.1, 2.0, 1.0, 4.0, 5.0, 6.0)]
    assert not why_unlearned(diverged), "the best step is kept, and what came after it is undone"
    late = why_unlearned([{"loss": 99.0, "chance": 3.0}, *[{"loss": loss, "chance": 3.0} for loss in (2.9, 3.3)] * 5])
    assert late.startswith("the loss ended at chance (3.10, embeddings that tell nothing apart have 3.00)")
    base, run = pico_backbone(tmp_path / "base"), Step.run
    assert "unlearned" not in train(base, tmp_path / "1/learned", tmp_path / "w")
    monkeypatch.setattr(Step, "run", lambda self, ready: (run(self, ready)[0] * 0 + ready.chance, 1))
    assert "ended at chance" in train(base, tmp_path / "2/collapsed", tmp_path / "w")["unlearned"]
    assert "ended at chance" in capsys.readouterr().err


def test_the_adapter_is_that_of_the_best_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, losses = pico_backbone(tmp_path / "base"), iter([0.5, 0.2, 0.3, 0.4])
    monkeypatch.setattr(Step, "measure", lambda self, batch: next(losses))
    report = train(base, tmp_path / "1/kept", tmp_path / "w")
    assert (report["best_step"], report["steps"]) == (4, 8)
    assert [entry["dev_loss"] for entry in report["history"][1::2]] == [0.5, 0.2, 0.3, 0.4]
    captured = iter([0.1, 0.2, 0.3, 0.4, 0.5])
    monkeypatch.setattr(Step, "measure", lambda self, batch: next(captured))
    first = train(base, tmp_path / "2/first", tmp_path / "w")
    assert first["best_step"] == 2
    assert weights(tmp_path / "1/kept") != weights(tmp_path / "2/first")
    kept, other = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("1/kept", "2/first"))
    assert any((kept[name] - other[name]).abs().max() > 1e-4 for name in kept)


def test_training_stops_when_nothing_gets_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, losses = pico_backbone(tmp_path / "base"), iter([0.2, 0.3, 0.4])
    monkeypatch.setattr(Step, "measure", lambda self, batch: next(losses))
    report = train(base, tmp_path / "1/stopped", tmp_path / "w", patience=2)
    assert (report["best_step"], report["steps"]) == (2, 6)


def test_held_out_rows_are_measured_and_never_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, seen, measured = pico_backbone(tmp_path / "base"), set[str](), set[str]()
    run, measure = Step.run, Step.measure
    monkeypatch.setattr(Step, "run", lambda self, ready: run(self, note(seen, ready, ready.batch.row_ids)))
    monkeypatch.setattr(Step, "measure", lambda self, ready: measure(self, note(measured, ready, ready.batch.row_ids)))
    report = train(base, tmp_path / "1/a", tmp_path / "w")
    assert len(measured) == 6
    assert not measured & seen
    assert all(0 < entry["dev_loss"] < 20 for entry in report["history"] if "dev_loss" in entry)


def test_the_seconds_are_those_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, work = pico_backbone(tmp_path / "base"), tmp_path / "work"
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("stm.train.loop.time", SimpleNamespace(monotonic=lambda: next(clock)))  # ten seconds a look
    with broken_off_after(3):
        train(base, tmp_path / "out", work, dev_rows=0)
    found = read_checkpoint(work)
    assert found
    spent = found[0]["seconds"]
    assert spent == 30  # a look at the start, and one per checkpoint
    report = train(base, tmp_path / "out", work, dev_rows=0)
    assert report["seconds"] == spent + 10 * (len(report["history"]) - 3 + 1)


def test_an_interrupted_training_keeps_the_same_best_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, run, count = pico_backbone(tmp_path / "base"), Step.run, [0]
    whole = train(base, tmp_path / "1/a", tmp_path / "w")

    def interrupted(self: Step, batch: Any) -> tuple[torch.Tensor, int]:
        count[0] += 1
        if count[0] == 6:
            raise KeyboardInterrupt
        return run(self, batch)

    monkeypatch.setattr(Step, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(base, tmp_path / "2/a", tmp_path / "w")
    resumed = train(base, tmp_path / "2/a", tmp_path / "w")
    assert count[0] == 9, "five steps before, three after"
    assert resumed["history"] == whole["history"]
    assert weights(tmp_path / "1/a") == weights(tmp_path / "2/a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"patience": 2}, "patience stops by the loss on held-out rows"), ({"dev_rows": 1}, "at least 2 rows")],
)
def test_params_that_cannot_be_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        parse_section({**PARAMS.model_dump(), **changes}, TrainParams, "train")
