"""The warm-up ends in a plain folder that embeds as the backbone with its adapter does."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stm.errors import ModelError
from stm.files import read_json, sha256_tree
from stm.models import load_model
from stm.prompts import read_prompts
from stm.schema import ROWS, write_rows
from stm.train.step import Step
from stm.warm_up import fold_adapter, inspect_backbone, sample_texts, warm_up
from tests.pico import pico_adapter, pico_backbone
from tests.test_train import PARAMS

TEXTS = ["fever", "a long text about fevers"]


def test_folding_equals_the_adapter_at_run_time(tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base")
    adapter = pico_adapter(base, tmp_path / "adapter")
    fold_adapter(adapter, base, tmp_path / "folded")
    folded = load_model(tmp_path / "folded")
    assert np.abs(folded.encode(TEXTS) - load_model(adapter).encode(TEXTS)).max() < 1e-6
    assert np.abs(folded.encode(TEXTS) - load_model(base).encode(TEXTS)).max() > 1e-4
    assert read_json(tmp_path / "folded" / "config.json")["is_causal"] is False
    assert read_prompts(tmp_path / "folded") == read_prompts(base)


def write_pairs(path: Path) -> None:
    row = {"negatives": [], "origins": [], "instruction": "", "source": "t", "concept": "", "answers": []}
    rows = [{"id": f"r{i}", "anchor": f"query {i}", "positive": f"passage {i}", **row} for i in range(16)]
    write_rows(pl.DataFrame(rows, schema=ROWS), path)


def test_what_was_trained_is_kept_where_folding_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, rows, out = pico_backbone(tmp_path / "base"), tmp_path / "rows.parquet", tmp_path / "out"
    write_pairs(rows)

    def fail(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as full_disk:
        full_disk.setattr("stm.warm_up.fold_adapter", fail)
        with pytest.raises(OSError, match="no space"):
            warm_up(base, rows, PARAMS, out, tmp_path / "work")
    monkeypatch.setattr("stm.train.step.Step.run", lambda self, batch: pytest.fail("trained again"))
    report = warm_up(base, rows, PARAMS, out, tmp_path / "work")
    assert report["steps"] == 4
    assert "same_as" not in report
    assert np.abs(load_model(out).encode(TEXTS) - load_model(base).encode(TEXTS)).max() > 1e-4


def test_a_warm_up_that_must_learn_and_did_not_ends_the_run_and_need_not_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, rows, out, run = pico_backbone(tmp_path / "base"), tmp_path / "rows.parquet", tmp_path / "out", Step.run
    write_pairs(rows)
    strict = PARAMS.model_copy(update={"must_learn": True})
    with monkeypatch.context() as stuck:
        stuck.setattr(Step, "run", lambda self, ready: (run(self, ready)[0] * 0 + ready.chance, 1))
        with pytest.raises(ModelError, match=r"warm_up: the loss ended at chance .* set must_learn: false"):
            warm_up(base, rows, strict, out, tmp_path / "work")
    assert not out.exists()
    assert "ended at chance" not in capsys.readouterr().err, "the error says it once"
    monkeypatch.setattr(Step, "run", lambda self, batch: pytest.fail("trained again"))
    with pytest.raises(ModelError, match="ended at chance"):
        warm_up(base, rows, strict, out, tmp_path / "work")
    assert "ended at chance" in warm_up(base, rows, PARAMS, out, tmp_path / "work")["unlearned"]
    assert out.exists()


def test_texts_are_looked_at_with_their_prompts(tmp_path: Path) -> None:
    model = load_model(pico_backbone(tmp_path / "base"))
    model.prompts = {"query": "q: ", "document": "d: "}
    write_pairs(tmp_path / "rows.parquet")
    texts = sample_texts(model, pl.read_parquet(tmp_path / "rows.parquet"))
    assert (texts[0], texts[-1]) == ("q: query 0", "d: passage 15")


def test_the_warm_up_writes_the_same_bytes_twice_and_no_path(tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base")
    write_pairs(tmp_path / "rows.parquet")
    for name in ("a", "b"):
        report = warm_up(base, tmp_path / "rows.parquet", PARAMS, tmp_path / name, tmp_path / f"work-{name}")
        assert report["steps"] == 4
        assert report["massive"] == {"tokens_per_text": 0, "first": 0, "pooled": 0}
        assert "unsteady" not in report
        assert report["cut"] == 0
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path / "a").rglob("*.json"))


def test_passages_longer_than_the_model_takes_are_said_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = pico_backbone(tmp_path / "base")
    write_pairs(tmp_path / "rows.parquet")
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    long = rows.with_columns(positive=pl.when(pl.int_range(16) < 4).then(pl.lit("x" * 99)).otherwise("positive"))
    write_rows(long, tmp_path / "rows.parquet")
    assert inspect_backbone(base, tmp_path / "rows.parquet")["cut"] == 0.25
    assert "25% of the passages are longer than the 48 tokens" in capsys.readouterr().err
