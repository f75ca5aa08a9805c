"""What `stm search` prints of passages that somebody else has written."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stm.search
from stm.cli import app
from stm.errors import RegistryError
from stm.params.base import PARAMS_FILE
from stm.promote.registry import Version
from stm.search import Hit, champion_folder
from tests.registry_project import pico

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b1m\u202eand [bold]more"


@pytest.mark.parametrize("ending", [[], ["--json"]])
def test_no_passage_can_steer_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / PARAMS_FILE).write_text((Path(__file__).parent.parent / PARAMS_FILE).read_text(), encoding="utf-8")
    monkeypatch.setattr(stm.search, "read_task_corpus", lambda _: {})
    monkeypatch.setattr(stm.search, "search", lambda *_: [Hit(1, 0.5, HOSTILE, HOSTILE, HOSTILE)])
    result = CliRunner().invoke(app, ["search", "eye", *ending])
    assert result.exit_code == 0
    assert result.output.count("[bold]more") == 3
    assert not {"\x1b", "\x07"} & set(result.output)
    if not ending:
        assert not {"\x9b", "\u202e"} & set(result.output)


def test_ids_and_texts_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / PARAMS_FILE).write_text((Path(__file__).parent.parent / PARAMS_FILE).read_text(), encoding="utf-8")
    monkeypatch.setattr(stm.search, "read_task_corpus", lambda _: {})
    hit = Hit(1, 0.5, "chr1:100:A:T", "locus :a: [b]x[/b]", "a 1:100:1 dilution")
    monkeypatch.setattr(stm.search, "search", lambda *_: [hit])
    result = CliRunner().invoke(app, ["search", "eye"])
    assert all(text in result.output for text in (hit.passage_id, hit.title, hit.text))


def test_a_champion_whose_files_are_gone_is_no_folder_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    version = Version(3, datetime.now(UTC), "run", (), {"model": "abc"})
    inner = "model.sentence_transformer"

    def serve(lost: str) -> None:
        """Have the store give what it has, as MLflow does, without the files that match."""
        ignored = shutil.ignore_patterns(lost)
        monkeypatch.setattr(
            "mlflow.artifacts.download_artifacts",
            lambda _, dst_path: shutil.copytree(pico(0), Path(dst_path) / inner, ignore=ignored),
        )

    left = tmp_path / ".stm" / "models" / "abc" / inner
    for lost in ("*", "*.safetensors"):
        for poisoned in (False, True):  # as an earlier release left it
            if poisoned:
                shutil.copytree(pico(0), left, ignore=shutil.ignore_patterns(lost))
            serve(lost)
            with pytest.raises(RegistryError, match=r"version 3 cannot be downloaded: .*not in the artifact store"):
                champion_folder(version, "retriever")
            assert left.exists() == poisoned
            shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(pico(0), left, ignore=shutil.ignore_patterns("*.safetensors"))
    serve("")
    assert (champion_folder(version, "retriever") / "model.safetensors").exists()
