"""What `stm search` prints of passages that somebody else has written."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import stm.search
from stm.cli import app
from stm.params.base import PARAMS_FILE
from stm.search import Hit

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b1m\u202eand [bold]more"


@pytest.mark.parametrize("ending", [[], ["--json"]])
def test_no_passage_can_steer_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / PARAMS_FILE).write_text((Path(__file__).parent.parent / PARAMS_FILE).read_text(), encoding="utf-8")
    monkeypatch.setattr(stm.search, "read_embedded", lambda _: ("t", {}))
    monkeypatch.setattr(stm.search, "search", lambda *_: [Hit(1, 0.5, HOSTILE, HOSTILE, HOSTILE)])
    result = CliRunner().invoke(app, ["search", "eye", *ending])
    assert result.exit_code == 0
    assert result.output.count("[bold]more") == 3
    assert not {"\x1b", "\x07"} & set(result.output)
    if not ending:
        assert not {"\x9b", "\u202e"} & set(result.output)
