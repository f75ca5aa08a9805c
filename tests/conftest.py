"""What every test starts from: one thread per process, no GPU, no MLflow store of another test in the environment."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Pico models gain nothing from a second thread, and two workers of pytest with two each wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "STM_TEST_GPU" not in os.environ:  # the suite compares bytes; tests/gpu is about GPUs
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import stm.stage  # noqa: F401, I001 - sets the garbage collector before anything heavy is imported
import torch

from stm import encode
from stm.llm.store import AnswerStore
from stm.train import loop


@pytest.fixture(autouse=True)
def _no_store_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    # mlflow.set_tracking_uri writes the variable, which would win over the params of the next test. Setting it first
    # makes the undo of the patch remove whatever was written.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "unset")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what is compared to the last digits: models compute in float32 on every chip."""
    for module in (encode, loop):
        monkeypatch.setattr(module, "compute_dtype", lambda: torch.float32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AnswerStore]:
    """An empty store of LLM answers."""
    with AnswerStore(tmp_path / "llm.sqlite") as opened:
        yield opened
