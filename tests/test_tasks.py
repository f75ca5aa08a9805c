"""Task folders in BEIR layout: what is read whatever its wrapping, what is refused, and a corpus that stays on disk."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stm.errors import DataError
from stm.evaluate.corpus import BLOCK, DiskCorpus
from stm.evaluate.lexical import LexicalModel
from stm.evaluate.run import run_task
from stm.evaluate.tasks import SPLIT, SUBSET, LocalTask
from stm.tasks import Passage, Task, read_task

CORPUS: list[dict[str, Any]] = [
    {"_id": "p1", "title": "T", "text": "the heart"}, {"_id": "p2", "text": "the lung"},
    {"_id": 3, "title": None, "text": "the eye"},
]  # fmt: skip
QUERIES: list[dict[str, Any]] = [{"_id": "q1", "text": "heart"}, {"_id": "q2", "text": "lung"}]
QRELS = "query-id\tcorpus-id\tscore\nq1\tp1\t2\nq1\t3\t0\nq2\tp2\t1\n"


def write(
    folder: Path, corpus: Any = None, queries: Any = None, qrels: str = QRELS, bom: str = "", end: str = "\n"
) -> Path:
    """A BEIR folder; `bom` and `end` are how its files begin and how their lines end."""
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", corpus or CORPUS), ("queries", queries or QUERIES)):
        text = bom + "".join(json.dumps(row) + end for row in rows)
        (folder / f"{name}.jsonl").write_bytes(text.encode())
    (folder / "qrels" / "test.tsv").write_bytes((bom + qrels.replace("\n", end)).encode())
    return folder


@pytest.mark.parametrize(("bom", "end"), [("", "\n"), ("\ufeff", "\r\n"), ("\ufeff", "\n\n")])
@pytest.mark.parametrize("hold", [dict, DiskCorpus])
def test_bom_crlf_blank_lines_and_missing_titles_are_read(tmp_path: Path, bom: str, end: str, hold: Any) -> None:
    task = read_task(write(tmp_path / "t", bom=bom, end=end), "test", hold=hold)
    assert dict(task.corpus) == {
        "p1": Passage("T", "the heart"),
        "p2": Passage("", "the lung"),
        "3": Passage("", "the eye"),
    }
    assert dict(task.queries) == {"q1": "heart", "q2": "lung"}
    assert task.qrels == {"q1": {"p1": 2, "3": 0}, "q2": {"p2": 1}}


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"corpus": [*CORPUS, {"_id": "p1", "text": "x"}]}, r"corpus\.jsonl, line 4: the id 'p1' appears twice"),
    ({"queries": [*QUERIES, {"_id": "q2", "text": "x"}]}, r"queries\.jsonl, line 3: the id 'q2' appears twice"),
    ({"qrels": QRELS + "q9\tp1\t1\n"}, r"the qrels name the query 'q9', which queries\.jsonl lacks"),
    ({"qrels": QRELS + "q1\tp9\t1\n"}, r"the qrels of query 'q1' name the passage 'p9', which corpus\.jsonl lacks"),
    ({"qrels": QRELS + "q2\tp1\t0.5\n"}, r"test\.tsv, line 5: expected query-id, corpus-id and a whole-number score"),
    ({"qrels": QRELS + "q2\tp1\n"}, r"test\.tsv, line 5: expected query-id"),
    ({"qrels": QRELS + "q2 0 p1 1\n"}, r"test\.tsv, line 5: expected query-id"),
    ({"qrels": QRELS + "q1\tp1\t1\n"}, r"test\.tsv, line 5: 'p1' is judged twice for 'q1', with two scores"),
    ({"qrels": "q1\tp1\t2\n"}, r"test\.tsv has no header"),
    ({"qrels": "q1 0 p1 2\n"}, r"test\.tsv has the four columns of TREC; .*awk"),
    ({"qrels": "query-id\tcorpus-id\tscore\n"}, r"has no qrels"),
    ({"corpus": [{"_id": "p1", "title": "no text"}]}, r"corpus\.jsonl, line 1: 'text' is missing"),
    ({"corpus": [{"id": "p1", "text": "x"}]}, r"corpus\.jsonl, line 1: expected a JSON object with an '_id'"),
    ({"corpus": ["text"]}, r"corpus\.jsonl, line 1: expected a JSON object"),
]


@pytest.mark.parametrize(("changes", "message"), FAULTS)
@pytest.mark.parametrize("hold", [dict, DiskCorpus])
def test_faults_are_named_with_file_and_line(tmp_path: Path, changes: dict[str, Any], message: str, hold: Any) -> None:
    with pytest.raises(DataError, match=message):
        read_task(write(tmp_path / "t", **changes), "test", hold=hold)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_files_that_are_missing_or_not_utf8_are_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "t")
    (folder / name).write_bytes((folder / name).read_bytes() + '{"_id": "x", "text": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read_task(folder, "test")
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"cannot read .*{name.rsplit('/', 1)[-1]}"):
        read_task(folder, "test")


@pytest.mark.parametrize("meta", ["[]", '"x"', '{"notes": ["x"]}', '{"notes": "x"}'])
def test_a_task_json_of_another_form_is_named(tmp_path: Path, meta: str) -> None:
    folder = write(tmp_path / "t")
    (folder / "task.json").write_text(meta)
    with pytest.raises(DataError, match=r"task\.json: expected a JSON object, and one as its 'notes'; correct it"):
        read_task(folder, "test")


def test_a_task_json_without_notes_has_none(tmp_path: Path) -> None:
    folder = write(tmp_path / "t")
    (folder / "task.json").write_text('{"notes": null}')
    task = read_task(folder, "test")
    assert (task.notes, task.ignores_identical_ids) == ({}, False)


def test_json_that_is_nested_too_deep_is_named_with_its_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "t")
    with (folder / "corpus.jsonl").open("a") as stream:
        stream.write('{"_id": "z", "text": "x", "more": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 4: not JSON"):
        read_task(folder, "test")


def test_a_judgement_that_stands_twice_is_one(tmp_path: Path) -> None:
    assert read_task(write(tmp_path / "t", qrels=QRELS + "q1\tp1\t2\n"), "test").qrels["q1"] == {"p1": 2, "3": 0}


def test_a_corpus_on_disk_is_the_mapping_that_was_given() -> None:
    given = {f"p{i}": Passage(f"t{i % 3}", f"text {i} é") for i in range(2 * BLOCK + 7)}
    held = DiskCorpus(iter(given.items()))
    assert dict(held) == given
    assert len(held) == len(given)
    assert held["p7"] == given["p7"]
    assert "p7" in held
    assert "q" not in held
    with pytest.raises(KeyError):
        held["q"]
    assert dict(DiskCorpus(iter([]))) == {}


def test_passages_of_a_corpus_on_disk_are_not_held() -> None:
    """What an evaluation keeps of a corpus of 20 MB is ids and positions, a tenth of it."""
    import tracemalloc

    tracemalloc.start()
    held = DiskCorpus((f"p{i}", Passage("", f"{i} " * 200)) for i in range(20_000))
    current, peak = tracemalloc.get_traced_memory()
    texts = sum(len(passage.text) for passage in held.values())
    tracemalloc.stop()
    assert texts > 20_000_000
    assert current < 0.2 * texts
    assert peak < 0.3 * texts


def test_both_ways_to_hold_a_corpus_give_the_same_scores(tmp_path: Path) -> None:
    folder = write(tmp_path / "t")
    tasks: list[Task] = [read_task(folder, "test"), read_task(folder, "test", hold=DiskCorpus)]
    first, second = (run_task(LexicalModel("bm25"), LocalTask(task, "1"))[0][SPLIT, SUBSET] for task in tasks)
    assert first.per_query == second.per_query
    assert first.top == second.top
    assert first.ndcg_at_10 == 1.0


def test_the_command_for_qrels_of_trec_makes_those_of_beir(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", qrels="q1 0 p1 2\nq1\t0\t3 0\nq2 0 p2 1\n")
    with pytest.raises(DataError, match="has the four columns of TREC") as caught:
        read_task(folder, "test")
    path = folder / "qrels/test.tsv"
    command = str(caught.value).split("as this writes them: ")[1].replace("FILE", "trec.txt")
    path.rename(tmp_path / "trec.txt")
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    assert read_task(folder, "test").qrels == {"q1": {"p1": 2, "3": 0}, "q2": {"p2": 1}}


def test_half_a_character_in_a_corpus_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "t")
    with (folder / "corpus.jsonl").open("ab") as stream:
        stream.write(b'{"_id": "z", "text": "cut \\ud83d"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl, line \d+: holds half a character"):
        read_task(folder, "test")


def test_reading_a_folder_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stm.progress.LOG_EVERY_SECONDS", -1.0)
    folder = write(tmp_path / "mine", bom="\ufeff", end="\n\n")
    read_task(folder, "test")
    said = [line.split(" in ")[0].strip() for line in capsys.readouterr().err.splitlines()]
    for name in ("corpus", "queries"):
        size = (folder / f"{name}.jsonl").stat().st_size
        assert said.count(f"bytes of mine/{name}.jsonl: {size}/{size}") == 1
