"""The ground everything stands on: whole-or-nothing files, schema, tasks in BEIR layout, params, the stage shell."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field
from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from safetensors.torch import save_file

from stm.stage import guard
from stm.errors import DataError, ParamsError, STMError
from stm.files import (
    HOST,
    atomic_directory,
    atomic_file,
    read_json,
    remove_directory,
    sha256_text,
    sha256_tree,
    write_json,
    write_text,
)
from stm.models import quiet_libraries
from stm.params.base import Section, load_section
from stm.progress import track
from stm.schema import ROWS, check_rows, read_rows, write_rows
from stm.tasks import Passage, Task, cap_task, read_task, read_tasks, write_task

ROW = {
    "id": "r1", "anchor": "fever", "positive": "A high temperature.", "negatives": ["A cough."], "origins": ["given"],
    "instruction": "", "source": "test", "concept": "", "answers": [],
}  # fmt: skip


def frame(*changes: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame([{**ROW, **change} for change in changes or ({},)], schema=ROWS)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    target, folder = tmp_path / "a.txt", tmp_path / "d"
    target.write_text("old")
    folder.mkdir()
    (folder / "x").write_text("old")

    def break_off(scratch: Path) -> None:
        scratch.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), atomic_file(target) as scratch:
        break_off(scratch)
    with pytest.raises(RuntimeError), atomic_directory(folder) as scratch:
        break_off(scratch / "x")
    assert (target.read_text(), (folder / "x").read_text()) == ("old", "old")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "d"]


def test_a_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with atomic_directory(tmp_path / "d") as scratch:
            (scratch / name).touch()
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["two"]


def test_a_folder_that_cannot_be_made_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(STMError, match="cannot create"):
        write_json(tmp_path / "file" / "x.json", {})


def test_json_refuses_what_is_not_finite_and_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.json\.a\[1\] is nan"):
        write_json(tmp_path / "x.json", {"a": [1.0, float("nan")]})
    write_json(tmp_path / "x.json", {"b": 1, "a": "ä"})
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == '{\n  "a": "ä",\n  "b": 1\n}\n'
    (tmp_path / "y.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        read_json(tmp_path / "y.json")


@given(st.lists(st.text()), st.lists(st.text()))
def test_hashes_of_different_parts_differ(first: list[str], second: list[str]) -> None:
    assert (sha256_text(*first) == sha256_text(*second)) == (first == second) or "\0" in "".join(first + second)


def test_the_hash_of_a_folder_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = sha256_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    second = sha256_tree(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({first, second, sha256_tree(tmp_path)}) == 3


def test_rows_survive_a_round_trip(tmp_path: Path) -> None:
    write_rows(frame({}, {"id": "r2"}), tmp_path / "x.parquet")
    assert read_rows(tmp_path / "x.parquet").equals(frame({}, {"id": "r2"}))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (frame().drop("concept"), r"missing columns \['concept'\]"),
        (frame().with_columns(extra=pl.lit(1)), r"unknown columns \['extra'\]"),
        (frame().with_columns(id=pl.lit(1)), "'id' has type"),
        (frame({}, {"id": "r2", "anchor": " "}), "'anchor' is empty in 1 row.*row 1"),
        (frame({}, {}), "duplicates"),
        (frame({"origins": []}), "differ in length"),
        (frame({"source": None}), "'source' is null"),
    ],
)
def test_rows_of_another_form_are_refused_with_column_and_row(bad: pl.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=f"pairs.parquet: .*{message}"):
        check_rows(bad, "pairs.parquet")


def test_no_rows_and_no_file_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        write_rows(frame().clear(), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="does not exist"):
        read_rows(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataError, match="not a readable Parquet"):
        read_rows(tmp_path / "x.parquet")


def task(queries: int = 6, passages: int = 20) -> Task:
    corpus = {f"p{i}": Passage("T" if i % 2 else "", f"text {i}") for i in range(passages)}
    return Task(
        "toy", "medical", corpus, {f"q{i}": f"query {i}" for i in range(queries)},
        {f"q{i}": {f"p{i}": 1, f"p{i + 1}": 0} for i in range(queries)}, {"source": "test"},
    )  # fmt: skip


def test_tasks_survive_a_round_trip(tmp_path: Path) -> None:
    write_task(task(), tmp_path / "toy", "test")
    assert read_task(tmp_path / "toy", "test") == task()
    assert [t.name for t in read_tasks(tmp_path, "test")] == ["toy"]
    assert (Passage("T", "x").full_text(), Passage("", "x").full_text()) == ("T x", "x")


def test_caps_keep_judged_passages_and_are_the_same_twice() -> None:
    small = cap_task(task(), 3, 4, seed=1)
    unwanted = replace(task(), qrels={**task().qrels, next(iter(task().queries)): {next(iter(task().corpus)): -1}})
    assert len(cap_task(unwanted, 0, 0, seed=1).queries) == len(task().queries) - 1, "nothing to find, nothing to score"
    assert len(small.queries) == 3
    assert {p for judged in small.qrels.values() for p in judged} <= set(small.corpus)
    assert small.notes == {"source": "test", "full_queries": 6, "full_passages": 20}
    assert cap_task(task(), 3, 4, seed=1) == small
    assert cap_task(task(), 3, 10, seed=1).queries == small.queries
    assert cap_task(task(), 0, 0, seed=1).corpus == task().corpus
    one = {"q": "x"}, {"q": {"p0": 1}}
    drawn = cap_task(Task("t", "general", task(passages=40).corpus, *one), 0, 6, seed=1)
    assert list(drawn.corpus) == ["p0", "p1", "p12", "p23", "p25", "p35"], "whatever order a set has in this process"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "corpus.jsonl",
            '{"_id": "p0", "text": "x"}\n{"_id": "p0", "text": "x"}\n',
            "line 2: the id 'p0' appears twice",
        ),
        ("corpus.jsonl", "{}\n", "line 1: expected a JSON object with an '_id'"),
        ("corpus.jsonl", '{"_id": "p0"}\n', "'text' is missing"),
        ("corpus.jsonl", '{"_id": "zz", "text": "x"}\n', "name the passage 'p0'"),
        ("queries.jsonl", '{"_id": "zz", "text": "x"}\n', "name the query 'q0'"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "no qrels"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\tp0\t0.5\n", "line 2: expected"),
    ],
)
def test_broken_tasks_are_refused_with_file_and_line(tmp_path: Path, file: str, text: str, message: str) -> None:
    write_task(task(), tmp_path / "toy", "test")
    (tmp_path / "toy" / file).write_text(text)
    with pytest.raises(DataError, match=message):
        read_task(tmp_path / "toy", "test")


def test_a_task_with_bom_crlf_and_no_title_is_read(tmp_path: Path) -> None:
    write_task(task(), tmp_path / "toy", "test")
    for path in (tmp_path / "toy").rglob("*.*l*"):
        lines = path.read_text().replace('"title": "T", ', "").replace("\n", "\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert read_task(tmp_path / "toy", "test").qrels == task().qrels


def test_a_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    write_task(task(), tmp_path / "toy", "test")
    with pytest.raises(DataError, match=r"splits there: \['test'\]"):
        read_task(tmp_path / "toy", "dev")
    with pytest.raises(DataError, match="holds no tasks"):
        read_tasks(tmp_path / "toy" / "qrels", "dev")


class Toy(Section):
    """A section for the tests."""

    density: float = Field(gt=0, le=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("toy: {densty: 0.5}", "toy: no such setting: densty; there are .*density.*"),
        ("toy: {density: 2}", r"toy\.density: .*less than or equal to 1 \(given: 2\)"),
        ("other: {}", "no section 'toy'; it has other"),
        ("- 1", "holds no sections"),
        ("toy: [", "not valid YAML"),
    ],
)
def test_wrong_params_name_the_key_the_range_and_the_value(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ParamsError, match=message):
        load_section("toy", Toy, path)


def test_a_users_error_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise DataError("the file x is empty; fill it")

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert (guard(fail), guard(interrupt), guard(lambda: None)) == (1, 130, 0)
    assert capsys.readouterr().err.splitlines()[0] == "error: the file x is empty; fill it"


def test_a_lack_of_permission_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), ".stm/promotion.lock")

    assert guard(fail) == 1
    assert capsys.readouterr().err.startswith("error: no permission for .stm/promotion.lock; give yourself access")


def test_a_read_only_file_system_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), ".stm")

    assert guard(fail) == 1
    assert capsys.readouterr().err.startswith("error: .stm lies on a read-only file system; mount it writable")


@pytest.mark.parametrize("is_running", [False, True])
def test_an_interrupt_of_a_stage_is_one_line(tmp_path: Path, is_running: bool) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").touch()
    wait, body = 'print(flush=True); __import__("time").sleep(60)', "    pass"
    if is_running:
        wait, body = "", f"    {wait}"
    script = f"from stm.stage import run_stage\n{wait}\ndef main() -> None:\n{body}\nrun_stage(main)\n"
    (tmp_path / "stages" / "slow.py").write_text(script, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(
        [sys.executable, "-m", "stages.slow"], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as stage:  # fmt: skip
        assert stage.stdout is not None
        stage.stdout.readline()
        stage.send_signal(signal.SIGINT)
        shown = stage.communicate(timeout=30)[1]
    assert (stage.returncode, shown) == (130, "interrupted; run the same command again to go on\n")


@pytest.mark.parametrize(("where", "parallel"), [("cuda", "true"), ("cpu", "false")])
def test_a_stage_lets_the_device_decide_how_tokenizers_work(
    where: str, parallel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, "TOKENIZERS_PARALLELISM", "")
    del os.environ["TOKENIZERS_PARALLELISM"]
    monkeypatch.setattr("stm.models.device", lambda: torch.device(where))
    assert guard(quiet_libraries) == 0
    assert os.environ["TOKENIZERS_PARALLELISM"] == parallel


@pytest.mark.parametrize("script", ["train", "check", "mine"])
def test_stages_explain_themselves_and_refuse_to_run_elsewhere(tmp_path: Path, script: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    arguments = [] if script == "check" else ["nothing"]
    helped = subprocess.run(
        [sys.executable, "-m", f"stages.{script}", "--help"], capture_output=True, text=True, env=environment
    )
    assert helped.returncode == 0
    assert len(helped.stdout.splitlines()) > 3
    command = [sys.executable, "-m", f"stages.{script}", *arguments]
    failed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: cannot read params.yaml")
    assert "Traceback" not in failed.stderr


def test_reports_are_plain_json(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1, 2.5, None, True]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, 2.5, None, True]}


def test_scratch_of_killed_writers_goes_and_that_of_others_stays(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, alive = (tmp_path / f".out.json.{HOST}-{pid}-abc.partial" for pid in (gone.stdout.strip(), os.getppid()))
    other = tmp_path / f".other.json.{HOST}-{gone.stdout.strip()}-abc.partial"
    for path in (dead, alive, other):
        path.write_text("half")
    write_text(tmp_path / "out.json", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([alive, other, tmp_path / "out.json"])


def test_scratch_of_another_machine_on_the_same_disk_goes_when_it_is_old(tmp_path: Path) -> None:
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    young, old = (tmp_path / f".out.json.ffffff-{gone.stdout.strip()}-{kind}.partial" for kind in ("young", "old"))
    for path in (young, old):
        path.write_text("half")
    os.utime(old, (0, 0))
    write_text(tmp_path / "out.json", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([young, tmp_path / "out.json"])


def test_scratch_of_a_killed_writer_goes_before_its_parent_has_collected_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as writer:
        left = tmp_path / f".out.json.{HOST}-{writer.pid}-abc.partial"
        left.write_text("half")
        write_text(tmp_path / "out.json", "whole")
        assert left.exists(), "it is still at work"
        writer.kill()
        os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)  # ended and not collected: a zombie
        write_text(tmp_path / "out.json", "whole")
        assert not left.exists()


def test_the_old_folder_goes_only_when_the_new_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, seen = tmp_path / "d", []
    with atomic_directory(target) as scratch:
        write_text(scratch / "a.txt", "old")
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: seen.append((target / "a.txt").read_text()))
    with atomic_directory(target) as scratch:
        write_text(scratch / "a.txt", "new")
    assert set(seen) == {"new"}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_of_a_folder_have_the_mode_of_the_umask_whoever_wrote_them(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_directory(tmp_path / "d") as scratch:
            (scratch / "sub").mkdir()
            for name in ("a", "sub/.b"):
                save_file({"w": torch.zeros(2)}, scratch / name)  # for the owner alone
            (scratch / "link").symlink_to("/dev/null")
    finally:
        os.umask(before)
    found = {path.name: path.lstat().st_mode & 0o777 for path in (tmp_path / "d").rglob("*") if path.is_file()}
    assert found == {"a": mode, ".b": mode}


def test_writers_of_one_folder_do_not_trip_over_each_other(tmp_path: Path) -> None:
    target = tmp_path / "d"

    def write(text: str) -> None:
        for _ in range(40):
            with atomic_directory(target) as scratch:
                write_text(scratch / "a.txt", text)
                write_text(scratch / "b.txt", text)

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, "1234"))
    assert (target / "a.txt").read_text() == (target / "b.txt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_folder_is_whole_until_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "state.json").write_text("{}")
    monkeypatch.setattr("stm.files.shutil.rmtree", lambda *_args, **_options: None)  # killed before it began
    remove_directory(folder)
    assert not folder.exists()


def test_a_full_disk_is_a_users_error_with_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    def fill() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("cannot serialise") from error

    assert guard(fill) == 1
    assert "dvc gc" in capsys.readouterr().err

    def fail() -> None:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        guard(fail)


def test_a_log_says_each_state_of_a_loop_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stm.progress.LOG_EVERY_SECONDS", -1.0)
    assert list(track("ab", "letters", 2)) == ["a", "b"]
    lines = [line.split(" in ")[0].strip() for line in capsys.readouterr().err.splitlines()]
    assert lines == ["letters: 1/2", "letters: 2/2"]


@pytest.mark.parametrize(("seconds", "stays"), [(0.0, True), (3600.0, False)])
def test_a_bar_of_brief_work_leaves_no_line_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, seconds: float, stays: bool
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("stm.progress.Console", lambda **_: Console(file=screen, force_terminal=True, width=80))
    monkeypatch.setattr("stm.progress.BRIEF_SECONDS", seconds)
    assert list(track("ab", "letters", 2)) == ["a", "b"]
    assert "2/2" in screen.getvalue()
    is_erased = Control((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)).segment.text
    assert screen.getvalue().endswith(is_erased) is not stays


def test_a_bar_is_not_told_of_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr("stm.progress.Console", lambda **_: Console(file=io.StringIO(), force_terminal=True, width=80))
    monkeypatch.setattr("stm.progress.DRAW_EVERY_SECONDS", 3600.0)
    monkeypatch.setattr("stm.progress.Progress.update", lambda self, task, completed, **_: told.append(completed))
    list(track(range(100), "rows", 100))
    assert told == [100]
