"""What a team meets in a year, on a small profile under real `dvc repro`: kills, a full disk, a damaged cache, a lost
remote. Each time the next run must end as if nothing had happened, or say in one message what to do.
"""

import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from stm.stage import DISK_FULL_WORDS
from stm.cache import cache_folder, examine_cache
from stm.promote.versions import FORBIDDEN
from tests.chaos.kills import Ground, disturb, lay_ground
from tests.chaos.picture import differences, results_picture
from tests.chaos.project import Ended, warm_dvc
from tests.fault_server import FaultServer, fault_server
from tests.own_project import answer

KILLS = 20
KEY = "sk-planted-0123456789abcdef"
PICKLED = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
DISK_MEGABYTES = 48
LEFT_BYTES = 64 * 1024  # too little for a pico model, enough for dvc to speak


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with fault_server(answer=answer) as found:
        yield found


@pytest.fixture(scope="module")
def ground(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The finished project of an undisturbed run, made with a key in the environment."""
    scratch = tmp_path_factory.mktemp("chaos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", KEY)
        patch.setenv("MLFLOW_TRACKING_URI", "unset")
        patch.delenv("MLFLOW_TRACKING_URI")
        with warm_dvc(scratch) as dvc:
            yield lay_ground(dvc, scratch, server.base_url)


def written(folder: Path) -> list[Path]:
    """Every file that the pipeline wrote: results, registry, scratch, what DVC keeps, and the log of the run."""
    parts = ("data", "models", "reports", "mlruns", ".stm", ".dvc", "dvc.lock")
    found = [path for name in parts for path in [folder / name, *(folder / name).rglob("*")] if path.is_file()]
    return [*found, *folder.parent.glob("*.log")]


def test_the_key_is_sent_and_written_nowhere(ground: Ground, server: FaultServer) -> None:
    assert any(KEY in head for head in server.headers)
    files = written(ground.folder)
    assert {path.suffix for path in files} >= {".json", ".parquet", ".db", ".sqlite", ".html", ".safetensors", ".log"}
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_nothing_that_is_written_could_run_code_when_read(ground: Ground) -> None:
    own = [path for path in written(ground.folder) if ".dvc" not in path.parts]
    assert [path for path in own if path.suffix in FORBIDDEN] == []
    for path in own:
        assert not path.read_bytes().startswith(PICKLED), path
        assert not zipfile.is_zipfile(path), path  # torch.save writes a zip around a pickle


def test_ids_that_look_like_paths_leave_no_file_outside(ground: Ground) -> None:
    assert '"../../q' in (ground.folder / "reports" / "evaluation" / "merged.json").read_text(encoding="utf-8")
    assert {path.name for path in ground.folder.parent.iterdir()} == {"project", "dvc.log"}
    made = {path.name for path in ground.folder.iterdir()} - {".git", ".gitignore", ".dvcignore"}
    assert made == {
        ".dvc", ".stm", "data", "dvc.lock", "dvc.yaml", "mlruns", "models", "own", "params.yaml", "reports",
        "requirements.lock", "stages", "stm",
    }  # fmt: skip


def test_twenty_kills_end_as_if_nothing_had_happened(ground: Ground) -> None:
    tally = disturb(ground, KILLS)
    assert tally.kills == KILLS
    assert tally.tracebacks == []
    assert tally.other == []
    assert tally.endings >= 1
    assert all(text.startswith(("rwlock removed", "dvc.lock removed")) for text in tally.refusals), tally.refusals


def forget(folder: Path, *stages: str) -> None:
    """Let dvc make the results of these stages again, and take none from its cache of runs."""
    lock = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))
    for name in stages:
        for out in lock["stages"].pop(name)["outs"]:
            path = folder / out["path"]
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    shutil.rmtree(folder / ".dvc" / "cache" / "runs")


def merge_again(ground: Ground, folder: Path, *options: str) -> Ended:
    return ground.dvc.run(folder, "repro", *options, "merge")


def assert_same(ground: Ground, folder: Path) -> None:
    """The results are those of the undisturbed run."""
    found = results_picture(folder)
    assert differences({name: ground.expected[name] for name in found}, found) == []
    assert "models/merged/model.safetensors" in found


@pytest.fixture
def project(ground: Ground, tmp_path: Path) -> Path:
    """A copy of the finished project."""
    return shutil.copytree(ground.folder, tmp_path / "copy", symlinks=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of a few megabytes in memory; skips where the system lets nobody mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a small disk is refused here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_message_and_the_next_run_ends_the_same(ground: Ground, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        folder = shutil.copytree(ground.folder, disk / "project", symlinks=True)
        forget(folder, "select", "merge")
        ballast = disk / "ballast"
        with ballast.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(disk).free - LEFT_BYTES)
        full = merge_again(ground, folder)
        assert full.code != 0
        assert not full.has_traceback, full.log
        assert any(words in full.log for words in DISK_FULL_WORDS), full.log
        ballast.unlink()
        again = merge_again(ground, folder)
        assert again.code == 0, again.log
        assert_same(ground, folder)


def test_a_damaged_cached_file_is_named_and_made_anew(ground: Ground, project: Path) -> None:
    cache = cache_folder(project)
    assert examine_cache(cache).damaged == []
    model = project / "models" / "merged" / "model.safetensors"
    digest = hashlib.md5(model.read_bytes()).hexdigest()
    cached = cache / "files" / "md5" / digest[:2] / digest[2:]
    damaged = bytearray(cached.read_bytes())
    damaged[-1] ^= 1
    cached.chmod(0o644)
    cached.write_bytes(damaged)
    assert examine_cache(cache).damaged == [cached]
    cached.unlink()  # as `stm doctor --cache` says
    shutil.rmtree(project / "models" / "merged")
    assert merge_again(ground, project).code == 0
    assert_same(ground, project)
    assert examine_cache(cache).damaged == []
    assert cached.exists()


def test_a_remote_that_is_gone_stops_nothing(ground: Ground, project: Path) -> None:
    config = project / ".dvc" / "config"
    config.write_text(config.read_text().replace("../.dvc-remote", "/proc/nowhere"), encoding="utf-8")
    forget(project, "merge")
    ended = merge_again(ground, project, "--pull")
    assert ended.code == 0, ended.log
    assert_same(ground, project)
    pushed = ground.dvc.run(project, "push")
    assert pushed.code != 0
    assert not pushed.has_traceback
