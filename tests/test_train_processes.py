"""Two processes train what one trains, through the stage's own launch; and what a launch refuses."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from stages import train as stage
from stages import train_all as baseline
from stm.errors import ModelError, ParamsError
from stm.files import read_json
from stm.models import load_model
from stm.prompts import read_prompts
from stm.schema import ROWS, write_rows
from stm.train.adapter import train_adapter
from stm.train.batches import make_batch
from stm.train.checkpoint import read_checkpoint
from stm.train.processes import Processes, join_processes, launch, wanted_processes
from stm.train.step import Step
from tests.closure import ROOT
from tests.pico import pico_backbone
from tests.test_train import PARAMS, examples, note


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pico_backbone(Path("models/warm_up"))
    rest = {"origins": ["given"], "instruction": "", "source": "t", "concept": "", "answers": []}
    rows = [
        {"id": e.id, "anchor": e.anchor, "positive": e.positive, "negatives": list(e.negatives), **rest}
        for e in examples(24)
    ]
    write_rows(pl.DataFrame(rows, schema=ROWS), Path("data/mined/a.parquet"))
    Path("data/instructions/seed").mkdir(parents=True)
    Path("data/instructions/seed/a.json").write_text('{"instruction": "Find it", "pool": []}')
    row = {"split": "a", "negatives": "mined", "instruction": "seed"}
    params = PARAMS.model_copy(update={"chunk_tokens": 64, "max_steps": 4, "dev_rows": 4, "dev_steps": 2})
    tables = {"splits": ["a"], "experts": {"a-ft": row, "a-two": row}, "train": params.model_dump()}
    Path("params.yaml").write_text(yaml.safe_dump(tables))
    return tmp_path


def test_an_expert_of_a_pool_is_trained_with_all_of_it_and_asked_with_the_seed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[str] = set()
    run = Step.run
    monkeypatch.setattr(Step, "run", lambda self, ready: run(self, note(seen, ready, ready.batch.texts)))
    Path("data/instructions/pool").mkdir()
    Path("data/instructions/pool/a.json").write_text('{"instruction": "Find it", "pool": ["One way", "Another way"]}')
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["experts"]["a-pool"] = {"split": "a", "negatives": "mined", "instruction": "pool"}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    stage.main("a-pool")
    queries = [text for text in seen if "Query: " in text]
    assert {text.split("\n")[0] for text in queries} == {"One way", "Another way"}
    assert read_prompts("models/experts/a-pool").query == "Find it\nQuery: "


def test_a_searched_instruction_is_trained_with_where_rows_have_their_own(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("data/instructions/searched").mkdir()
    Path("data/instructions/searched/a.json").write_text('{"instruction": "The winner", "pool": []}')
    rows = pl.read_parquet("data/mined/a.parquet").with_columns(instruction=pl.lit("Its own"))
    write_rows(rows, Path("data/mined/a.parquet"))
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["train"]["instruction_from"] = "row"
    params["experts"]["a-po"] = {"split": "a", "negatives": "mined", "instruction": "searched"}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    run = Step.run
    for expert, instruction in (("a-ft", "Its own"), ("a-po", "The winner")):
        seen: set[str] = set()
        monkeypatch.setattr(Step, "run", lambda self, ready, seen=seen: run(self, note(seen, ready, ready.batch.texts)))
        stage.main(expert)
        assert {text.split("\n")[0] for text in seen if "Query: " in text} == {instruction}


@pytest.mark.parametrize(("size_a", "size_b", "expected"), [(99, 14, [2, 1, 3]), (9, 7, [1, 1, 2])])
def test_the_baseline_gets_the_steps_of_the_experts_in_sum(
    size_a: int, size_b: int, expected: list[int], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pl.read_parquet("data/mined/a.parquet")
    write_rows(rows.head(size_a), Path("data/mined/a.parquet"))
    write_rows(rows.tail(size_b), Path("data/mined/b.parquet"))
    Path("data/instructions/seed/b.json").write_text('{"instruction": "Find it", "pool": []}')
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["splits"] = ["a", "b"]
    params["experts"] |= {"b-ft": {**params["experts"]["a-ft"], "split": "b"}}
    params["train"] |= {"epochs": 1, "max_steps": 2, "warmup_steps": 3}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    for expert in ("a-ft", "b-ft"):
        stage.main(expert)
    assert "b-ft: its 1 steps are all within warmup_steps (3)" in capsys.readouterr().err
    baseline.main()
    steps = [read_json(f"reports/{name}.json")["steps"] for name in ("train/a-ft", "train/b-ft", "train_all")]
    assert steps == expected


def test_processes_that_disagree_say_what_about(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(values: list[object], value: object) -> None:
        values[:] = [value, 3]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    Processes(0, 2).agree("the step", 3)
    with pytest.raises(ModelError, match=r"the step differs between the processes \(0: 4, 1: 3\)"):
        Processes(0, 2).agree("the step", 4)
    Processes().agree("alone", 4)


def test_processes_agree_on_the_inputs_and_on_the_step_before_they_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, object]] = []
    monkeypatch.setattr(Processes, "agree", lambda self, what, value: asked.append((what, value)))
    base, (out, work) = pico_backbone(tmp_path / "base"), (tmp_path / "out", tmp_path / "work")
    train_adapter(base, [examples()], read_prompts(base), PARAMS, out, work, "a")
    (inputs, value), step = asked
    assert (inputs, step) == ("a: base, rows or finished sibling", ("a: the step to go on from", 0))
    assert value == (*(read_json(out / "training.json")["origin"][key] for key in ("base", "rows")), "none")
    asked.clear()
    train_adapter(base, [examples()], read_prompts(base), PARAMS, tmp_path / "other", work, "b")
    assert asked == [("b: base, rows or finished sibling", (*value[:2], "out"))]


def test_two_processes_end_in_the_adapter_of_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.main("a-ft")
    one = load_file("models/experts/a-ft/adapter_model.safetensors")
    Path("models/experts/a-ft").rename("models/one")  # a finished sibling would be taken over
    monkeypatch.setenv("STM_PROCESSES", "2")
    stage.main("a-two")
    two = load_file("models/experts/a-two/adapter_model.safetensors")
    alone, together = (read_json(f"reports/train/{name}.json") for name in ("a-ft", "a-two"))
    for first, second in zip(alone["history"], together["history"], strict=True):
        assert second == pytest.approx(first, rel=1e-3)
    assert together["tokens"] == alone["tokens"]
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], rtol=1e-2, atol=1e-4) for name in one)
    assert any(tensor.abs().max() > 1e-3 for name, tensor in two.items() if "lora_B" in name)
    assert not Path(".stm/train/a-two").exists()


def test_processes_end_with_a_launcher_that_is_killed(project: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["train"] |= {"epochs": 1000, "max_steps": 0, "checkpoint_steps": 1}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    launcher = subprocess.Popen(
        [sys.executable, "-m", "stages.train", "a-two"], env={**os.environ, "STM_PROCESSES": "2"}
    )
    deadline = time.monotonic() + 120
    while read_checkpoint(Path(".stm/train/a-two")) is None:
        assert launcher.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = psutil.Process(launcher.pid).children(recursive=True)
    assert len(workers) == 2
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for worker in alive:
        worker.kill()
    assert not alive


def test_a_process_that_fails_is_one_error_without_a_result(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STM_PROCESSES", "2")
    with pytest.raises(ModelError, match="failed in one of 2 processes"):
        launch("stages.train", "nobody")
    assert not Path("models/experts").exists()


def test_the_number_of_processes_is_that_of_the_variable_or_of_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STM_PROCESSES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert wanted_processes() == 4
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert wanted_processes() == 1
    assert launch("stages.train", "x") is False
    for text in ("1", "3"):
        monkeypatch.setenv("STM_PROCESSES", text)
        assert wanted_processes() == int(text)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert launch("stages.train", "x") is False, "a launched process launches none"
    for text in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("STM_PROCESSES", text)
        with pytest.raises(ParamsError, match="STM_PROCESSES"):
            wanted_processes()


@pytest.mark.parametrize(("count", "most"), [(2, 65536), (8, 65536), (8, 300), (1, 300)])
def test_every_process_gets_its_share_of_a_batch(tmp_path: Path, count: int, most: int) -> None:
    model = load_model(pico_backbone(tmp_path / "base"))
    params = PARAMS.model_copy(update={"chunk_tokens": most})
    ready = [Step(model, params, Processes(rank, count)).prepare(make_batch(examples(32))) for rank in range(count)]
    shares = [sum(int(inputs["attention_mask"].sum()) for inputs in one.inputs) for one in ready]  # type: ignore[misc]
    assert sum(shares) == ready[0].tokens
    assert min(shares) > 0
    assert max(shares) < 2 * ready[0].tokens / count
    assert sorted(index for one in ready for chunk in one.chunks for index in chunk.tolist()) == list(
        range(len(ready[0].batch.texts))
    )
    assert all(inputs["input_ids"].numel() <= most for one in ready for inputs in one.inputs)


def test_gpus_that_cannot_talk_directly_are_told_not_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "STM_PROCESSES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("accelerate.utils.check_cuda_p2p_ib_support", lambda: False)
    seen: dict[str, str] = {}
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: lambda *__: seen.update(os.environ))
    assert launch("stages.train", "x")
    assert (seen["NCCL_P2P_DISABLE"], seen["NCCL_IB_DISABLE"]) == ("1", "1")


def test_alone_nothing_is_exchanged() -> None:
    assert "WORLD_SIZE" not in os.environ
    alone = join_processes()
    assert alone == Processes(0, 1)
    parameter = SimpleNamespace(grad=None)
    alone.add_up_gradients([parameter])  # type: ignore[list-item]
    assert parameter.grad is None
    assert torch.equal(alone.add_up(torch.ones(2)), torch.ones(2))
