"""Trying a retriever: corpora, the cache, hits."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from stm.encode import Encoder
from stm.errors import DataError
from stm.evaluate.score import evaluate_folder
from stm.models import load_model
from stm.params.evaluate import EvaluateParams, ModelEntry
from stm.search import Columns, read_corpus, read_task_corpus, search
from stm.tasks import Passage, Task, write_task
from tests.registry_project import pico

CORPUS = {
    "a": Passage("Retina", "The light-sensitive layer of the eye."),
    "b/'\"🫀": Passage("", "The heart pumps blood."),
    "c": Passage("Skin", "The outer covering of the body."),
}


def task(name: str, domain: str) -> Task:
    return Task(name, domain, CORPUS, {"q": "eye layer"}, {"q": {"a": 1}})  # type: ignore[arg-type]


def test_hits_are_the_exact_ranking_best_first() -> None:
    hits = search(pico(), CORPUS, "light in the eye", 2, 0)
    encoder = Encoder(load_model(pico()))
    texts = [passage.full_text() for passage in CORPUS.values()]
    scores = (encoder.encode_queries(["light in the eye"]) @ encoder.encode_passages(texts).T)[0]
    best = [list(CORPUS)[index] for index in np.argsort(-scores)[:2]]
    assert [hit.passage_id for hit in hits] == best
    assert [hit.position for hit in hits] == [1, 2]
    assert hits[0].score >= hits[1].score
    assert hits[0].text == CORPUS[best[0]].text


def test_more_hits_than_passages_gives_all_passages() -> None:
    assert len(search(pico(), CORPUS, "x", 50, 0)) == 3


def test_a_passage_is_encoded_once_per_model_by_the_evaluation_or_by_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_task(task("eyes", "medical"), "tasks/eyes", "test")
    entry, params = ModelEntry(path=str(pico()), role="merged"), EvaluateParams(batch_tokens=0, store_megabytes=9)
    evaluate_folder("merged", pico(), entry, params, "tasks", [])
    seen: list[str] = []
    encode = Encoder.encode

    def remember(self: Encoder, texts: Sequence[str], *rest: str) -> Any:
        seen.extend(texts)
        return encode(self, texts, *rest)

    monkeypatch.setattr(Encoder, "encode", remember)
    first = search(pico(), CORPUS, "heart", 9, 9)
    assert seen == ["heart"]
    assert search(pico(), {**CORPUS, "d": Passage("", "new")}, "heart", 9, 9) != first
    assert seen == ["heart", "new", "heart"]
    assert search(pico(), CORPUS, "heart", 9, 0) == first
    search(pico(1), CORPUS, "heart", 9, 9)
    assert len(seen) == 3 + 4 + 4


def test_a_search_goes_on_where_nothing_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".stm").touch()  # no folder can be made there, as in a checkout that is to be read only
    expected = search(pico(), CORPUS, "eye", 2, 0)
    assert search(pico(), CORPUS, "eye", 2, 9) == expected
    assert "note: searching without the embedding store .stm/embeddings/" in capsys.readouterr().err


def test_an_empty_query_is_an_error() -> None:
    with pytest.raises(DataError, match="query is empty"):
        search(pico(), CORPUS, "  ", 3, 0)


def test_corpora_of_lines_and_of_json_lines(tmp_path: Path) -> None:
    lines = tmp_path / "notes.txt"
    lines.write_text("first passage\n\n  second 🫀 passage \n", encoding="utf-8")
    assert read_corpus(lines) == {"1": Passage("", "first passage"), "3": Passage("", "second 🫀 passage")}
    rows = tmp_path / "corpus.jsonl"
    rows.write_text('{"_id": 7, "title": null, "text": "x"}\n{"text": "y"}\n', encoding="utf-8")
    assert read_corpus(rows) == {"7": Passage("", "x"), "2": Passage("", "y")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no passages"), ("{not json", "line 1: not JSON"), ("[1]", "line 1: expected"),
        ('{"text": 3}', "line 1: 'text' is 3, which is no text"), ('{"body": "x"}', "line 1 has no column 'text'"),
        ('{"text": "a \\ud83d b"}', "line 1: holds half a character"),
        ('{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}', "appears twice"),
    ],
)  # fmt: skip
def test_bad_corpora_are_named_with_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_corpus(path)
    assert str(path) in str(caught.value)


def test_texts_may_hold_ends_of_lines_that_json_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a", "text": "one\u2028two\x85three"}\r\n{"_id": "b", "text": "four"}\n', newline="")
    assert [passage.text for passage in read_corpus(path).values()] == ["one\u2028two\x85three", "four"]


def test_a_missing_or_binary_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.txt: No such file"):
        read_corpus(tmp_path / "none.txt")
    (tmp_path / "image.txt").write_bytes(b"\xfc\x00\n")
    with pytest.raises(DataError, match=r"image\.txt, line 1: not UTF-8"):
        read_corpus(tmp_path / "image.txt")


def test_corpora_are_tables_and_gzipped_too(tmp_path: Path) -> None:
    table = pl.DataFrame({"_id": ["x", "y"], "title": [None, "Skin"], "text": ["one", "two\nlines"]})
    table.write_csv(tmp_path / "a.csv")
    table.write_parquet(tmp_path / "a.parquet")
    table.write_ndjson(tmp_path / "a.jsonl")
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    for path in sorted(tmp_path.iterdir()):
        assert read_corpus(path) == {"x": Passage("", "one"), "y": Passage("Skin", "two\nlines")}, path


@pytest.mark.parametrize("values", [[["one", "two"]], [{"a": 1}]])
def test_a_column_of_lists_or_records_is_no_text(tmp_path: Path, values: list[object]) -> None:
    pl.DataFrame({"text": values}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: the column 'text' holds (List|Struct)\(.*which is no text"):
        read_corpus(tmp_path / "a.parquet")


def test_columns_of_other_names_are_taken_and_must_be_there(tmp_path: Path) -> None:
    table = pl.DataFrame({"pmid": [0, 1], "name": ["Skin", None], "abstract": ["one", "two"]})
    table.write_csv(tmp_path / "a.csv")
    table.write_ndjson(tmp_path / "a.jsonl")
    for path in sorted(tmp_path.iterdir()):
        found = read_corpus(path, Columns("abstract", "name", "pmid"))
        assert found == {"0": Passage("Skin", "one"), "1": Passage("", "two")}, path
        with pytest.raises(DataError, match=r"has no column 'id_'; its columns are abstract, name, pmid"):
            read_corpus(path, Columns("abstract", key="id_"))


def test_rows_without_text_are_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"_id": "a", "text": ""}\n{"id": "b", "text": "x"}\n{"text": null}\n')
    assert read_corpus(tmp_path) == {"b": Passage("", "x")}, "of a BEIR folder"
    assert f"2 rows of {tmp_path} have no text and are left out" in capsys.readouterr().err


def test_a_table_without_texts_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,passage\n1,a passage\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv has no column 'text'; its columns are id, passage"):
        read_corpus(tmp_path / "a.csv")


def test_the_corpus_is_that_of_a_medical_task_unless_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no project in this folder; run from the project's root"):
        read_task_corpus(tasks=tmp_path)
    Path("params.yaml").touch()
    with pytest.raises(DataError, match="holds no corpus; run `dvc repro prepare`"):
        read_task_corpus(tasks=tmp_path)
    for name, domain in (("a-gen", "general"), ("b-med", "medical"), ("c-med", "medical")):
        corpus = {**CORPUS, name: Passage("", "its own")}
        write_task(replace(task(name, domain), corpus=corpus), tmp_path / name, "test")
    assert read_task_corpus(tasks=tmp_path) == {**CORPUS, "b-med": Passage("", "its own")}
    assert read_task_corpus("a-gen", tmp_path) == {**CORPUS, "a-gen": Passage("", "its own")}
    with pytest.raises(DataError, match="no test task 'x'; there are: a-gen, b-med, c-med"):
        read_task_corpus("x", tmp_path)


def test_results_can_be_written_as_json() -> None:
    hit = search(pico(), CORPUS, "heart", 1, 0)[0]
    assert json.loads(json.dumps(vars(hit)))["position"] == 1
