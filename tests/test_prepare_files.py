"""Files, hub folders and BEIR folders as sources: every form that is read, and every fault that is named."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest

from stm.errors import DataError, ParamsError
from stm.metrics import ndcg_at_k
from stm.params.base import parse_section
from stm.params.prepare import BeirTask, CorpusSource, FileSource, FileTask, HubSource, TaskTable
from stm.prepare.beir import make_task, read_beir_pairs
from stm.prepare.candidates import Candidates, make_frame, tidy
from stm.prepare.embedded import Corpora
from stm.prepare.files import read_pairs
from stm.prepare.hub import read_hub, read_hub_columns
from stm.prepare.passages import stand_in
from stm.prepare.sources import load_source, load_task

NAMES = {"anchor": "query", "positive": "passage"}
FULL = {**NAMES, "negatives": "hard", "instruction": "task", "concept": "group"}
ROWS: list[dict[str, Any]] = [
    {"query": "höhe", "passage": "first", "hard": ["a", "b"], "task": "do", "group": "g1"},
    {"query": "two", "passage": "second, with comma", "hard": [], "task": None, "group": "g1"},
]
EXPECTED = [("höhe", "first", ["a", "b"], "do", "g1", ""), ("two", "second, with comma", [], "", "g1", "")]


def jsonl(*rows: Any, end: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode()


def write(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("zipped", [False, True])
def test_jsonl_in_every_wrapping(tmp_path: Path, before: bytes, end: str, zipped: bool) -> None:
    data = before + jsonl(*ROWS, end=end)
    path = write(tmp_path, "x.jsonl", gzip.compress(data) if zipped else data)
    assert read_pairs(path, "jsonl", FULL).rows() == EXPECTED


def test_jsonl_negatives_may_be_one_text_or_missing(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "passage": "b", "hard": "c"},
        {"query": "d", "passage": "e"},
        {"query": "f", "passage": "g", "hard": None},
    ]
    frame = read_pairs(write(tmp_path, "x.jsonl", jsonl(*rows)), "jsonl", {**NAMES, "negatives": "hard"})
    assert frame["negatives"].to_list() == [["c"], [], []]


@pytest.mark.parametrize(("before", "end"), [("", "\n"), ("\ufeff", "\r\n")])
@pytest.mark.parametrize("zipped", [False, True])
def test_csv(tmp_path: Path, before: str, end: str, zipped: bool) -> None:
    lines = ["query,passage,hard", '"two, words",007,no', '"line\nbreak",text,']
    data = (before + end.join(lines) + end).encode()
    path = write(tmp_path, "x.csv", gzip.compress(data) if zipped else data)
    frame = read_pairs(path, "csv", {**NAMES, "negatives": "hard"})
    assert frame.select("anchor", "positive", "negatives").rows() == [
        ("two, words", "007", ["no"]),
        ("line\nbreak", "text", []),
    ]


@pytest.mark.parametrize("data", [b"query,passage\nq1,p1\n\nq2,p2\n\n", b'query,passage\r\nq1,"p1"\r\n\r\nq2,p2\r\n'])
def test_a_blank_line_of_a_csv_is_no_row(tmp_path: Path, data: bytes) -> None:
    """As to `datasets`: released negatives name the rows by their numbers."""
    frame = read_pairs(write(tmp_path, "x.csv", data), "csv", NAMES)
    assert frame.select("anchor", "positive").rows() == [("q1", "p1"), ("q2", "p2")]


def test_csv_separator(tmp_path: Path) -> None:
    path = write(tmp_path, "x.tsv", b"query\tpassage\na\tb, c\n")
    assert read_pairs(path, "csv", NAMES, "\t")["positive"].to_list() == ["b, c"]


def test_a_file_without_quoting_is_read_as_it_stands(tmp_path: Path) -> None:
    rows = [("q1", '"Dog" is a word'), ('5" pipe', '"open'), ("q3", 'closed"')]
    path = write(tmp_path, "x.tsv", "".join(f"{a}\t{b}\n" for a, b in [("query", "passage"), *rows]).encode())
    row = {"kind": "csv", "path": str(path), **NAMES, "separator": "\t", "quote": ""}
    loaded = load_source(parse_section(row, FileSource, "x"), Corpora())
    assert loaded.frame.select("anchor", "positive").rows() == rows
    task = load_task(parse_section(row, FileTask, "x"), "own", "dev", Corpora())
    assert sorted(task.queries.values()) == sorted(query for query, _ in rows)


def test_rows_that_a_lone_quotation_mark_would_merge_are_refused(tmp_path: Path) -> None:
    lines = ["query\tpassage", 'q1\t"hi" 5" x', "q2\tp2", 'q3\tthe close"', "q4\tp4"]
    path = write(tmp_path, "x.tsv", "\n".join(lines).encode())
    with pytest.raises(
        DataError, match=r"x\.tsv is not a readable csv file: the row that begins in line 2 has a quoted"
    ):
        read_pairs(path, "csv", NAMES, "\t")
    assert read_pairs(path, "csv", NAMES, "\t", "").height == 4


def test_long_quoted_texts_and_doubled_marks_are_read(tmp_path: Path) -> None:
    text = 'say "hi",\n' * 50_000
    path = tmp_path / "x.csv"
    pl.DataFrame({"query": ["q"], "passage": [text]}).write_csv(path)
    assert read_pairs(path, "csv", NAMES)["positive"].to_list() == [text.strip()]


def test_blanks_around_the_names_of_columns_are_no_matter(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", b"query , passage\nq1, p1\n")
    assert read_pairs(path, "csv", NAMES).select("anchor", "positive").rows() == [("q1", "p1")]


@pytest.mark.parametrize("cell", ["['neg one', 'neg two']", '["a", "b"]', "['it', \"it's\"]", "['a' 'b']\n"])
def test_a_list_that_is_written_as_a_text_is_refused(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "x.csv"
    pairs = {"query": ["q0", "q1"], "passage": ["p0", "p1"]}
    pl.DataFrame({**pairs, "hard": ["", cell]}).write_csv(path)
    with pytest.raises(DataError, match=r"'negatives' holds lists written as texts, .*; .* as jsonl or parquet"):
        read_pairs(path, "csv", {**NAMES, "negatives": "hard"})
    pl.DataFrame({**pairs, "hard": ["one", cell]}).write_csv(path)  # among texts it is a text
    assert read_pairs(path, "csv", {**NAMES, "negatives": "hard"})["negatives"].to_list() == [["one"], [cell.strip()]]


def test_signs_tell_the_queries_of_a_task_apart(tmp_path: Path) -> None:
    texts = ["Which cells are CD25+?", "Which cells are CD25-?", "which  cells are CD25+"]
    rows = [{"query": text, "passage": f"p{place}"} for place, text in enumerate(texts)]
    path = write(tmp_path, "x.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    task = load_task(
        parse_section({"kind": "jsonl", "path": str(path), **NAMES}, FileTask, "x"), "own", "dev", Corpora()
    )
    assert sorted(task.queries.values()) == sorted(texts[:2])
    wanted = {task.queries[key]: {task.corpus[p].text for p in judged} for key, judged in task.qrels.items()}
    assert wanted == {texts[0]: {"p0", "p2"}, texts[1]: {"p1"}}


def test_a_column_that_stands_twice_but_for_blanks_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", b"query,passage,passage \nq1,p1,p2\n")
    with pytest.raises(DataError, match="the column 'passage' stands there twice"):
        read_pairs(path, "csv", NAMES)


def test_a_negative_in_brackets_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    pl.DataFrame({"query": ["q"], "passage": ["p"], "hard": ["[Heart failure in children]"]}).write_csv(path)
    frame = read_pairs(path, "csv", {**NAMES, "negatives": "hard"})
    assert frame["negatives"].to_list() == [["[Heart failure in children]"]]


@pytest.mark.parametrize(("field", "value"), [("separator", "\u00a6"), ("separator", ""), ("quote", "''")])
def test_separator_and_quote_are_one_character_of_ascii(field: str, value: str) -> None:
    with pytest.raises(ParamsError, match=f"{field}: String should"):
        parse_section({"kind": "csv", "path": "x.csv", field: value}, FileSource, "x")


@pytest.mark.parametrize("zipped", [False, True])
def test_parquet(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.parquet"
    pl.DataFrame(ROWS).write_parquet(path)
    path.write_bytes(gzip.compress(path.read_bytes()) if zipped else path.read_bytes())
    assert read_pairs(path, "parquet", FULL).rows() == EXPECTED


FAULTS: list[tuple[str, str, bytes, str]] = [
    (
        "x.jsonl",
        "jsonl",
        jsonl({"query": "a", "text": "b"}),
        r"x\.jsonl, line 1, has no column 'passage'; its columns are query, text",
    ),
    ("x.jsonl", "jsonl", jsonl(ROWS[0]) + b"{broken\n", r"x\.jsonl, line 2: not JSON"),
    ("x.jsonl", "jsonl", b"[1]\n", r"x\.jsonl, line 1: expected a JSON object"),
    ("x.jsonl", "jsonl", jsonl({"query": 5, "passage": "b"}), r"line 1, 'query': expected a text, not int"),
    ("x.jsonl", "jsonl", jsonl({**ROWS[0], "group": True}), r"'group': expected a text or a whole number, not bool"),
    ("x.jsonl", "jsonl", jsonl({**ROWS[0], "hard": [1]}), r"'hard': expected a text or a list of texts"),
    ("x.jsonl", "jsonl", jsonl({"query": "a", "passage": "b"}), r"x\.jsonl has no column 'hard', 'task', 'group'"),
    ("x.csv", "csv", b"query,text\na,b\n", r"x\.csv has no column 'passage', .*; its columns are query, text"),
    ("x.csv", "csv", b"", r"x\.csv is empty; expected csv rows"),
    ("x.jsonl", "jsonl", b"\n", r"x\.jsonl is empty; expected jsonl rows"),
    (
        "x.jsonl",
        "jsonl",
        b"[\n",
        r"x\.jsonl, line 1: not JSON .*; a JSON array cannot be read here: write one object per",
    ),
    ("x.jsonl", "jsonl", b"[{}]\n", r"line 1: expected a JSON object; a JSON array cannot be read here"),
    ("x.csv", "csv", b'query,passage\n"a,b,c\nd,e,f,g\n', r"x\.csv"),
    ("x.csv", "csv", b"query;passage\na;b\n", r"x\.csv has no column .*; set `separator` to what stands between them"),
    ("x.csv", "csv", b"query,passage\na,b,c\n", r"x\.csv is not a readable csv file: [^\n]*$"),
    (
        "x.csv",
        "csv",
        b"query;passage\na;b\nc, d;e, f, g\n",
        r"x\.csv is not a readable csv .*; set `separator: \";\"`$",
    ),
    ("x.csv", "csv", b"query\tpassage\na, b, c\td\n", r"x\.csv is not a readable csv .*; set `separator: \"\\t\"`$"),
    (
        "x.csv",
        "csv",
        "query,passage\nfièvre,b\n".encode("latin-1"),
        r"x\.csv is not a readable csv .*; save it as UTF-8$",
    ),
    ("x.csv", "csv", "query,passage\na,b\n".encode("utf-16"), r"x\.csv is UTF-16; save it as UTF-8$"),
    (
        "x.csv",
        "csv",
        b'query,passage\nq1,"Dog" is a word\nq2,"p"\n',
        r"x\.csv .* begins in line 2 has a quoted text .*; double the .* quoted texts, or set `quote: \"\"` if",
    ),
    ("x.csv", "csv", b'query;passage\n"a;b";c "d" e\n', r"x\.csv is not a readable .*; set `separator: \";\"`$"),
    ("x.csv", "csv", b"query , query\na,b\n", r"x\.csv is not a readable csv file: .*query"),
    ("x.csv", "csv", 'query,passage\n"fi\u00e8vre",b\n'.encode("latin-1"), r"x\.csv .*; save it as UTF-8$"),
    ("x.parquet", "parquet", b"nonsense", r"x\.parquet is not a readable parquet file"),
    ("x.jsonl", "jsonl", b"\x1f\x8bbroken", r"x\.jsonl is a broken gzip file"),
]


@pytest.mark.parametrize(("name", "kind", "data", "message"), FAULTS)
def test_faults_name_the_file_and_what_is_there(
    tmp_path: Path, name: str, kind: str, data: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(write(tmp_path, name, data), kind, FULL)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*absent\.csv: No such file"):
        read_pairs(tmp_path / "absent.csv", "csv", NAMES)


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"query": [1], "passage": ["a"]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"'anchor' has type Int64; expected texts"):
        read_pairs(tmp_path / "x.parquet", "parquet", NAMES)
    pl.DataFrame({"query": ["a"], "passage": [["a", "b"]]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"'positive' has type List\(String\); expected texts"):
        read_pairs(tmp_path / "x.parquet", "parquet", NAMES)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_concepts_may_be_whole_numbers(tmp_path: Path, kind: str) -> None:
    rows = [{"query": f"q{i}", "passage": f"p{i}", "group": group} for i, group in enumerate([7, 7, None, 2**40])]
    path, table = tmp_path / f"x.{kind}", pl.DataFrame(rows)
    getattr(table, {"jsonl": "write_ndjson"}.get(kind, f"write_{kind}"))(path)
    frame = read_pairs(path, kind, {**NAMES, "concept": "group"})
    assert frame["concept"].to_list() == ["7", "7", "", str(2**40)]


def test_a_column_of_fractions_is_no_concept(tmp_path: Path) -> None:
    pl.DataFrame({"query": ["q"], "passage": ["p"], "group": [0.5]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"'concept' has type Float64; expected texts or whole numbers"):
        read_pairs(tmp_path / "x.parquet", "parquet", {**NAMES, "concept": "group"})


def hub_folder(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    pl.DataFrame(ROWS).write_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def test_a_hub_folder_is_read_from_disk(tmp_path: Path) -> None:
    source = parse_section({"kind": "hub", "path": str(hub_folder(tmp_path / "set")), **FULL}, HubSource, "x")
    loaded = load_source(source, Corpora())
    assert loaded.label == "set"
    assert loaded.frame.rows() == EXPECTED


def test_a_hub_file_is_read_from_disk(tmp_path: Path) -> None:
    path = hub_folder(tmp_path / "set") / "data" / "train-00000-of-00001.parquet"
    assert read_hub(str(path), FULL).rows() == EXPECTED


def test_hub_faults(tmp_path: Path) -> None:
    folder = str(hub_folder(tmp_path / "set"))
    with pytest.raises(DataError, match=r"has no column 'nothing'; its columns are group, hard"):
        read_hub(folder, {"anchor": "query", "positive": "nothing"})
    with pytest.raises(DataError, match=r"cannot load the split 'odd'"):
        read_hub(folder, NAMES, split="odd")
    with pytest.raises(DataError, match=r"'some/set' has no `revision`"):
        read_hub("some/set", NAMES)


def test_a_hub_folder_of_other_bytes_is_read_anew_whatever_its_times(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for query in ("old", "new and longer"):
        write(folder, "train.jsonl", jsonl({"query": query, "passage": "p"}))
        os.utime(folder / "train.jsonl", (1e9, 1e9))
        assert read_hub(str(folder), NAMES)["anchor"].to_list() == [query]


@pytest.fixture(params=["folder", "hub"])
def csv_set(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """The folder of a data set, and the path under which it is read: its own, or an id of a hub that has its files."""
    folder = tmp_path / "set"
    folder.mkdir()
    if request.param == "folder":
        return folder, str(folder)
    files = datasets.load.LocalDatasetModuleFactory
    monkeypatch.setattr("datasets.load.dataset_module_factory", lambda path, **_: files(str(folder)).get_module())
    return folder, "owner/set"


def test_words_like_na_in_csv_files_of_a_data_set_are_texts(csv_set: tuple[Path, str]) -> None:
    folder, path = csv_set
    write(folder, "train.csv", b"query,passage,hard\nwhich allele,NA,\nNone,null,x\n")
    frame = read_hub(path, {**NAMES, "negatives": "hard"}, revision="main")
    rows = [("which allele", "NA", []), ("None", "null", ["x"])]
    assert frame.select("anchor", "positive", "negatives").rows() == rows
    with pytest.raises(DataError, match="columns expected but not found: \\['nothing'\\]"):
        read_hub(path, {**NAMES, "concept": "nothing"}, revision="main")


def test_a_column_of_numbers_that_nobody_asks_for_may_have_an_na_late_in_a_csv_file(csv_set: tuple[Path, str]) -> None:
    folder, path = csv_set
    write(folder, "train.csv", b"query,passage,score\n" + b"q,p,1\n" * 10_000 + b"q,p,NA\n")
    assert read_hub(path, NAMES, revision="main").height == 10_001


def test_a_hub_file_of_another_separator_gets_no_advice_that_its_kind_cannot_follow(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", b"query;passage\na;b\n")
    with pytest.raises(DataError, match=r"no column 'passage', 'query'; its columns are query;passage$"):
        read_hub(str(path), NAMES)


def beir_folder(folder: Path, qrels: str, before: str = "", end: str = "\n") -> Path:
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {"_id": "p1", "title": "T", "text": "one"},
        {"_id": "p2", "text": "two"},
        {"_id": "p3", "title": "", "text": "three"},
    ]
    (folder / "corpus.jsonl").write_bytes(before.encode() + jsonl(*corpus, end=end))
    (folder / "queries.jsonl").write_bytes(
        before.encode() + jsonl({"_id": "q1", "text": "ask"}, {"_id": "q2", "text": "more"}, end=end)
    )
    (folder / "qrels" / "dev.tsv").write_bytes(
        (before + "query-id\tcorpus-id\tscore\n" + qrels).replace("\n", end).encode()
    )
    return folder


@pytest.mark.parametrize(("before", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_beir_pairs(tmp_path: Path, before: str, end: str) -> None:
    folder = beir_folder(tmp_path / "b", "q1\tp1\t2\nq1\tp3\t0\nq2\tp2\t1\nq1\tp2\t1\n", before, end)
    assert read_beir_pairs(folder, "dev", "b").rows() == [
        ("ask", "T one", ["three"], "", "b:q1", ""),
        ("ask", "two", ["three"], "", "b:q1", ""),
        ("more", "two", [], "", "b:q2", ""),
    ]


@pytest.mark.parametrize(
    ("qrels", "split", "message"),
    [
        ("", "dev", "has no qrels"),
        ("q1\tp9\t1\n", "dev", "name the passage 'p9'"),
        ("q9\tp1\t1\n", "dev", "name the query 'q9'"),
        ("q1\tp1\thigh\n", "dev", "line 2: expected query-id"),
        ("q1\tp1\t1\n", "test", r"test\.tsv.*splits there: \['dev'\]"),
    ],
)
def test_beir_faults(tmp_path: Path, qrels: str, split: str, message: str) -> None:
    folder = beir_folder(tmp_path / "b", qrels)
    with pytest.raises(DataError, match=message):
        read_beir_pairs(folder, split, "b")


def test_a_task_of_pairs(tmp_path: Path) -> None:
    rows = [
        {"anchor": "q", "positive": "a", "negatives": ["n", "b"]},
        {"anchor": "q", "positive": "b"},
        {"anchor": "r", "positive": "a"},
    ]
    path = write(tmp_path, "x.jsonl", jsonl(*rows))
    source = parse_section({"kind": "jsonl", "path": str(path), "negatives": "negatives"}, FileTask, "x")
    task = load_task(source, "own", "dev", Corpora())
    texts = {key: passage.text for key, passage in task.corpus.items()}
    judged = {task.queries[query]: sorted(texts[key] for key in keys) for query, keys in task.qrels.items()}
    assert judged == {"q": ["a", "b"], "r": ["a"]}
    assert sorted(texts.values()) == ["a", "b", "n"]


def test_texts_of_a_task_of_pairs_that_count_as_the_same_are_one() -> None:
    columns = {
        "anchor": ["What is flu?", "what is  FLU", "??", "!!"],
        "positive": ["An infection.", "A disease", "p", "p"],
        "negatives": [["a disease."], ["an infection"], [], []],
    }
    task = make_task(make_frame(columns, "x"), "t", "general", {})
    judged = {task.queries[query]: sorted(task.corpus[key].text for key in keys) for query, keys in task.qrels.items()}
    assert judged == {"What is flu?": ["An infection.", "a disease."], "??": ["p"], "!!": ["p"]}
    assert sorted(passage.text for passage in task.corpus.values()) == ["An infection.", "a disease.", "p"]


def test_arguanas_rule_comes_from_the_row_or_from_the_folder(tmp_path: Path) -> None:
    folder = beir_folder(tmp_path / "b", "q1\tp1\t1\n")
    row = {"kind": "beir", "path": str(folder)}

    def ignores(**changes: object) -> bool:
        source = parse_section({**row, **changes}, BeirTask, "x")
        return load_task(source, "own", "dev", Corpora()).ignores_identical_ids

    assert (ignores(), ignores(ignore_identical_ids=True)) == (False, True)
    (folder / "task.json").write_text(json.dumps({"notes": {"ignore_identical_ids": True}}))
    assert ignores()


@pytest.mark.parametrize("name", ["all", "medical", "general"])
def test_a_task_cannot_be_called_as_an_average(name: str) -> None:
    own: dict[str, object] = {"kind": "embedded", "name": "gen-wiki"}
    with pytest.raises(ParamsError, match=f"a task is called '{name}', as an average is"):
        parse_section({"dev": {"x": own}, "test": {name: own}}, TaskTable, "prepare.tasks")


@pytest.mark.parametrize(("anchor", "positive"), [("", "x"), ("x", ""), ("The same.", "the same")])
def test_a_task_without_pairs_is_refused(anchor: str, positive: str) -> None:
    with pytest.raises(DataError, match="the task 't' is empty: its file holds no row with a query and another text"):
        make_task(make_frame({"anchor": [anchor], "positive": [positive]}, "x"), "t", "general", {})


def test_a_query_that_is_a_passage_as_well_does_not_find_itself() -> None:
    columns = {"anchor": ["a", "b", "c", "c"], "positive": ["b", "a", "d", "C"]}
    task = make_task(make_frame(columns, "x"), "t", "general", {})
    assert task.ignores_identical_ids
    assert sorted(task.queries.values()) == ["a", "b", "c"]
    found = {key: {key: 1.0, answer: 0.5} for key, answers in task.qrels.items() for answer in answers}
    assert set(ndcg_at_k(task.qrels, found, 10, ignore_identical_ids=True).values()) == {1.0}
    assert sorted(passage.text for passage in task.corpus.values()) == ["a", "b", "d"]


@pytest.mark.parametrize("name", ["r.csv.gz", "r.csv", "r.jsonl.gz", "r.jsonl", "r.parquet"])
def test_a_single_file_may_stand_for_a_data_set(tmp_path: Path, name: str) -> None:
    table = pl.DataFrame({"query": ["NA", "2020-01-31"], "passage": ["null", "x"], "number": [1, 2]})
    path = tmp_path / name
    plain = tmp_path / name.removesuffix(".gz")
    if ".csv" in name:
        table.write_csv(plain)
    elif ".jsonl" in name:
        table.write_ndjson(plain)
    else:
        table.write_parquet(plain)
    path.write_bytes(gzip.compress(plain.read_bytes()) if name.endswith(".gz") else plain.read_bytes())
    found = read_hub_columns(str(path), ["query", "passage", "number"], config="", split="train", revision="")
    assert found.select("query", "passage", "number").rows() == [("NA", "null", 1), ("2020-01-31", "x", 2)]
    with pytest.raises(DataError, match=r"has no column 'nothing'; its columns are number, passage, query"):
        read_hub_columns(str(path), ["nothing"], config="", split="train", revision="")


def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, "r.tsv", b"a\tb\n")
    with pytest.raises(DataError, match=r"r\.tsv: the name must end in \.jsonl, \.csv or \.parquet"):
        read_hub_columns(str(path), ["a"], config="", split="train", revision="")


def test_half_a_character_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jsonl", b'{"anchor": "q", "positive": "p"}\n{"anchor": "q \\ud83d", "positive": "p"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: holds half a character"):
        read_pairs(path, "jsonl", {"anchor": "anchor", "positive": "positive"})
    whole = write(tmp_path, "y.jsonl", b'{"anchor": "q \\ud83d\\ude00", "positive": "p"}\n')
    assert read_pairs(whole, "jsonl", {"anchor": "anchor", "positive": "positive"})["anchor"][0] == "q \U0001f600"


def test_a_corpus_gets_stand_in_queries(tmp_path: Path) -> None:
    passages = [
        "One short sentence. And more of it.",
        "No end and no rest",
        "Long " + "word " * 30 + "here. Rest.",
        "x",
    ]
    rows = [{"text": text, "title": "Its title" if i == 1 else None} for i, text in enumerate(passages)]
    path = write(tmp_path, "c.jsonl.gz", gzip.compress(jsonl(*rows)))
    source = parse_section({"kind": "corpus", "path": str(path), "title": "title"}, CorpusSource, "x")
    loaded = load_source(source, Corpora())
    anchors = ["One short sentence.", "Its title", "Long " + "word " * 10 + "word", "x"]
    assert loaded.frame.select("anchor", "positive").rows() == list(zip(anchors, passages, strict=True))
    assert set(loaded.frame["concept"]) == {""}
    plain = source.model_copy(update={"title": ""})
    assert load_source(plain, Corpora()).frame["anchor"][1] == "No end"
    assert [c.frame.height for c in tidy([loaded], "s")] == [3]  # a single word asks for itself
    with pytest.raises(DataError, match=r"ends in \.jsonl, \.csv, \.parquet or with \.gz"):
        load_source(source.model_copy(update={"path": "c.txt"}), Corpora())


def test_a_corpus_of_a_csv_file_takes_its_separator_and_quote(tmp_path: Path) -> None:
    path = write(tmp_path, "c.csv", b'id;text\n1;"Flu" is one. It spreads.\n')
    row: dict[str, object] = {"kind": "corpus", "path": str(path)}
    with pytest.raises(DataError, match=r"has no column 'text'; its columns are id;text; set `separator` to"):
        load_source(parse_section(row, CorpusSource, "x"), Corpora())
    source = parse_section({**row, "separator": ";", "quote": ""}, CorpusSource, "x")
    rows = [('"Flu" is one.', '"Flu" is one. It spreads.')]
    assert load_source(source, Corpora()).frame.select("anchor", "positive").rows() == rows


def test_a_passage_without_spaces_gets_a_stand_in() -> None:
    assert stand_in("\u809d\u810f\u80bf\u5927\u3002\u5e38\u89c1\u3002") == "\u809d\u810f\u80bf\u5927\u3002"
    assert stand_in("\u809d\u810f\u80bf\u5927") == "\u809d\u810f"
    assert stand_in("x") == "x"


def test_tidy_drops_and_counts() -> None:
    first = make_frame({"anchor": ["a", " ", "same", "A!"], "positive": ["b", "x", "Same.", "b"]}, "x")
    second = make_frame({"anchor": ["a", "c"], "positive": ["B", "d"]}, "y")
    tidied = tidy([Candidates("one", first), Candidates("two", second)], "s")
    assert [source.frame.select("row", "anchor").rows() for source in tidied] == [[(0, "a")], [(1, "c")]]
    assert tidied[0].facts == {"candidates": 4, "blank": 1, "identical": 1, "duplicates": 1}
    assert tidied[1].facts == {"candidates": 2, "blank": 0, "identical": 0, "duplicates": 1}


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(DataError, match=r"split 's' is empty: .*one has 1 rows, 1 blank"):
        tidy([Candidates("one", make_frame({"anchor": [""], "positive": ["x"]}, "x"))], "s")
