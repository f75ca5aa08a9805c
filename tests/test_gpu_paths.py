"""What only a GPU runs, on one that is not there: operands lie together, and nothing makes the processor wait."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.closure import ROOT
from tests.gpu.check_gpu import PACKED

COMPILER = os.environ.get("CXX", "g++")
TORCH = Path(torch.__file__).parent

pytestmark = [
    pytest.mark.skipif(not shutil.which(COMPILER), reason="a GPU is imagined by a library that has to be compiled"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="torch's CUDA build asks for a GPU by ways of its own"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    library = tmp_path_factory.mktemp("gpu") / "imagined.so"
    subprocess.run(
        [COMPILER, "-std=c++20", "-shared", "-fPIC", ROOT / "tests/gpu/imagined.cpp", "-o", library,
         f"-I{TORCH}/include", f"-L{TORCH}/lib", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{TORCH}/lib"],
        check=True,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.imagine"], cwd=ROOT, env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("family", PACKED)
@pytest.mark.parametrize("job", ["train", "train cached", "encode"])
def test_a_gpu_takes_packed_texts_and_multiplies_in_bfloat16(found: dict[str, Any], family: str, job: str) -> None:
    seen = found[f"{family} torch.bfloat16"][job]
    assert seen["devices"] == ["cuda:0"]
    assert seen["packed"]
    assert seen["products"] == ["bfloat16"]
    assert seen["attention"] == ["_varlen_attn", "_varlen_attn_backward"][: 1 if job == "encode" else 2]
    assert seen.get("chunks", 2) > 1


@pytest.mark.parametrize("job", ["train", "train cached", "encode"])
def test_a_gpu_without_bfloat16_takes_padded_texts_in_float32(found: dict[str, Any], job: str) -> None:
    seen = found["llama torch.float32"][job]
    assert seen["devices"] == ["cuda:0"]
    assert not seen["packed"]
    assert seen["products"] == ["float32"]


def test_experts_are_mixed_where_the_model_lies(found: dict[str, Any]) -> None:
    assert found["merge"]["devices"] == ["cuda:0"]
