"""Input that a user may bring: each is trained on as said, or refused by one sentence before anything is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from stm.errors import DataError, ModelError
from stm.models import load_model
from stm.params.train import TrainParams
from stm.schema import ROWS, write_rows
from stm.train.batches import Example, make_batch
from stm.train.dev import hold_out
from stm.train.expert import Share, train_expert
from stm.train.step import Step
from tests.pico import MAX_TOKENS, pico_backbone
from tests.test_train import PARAMS


def rows(count: int, **changes: Callable[[int], object]) -> pl.DataFrame:
    plain: dict[str, Callable[[int], object]] = {
        "id": lambda i: f"r{i}", "anchor": lambda i: f"query {i}", "positive": lambda i: f"passage {i}",
        "negatives": lambda i: [f"other {i}"], "origins": lambda i: ["given"], "instruction": lambda i: "",
        "source": lambda i: "t", "concept": lambda i: "", "answers": lambda i: [],
    }  # fmt: skip
    return pl.DataFrame([{key: make(i) for key, make in {**plain, **changes}.items()} for i in range(count)], ROWS)


def train(folder: Path, frame: pl.DataFrame, **changes: object) -> dict[str, Any]:
    base = folder / "base"
    if not base.exists():
        pico_backbone(base)
    frame.write_parquet(folder / "rows.parquet")
    params = PARAMS.model_copy(update={"max_steps": 2, **changes})
    return train_expert(base, [Share(folder / "rows.parquet")], params, folder / "out", folder / "work", "pico")


def test_pairs_longer_than_the_model_are_cut_and_still_end_in_eos(tmp_path: Path) -> None:
    report = train(tmp_path, rows(8, positive=lambda i: f"{i} " + "long " * 200, anchor=lambda i: f"{i}" * 300))
    step = Step(load_model(tmp_path / "base"), PARAMS)
    ready = step.prepare(make_batch([Example("r", "a", "long " * 200, "long " * 300, (), "")]))
    ids = ready.inputs[0]["input_ids"][0].tolist()
    assert len(ids) == MAX_TOKENS
    assert ids[-1] == step.passes.model.tokenizer.eos_token_id
    assert report["tokens"] <= report["steps"] * 24 * MAX_TOKENS
    assert all(entry["loss"] > 0 for entry in report["history"])


@pytest.mark.parametrize("text", ["", "  \n"])
@pytest.mark.parametrize("column", ["anchor", "positive"])
def test_an_empty_text_is_refused_with_column_and_row(tmp_path: Path, column: str, text: str) -> None:
    with pytest.raises(DataError, match=rf"rows\.parquet: column '{column}' is empty in 1 row\(s\), first at row 3"):
        train(tmp_path, rows(8, **{column: lambda i: text if i == 3 else f"text {i}"}))
    assert not (tmp_path / "out").exists()


def test_one_pair_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 rows, the split has 1; add data"):
        train(tmp_path, rows(1))
    assert not (tmp_path / "out").exists()


def test_no_pairs_are_refused_where_they_would_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="would hold no rows"):
        write_rows(rows(0), tmp_path / "rows.parquet")


def test_a_batch_larger_than_the_data_is_all_of_the_data(tmp_path: Path) -> None:
    report = train(tmp_path, rows(5), batch_size=64, epochs=1, max_steps=0)
    assert (report["rows"], report["steps"]) == (5, 1)
    assert report["history"][0]["loss"] > 0


def test_a_negative_that_is_its_positive_is_refused_with_the_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 'r4': a negative equals the positive; mine the split again"):
        train(tmp_path, rows(8, negatives=lambda i: [f"passage {i}" if i == 4 else f"other {i}"]))
    assert not (tmp_path / "out").exists()


def test_a_broken_weight_stops_at_the_first_step_with_its_rows(tmp_path: Path) -> None:
    weights = pico_backbone(tmp_path / "base") / "model.safetensors"
    tensors = load_file(weights)
    name = next(key for key in sorted(tensors) if key.endswith("layers.1.mlp.down_proj.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(
        ModelError,
        match=r"the loss became nan, .* not finite of the rows r\d.*lower the learning rate",
    ):
        train(tmp_path, rows(8))
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "work").exists()


def break_token(folder: Path, text: str) -> None:
    """Make every text with the one token of `text` an embedding that is not finite."""
    base = pico_backbone(folder / "base")
    (token,) = load_model(base).tokenizer(text, add_special_tokens=False)["input_ids"]
    tensors = load_file(base / "model.safetensors")
    name = next(key for key in tensors if key.endswith("embed_tokens.weight"))
    tensors[name][token] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("column", ["anchor", "positive", "negatives"])
def test_the_rows_that_cannot_be_embedded_are_named_and_no_others(tmp_path: Path, column: str) -> None:
    break_token(tmp_path, "~")
    text = {"negatives": lambda i: ["other ~" if i in (11, 5) else f"other {i}"]}
    plain = {column: lambda i: "text ~" if i in (11, 5) else f"{column} {i}"}
    with pytest.raises(ModelError, match=r"not finite of the rows (r5, r11|r11, r5); check their texts"):
        train(tmp_path, rows(16, **(text if column == "negatives" else plain)), batch_size=16)


def test_held_out_rows_that_cannot_be_embedded_are_named(tmp_path: Path) -> None:
    data = [f"query {i}" for i in range(16)]
    examples = [Example(f"r{i}", data[i], data[i], f"passage {i}", (), "") for i in range(16)]
    _, held = hold_out(examples, 4, PARAMS.seed)
    break_token(tmp_path, "~")
    bad = held[1].id
    frame = rows(16, positive=lambda i: f"passage {i}" + (" ~" if f"r{i}" == bad else ""))
    with pytest.raises(ModelError, match=rf"the loss on held-out rows became nan, .* of the rows {bad};"):
        train(tmp_path, frame, dev_rows=4, dev_steps=1)


def test_a_negative_that_is_null_is_refused_with_the_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a negative is null in 1 row\(s\), first at row 3"):
        train(tmp_path, rows(8, negatives=lambda i: [None if i == 3 else "x"]))


def test_a_gradient_that_is_not_finite_stops_with_its_rows(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the gradient's norm became (inf|nan) on the batch of the rows r\d"):
        train(tmp_path, rows(16), temperature=1e-30)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"rank": 2}, "rank = 4, not 2"), ({"seed": 9}, "seed = 3, not 9"), ({"dev_rows": 2}, "dev_rows = 0, not 2")],
)
def test_a_checkpoint_of_other_params_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], named: str
) -> None:
    monkeypatch.setattr("stm.train.adapter.remove_directory", lambda folder: None)
    train(tmp_path, rows(8))
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=rf"was made with {named}; delete .*work to train from the start"):
        train(tmp_path, rows(8), **changes)


def test_every_prompt_of_a_pool_is_drawn_and_each_row_keeps_its_own(tmp_path: Path) -> None:
    from stm.train.batches import PromptSource, make_examples

    pool = [f"Find passages of kind {i}" for i in range(10)]
    params = TrainParams.model_validate({**PARAMS.model_dump(), "instruction_from": "pool"})
    first, again = (make_examples(rows(200), PromptSource("{instruction}: ", "", "x", pool), params) for _ in range(2))
    drawn = [example.query.split(":")[0] for example in first]
    assert set(drawn) == set(pool)
    assert max(drawn.count(text) for text in pool) < 50
    assert first == again
