"""Evaluation through mteb on tiny tasks: tasks, models, scores, files, and what is refused."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import yaml
from mteb.abstasks.retrieval import AbsTaskRetrieval
from sentence_transformers import SentenceTransformer

import stages.bm25
import stages.evaluate
from stm.encode import Encoder
from stm.errors import DataError, ParamsError, STMError
from stm.evaluate import models, named, run
from stm.evaluate.dense import open_model
from stm.evaluate.lexical import LexicalModel
from stm.evaluate.models import DenseModel
from stm.evaluate.named import NamedTask, find_benchmark, find_task
from stm.evaluate.record import (
    Evaluation,
    average_tasks,
    read_local_tasks,
    run_hub,
    run_local,
    write_results,
)
from stm.evaluate.robustness import KINDS
from stm.evaluate.run import run_task
from stm.evaluate.tasks import SPLIT, SUBSET, LocalTask
from stm.hub_models import is_hub_reachable
from stm.model_hash import hash_model
from stm.models import load_model
from stm.params.all import Params
from stm.params.base import load_row, load_section, parse_section
from stm.params.complete import check_complete
from stm.params.evaluate import EvaluateParams, HubTask, ModelEntry
from stm.params.report import ReportParams
from stm.report.build import build_report
from stm.report.collect import collect
from stm.tasks import Domain, Passage, Task, write_task
from stm.text_encoder import Floats
from tests.closure import ROOT
from tests.pico import pico_adapter, pico_backbone

WORDS = ["heart", "lung", "skin", "eye", "bone", "nerve", "liver", "blood", "ear", "hair"]


def make_task(name: str = "organs", domain: Domain = "medical", **notes: Any) -> Task:
    corpus = {f"p{i}": Passage(word.title(), f"The {word} is an organ number {i}.") for i, word in enumerate(WORDS)}
    queries = {f"q{i}": f"what is the {word}" for i, word in enumerate(WORDS[:6])}
    qrels = {f"q{i}": {f"p{i}": 2, f"p{(i + 1) % 10}": 1} for i in range(6)}
    return Task(name, domain, corpus, queries, qrels, notes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_backbone(tmp_path_factory.mktemp("pico") / "backbone")


@pytest.fixture(scope="module")
def dense(folder: Path) -> DenseModel:
    return open_model("pico", folder, "hash", EvaluateParams(batch_tokens=0, store_megabytes=0))


class OneHot:
    """Encodes a text as the word of the list that it holds; keeps what it was asked."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.asked: list[tuple[str, list[str]]] = []

    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "") -> Floats:
        self.asked.append((prompt, list(texts)))
        rows = np.array([[float(word in text.lower()) for word in WORDS] for text in texts], dtype=np.float32)
        rows[[bool(self.broken) and self.broken in text for text in texts]] = np.nan
        return rows


def test_scores_are_mtebs_scores_with_a_plain_sentence_transformer(folder: Path, dense: DenseModel) -> None:
    task = make_task()
    ours, result = run_task(dense, LocalTask(task, "r1"))
    reference = SentenceTransformer(str(folder))  # mteb wraps it itself and takes its prompts by their names
    theirs, _ = run_task(reference, LocalTask(task, "r1"))
    assert ours[SPLIT, SUBSET].per_query == theirs[SPLIT, SUBSET].per_query
    assert result.scores[SPLIT][0]["ndcg_at_10"] == pytest.approx(ours[SPLIT, SUBSET].ndcg_at_10, abs=1e-5)
    assert result.scores[SPLIT][0]["recall_at_10"] == pytest.approx(ours[SPLIT, SUBSET].recall_at_10, abs=1e-5)


def test_mteb_alone_runs_a_task_and_unloads_it(folder: Path) -> None:
    task = LocalTask(make_task(), "r1")
    results = mteb.evaluate(SentenceTransformer(str(folder)), task, co2_tracker=False, cache=None)
    assert results.task_results[0].task_name == task.metadata.name == "organs"
    assert not task.data_loaded


def test_prompts_go_to_their_side_and_titles_to_the_text() -> None:
    encoder = OneHot()
    scores, _ = run_task(DenseModel(encoder, {"query": "Q: ", "document": None}, "m", "r"), LocalTask(make_task(), "r"))
    asked = dict(encoder.asked)
    assert asked["Q: "][0] == "what is the heart"
    assert asked[""][0] == "Heart The heart is an organ number 0."
    assert scores[SPLIT, SUBSET].top["q0"][0] == "p0"
    assert scores[SPLIT, SUBSET].ndcg_at_10 > 0.8


def test_nan_vectors_are_an_error_that_names_model_and_text() -> None:
    model = DenseModel(OneHot(broken="lung"), {}, "crooked", "r")
    with pytest.raises(DataError, match=r"'crooked' gives NaN.*organs.*lung"):
        run_task(model, LocalTask(make_task(), "r"))


def test_arguanas_rule_is_on_where_the_task_says_so() -> None:
    corpus = {word: Passage("", word) for word in WORDS}
    task = Task("debate", "general", corpus, {"heart": "heart"}, {"heart": {"lung": 1}}, {"ignore_identical_ids": True})
    plain = Task("debate", "general", corpus, {"heart": "heart"}, {"heart": {"lung": 1}})
    model = DenseModel(OneHot(), {}, "m", "r")
    with_rule = run_task(model, LocalTask(task, "r"))[0][SPLIT, SUBSET]
    without = run_task(model, LocalTask(plain, "r"))[0][SPLIT, SUBSET]
    assert "heart" not in with_rule.top["heart"]
    assert without.top["heart"][0] == "heart"
    assert with_rule.ndcg_at_10 > without.ndcg_at_10


def test_a_disagreement_with_mteb_stops_the_run(monkeypatch: pytest.MonkeyPatch, dense: DenseModel) -> None:
    monkeypatch.setattr(run, "ndcg_at_k", lambda qrels, found: dict.fromkeys(qrels, 0.123))
    with pytest.raises(STMError, match=r"0\.12300 by this project's contract"):
        run_task(dense, LocalTask(make_task(), "r"))


def test_bm25_runs_as_a_model_and_counts_queries_without_a_hit() -> None:
    task = make_task()
    queries = {**task.queries, "odd": "zzyzx"}
    odd = Task(task.name, task.domain, task.corpus, queries, {**task.qrels, "odd": {"p0": 1, "p1": 1, "p2": 0}})
    scores = run_task(LexicalModel("bm25"), LocalTask(odd, "r"))[0][SPLIT, SUBSET]
    assert scores.missing == 1
    assert scores.per_query["ndcg_at_10"]["odd"] == 0.0
    assert scores.top["q3"][0] == "p3"
    assert scores.queries == 7
    assert scores.same_answers == {"odd": "q0"}
    vain = {"odd": {"p0": 0}, "even": {"p1": 0}}
    unanswered = Task(odd.name, odd.domain, odd.corpus, {**queries, "even": "zzz"}, {**task.qrels, **vain})
    assert run_task(LexicalModel("bm25"), LocalTask(unanswered, "r"))[0][SPLIT, SUBSET].same_answers == {}


def test_a_corpus_of_one_passage_and_a_very_long_query(dense: DenseModel) -> None:
    task = Task("tiny", "general", {"p": Passage("", "heart")}, {"q": "heart " * 10_000}, {"q": {"p": 1}})
    for model in (dense, LexicalModel("bm25")):
        scores = run_task(model, LocalTask(task, "r"))[0][SPLIT, SUBSET]
        assert scores.ndcg_at_10 == scores.recall_at_10 == 1.0


def test_record_holds_scores_averages_and_sizes_and_is_the_same_twice(tmp_path: Path, dense: DenseModel) -> None:
    write_task(make_task("a", "medical", full_queries=60, full_passages=900), tmp_path / "tasks" / "a", "test")
    write_task(make_task("b", "general"), tmp_path / "tasks" / "b", "test")
    texts = []
    for _ in range(2):
        evaluation = Evaluation()
        run_local(evaluation, dense, read_local_tasks(tmp_path / "tasks"))
        write_results(evaluation.results, tmp_path / "mteb")
        data = evaluation.as_json()
        for row in data["tasks"].values():
            row.pop("seconds")
        results = [path.read_text() for path in sorted((tmp_path / "mteb").iterdir())]
        texts.append(json.dumps(data, sort_keys=True) + "".join(results))
    assert texts[0] == texts[1]
    row = data["tasks"]["a"]
    assert (row["queries"], row["full_queries"], row["passages"], row["full_passages"]) == (6, 60, 10, 900)
    assert row["ndcg_at_10"] == pytest.approx(np.mean(list(row["per_query"]["ndcg_at_10"].values())), abs=1e-6)
    assert set(data["averages"]) == {"medical", "general", "all"}
    assert json.loads((tmp_path / "mteb" / "a.json").read_text())["task_name"] == "a"


def test_averages_weigh_tasks_not_queries() -> None:
    rows = {
        "a": {"domain": "medical", "ndcg_at_10": 0.2, "recall_at_10": 0.4, "queries": 1000},
        "b": {"domain": "medical", "ndcg_at_10": 0.6, "recall_at_10": 0.8, "queries": 10},
    }
    averages = average_tasks(rows)
    assert averages["all"] == {"ndcg_at_10": pytest.approx(0.4), "recall_at_10": pytest.approx(0.6)}
    assert "general" not in averages


def test_hash_of_an_adapter_depends_on_its_base(tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base")
    adapter = pico_adapter(base, tmp_path / "adapter")
    before = hash_model(adapter)
    assert before == hash_model(adapter) != hash_model(base)
    (base / "extra.txt").write_text("changed")
    assert hash_model(adapter) != before


def test_the_base_of_ones_own_adapter_needs_a_row_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = yaml.safe_load((ROOT / "params.yaml").read_text())
    pico_adapter(pico_backbone(Path("my/base")), Path("my/adapter"))
    data["models"]["mine"] = {"path": "my/adapter"}
    row = "base: {path: my/base, read_by: evaluate}"
    with pytest.raises(ParamsError, match=rf"the base of models\.mine\.path is 'my/base', .*`{row}`"):
        check_complete(parse_section(data, Params, ""))
    data["files"] = {"mine": {"path": "my/base", "read_by": "evaluate"}}
    check_complete(parse_section(data, Params, ""))


def test_ones_own_adapter_of_what_the_pipeline_makes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a base changes with the pipeline, unseen by whatever depends on the adapter's folder."""
    monkeypatch.chdir(tmp_path)
    data = yaml.safe_load((ROOT / "params.yaml").read_text())
    base = pico_backbone(Path("models/warm_up"))
    pico_adapter(base, Path("my/adapter"))
    pico_adapter(base, Path("models/selected/nlu"))  # the pipeline's own is one that its stages see change
    check_complete(parse_section(data, Params, ""))
    shutil.rmtree("models")  # as in a fresh clone
    data["models"]["mine"] = {"path": "my/adapter"}
    with pytest.raises(ParamsError, match=r"models\.mine\.path is 'my/adapter', an adapter of models/warm_up, which"):
        check_complete(parse_section(data, Params, ""))


def test_no_tasks_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no tasks"):
        read_local_tasks(tmp_path)


class _Unreachable(AbsTaskRetrieval):  # type: ignore[misc]
    def __init__(self) -> None:
        self.metadata = LocalTask(make_task("Far"), "r").metadata
        super().__init__()

    def load_data(self, **_: Any) -> None:
        raise ConnectionError("Couldn't reach the hub")


def test_tasks_of_an_unreachable_hub_are_named_as_not_run(dense: DenseModel) -> None:
    evaluation = Evaluation()
    near = LocalTask(make_task("Near"), "rev")
    run_hub(evaluation, dense, [NamedTask(_Unreachable(), "medical"), NamedTask(near, "general")])
    data = evaluation.as_json()["hub"]
    assert list(data["tasks"]) == ["Near"]
    assert "Couldn't reach the hub" in data["not_run"]["Far"]
    assert set(data["averages"]) == {"general", "all"}


def test_names_of_mteb_are_resolved_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_task(HubTask(name="CUREv1", subsets=["en"], splits=["all"])).task.hf_subsets == ["en"]
    assert find_task(HubTask(name="SCIDOCS")).domain == "general"
    assert find_task(HubTask(name="SCIDOCS", domain="medical")).domain == "medical"
    assert {task.domain for task in find_benchmark("MTEB(Medical, v1)")} == {"medical"}
    for name, subsets in (("Nonesuch", []), ("CUREv1", ["xx"]), ("Banking77Classification", [])):
        with pytest.raises(ParamsError, match="hub_tasks"):
            find_task(HubTask(name=name, subsets=subsets))
    with pytest.raises(ParamsError, match="no benchmark 'Nonesuch'"):
        find_benchmark("Nonesuch")
    went: list[bool] = []
    monkeypatch.setattr(named, "is_hub_reachable", lambda: False)
    monkeypatch.setattr(named, "go_offline", lambda: went.append(True))
    params = {"batch_tokens": 0, "store_megabytes": 0, "hub_tasks": [{"name": "NFCorpus"}]}
    found = named.load_named_tasks(EvaluateParams.model_validate(params))
    assert [task.task.metadata.name for task in found] == ["NFCorpus"]
    assert went == [True]
    assert named.load_named_tasks(EvaluateParams(batch_tokens=0, store_megabytes=0)) == []


def test_the_hub_counts_as_out_of_reach_where_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert not is_hub_reachable(1.0)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    assert is_hub_reachable(1.0)


def test_the_table_of_models(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("models: {merged: {path: models/merged, role: merged}, odd: {path: x, role: champion}}")
    assert load_row("models", "merged", ModelEntry, path).role == "merged"
    with pytest.raises(ParamsError, match="no row 'other' in its table `models`; it has merged, odd"):
        load_row("models", "other", ModelEntry, path)
    with pytest.raises(ParamsError, match=r"models\.odd\.role"):
        load_row("models", "odd", ModelEntry, path)
    with pytest.raises(ParamsError, match="batch_tokens"):
        parse_section({"batch_tokens": -1, "store_megabytes": 0}, EvaluateParams, "evaluate")


def test_local_tasks_leave_queries_without_judgements_out(dense: DenseModel) -> None:
    task = make_task()
    extra = Task(task.name, task.domain, task.corpus, {**task.queries, "q9": "what"}, {**task.qrels, "q9": {}})
    scores = run_task(dense, LocalTask(extra, "r"))[0][SPLIT, SUBSET]
    assert scores.queries == 6
    assert all(math.isfinite(value) for value in scores.per_query["recall_at_10"].values())


def test_the_models_own_prompts_are_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(folder)
    asked: list[str] = []

    def encode(self: Encoder, texts: Sequence[str], prompt: str = "", description: str = "") -> Floats:
        asked.append(prompt)
        return np.eye(len(texts), 64, dtype=np.float32)

    monkeypatch.setattr(Encoder, "encode", encode)
    run_task(
        open_model("pico", folder, "h", EvaluateParams(batch_tokens=0, store_megabytes=0)), LocalTask(make_task(), "r")
    )
    assert sorted(asked) == sorted([model.prompts["query"], model.prompts["document"] or ""])


def test_the_stages_write_what_the_report_reads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_task(make_task(), Path("data/tasks/test/organs"), "test")
    params = {
        "evaluate": {"batch_tokens": 0, "store_megabytes": 5, "slice_queries": 3},
        "models": {"pico": {"path": str(folder), "role": "base", "label": "Pico"}},
        "report": {"subject": "pico", "level": 0.9, "resamples": 100, "seed": 1, "failures": 2, "samples": 1},
    }
    Path("params.yaml").write_text(json.dumps(params))
    stages.evaluate.main("pico")
    stages.bm25.main()
    found = collect("reports")
    assert set(found.evaluation) == {"pico", "bm25"}
    assert found.evaluation["pico"]["label"] == "Pico"
    assert set(found.evaluation["pico"]["robustness"]) == set(KINDS)
    (row,) = found.evaluation["pico"]["tasks"].values()
    lengths = [len(ids) for ids in load_model(folder).tokenizer([p.full_text() for p in make_task().corpus.values()],
                                                                verbose=False)["input_ids"]]  # fmt: skip
    limit = load_model(folder).max_seq_length
    assert row["cut"] == np.mean([length > limit for length in lengths])
    assert found.evaluation["bm25"]["role"] == "lexical"
    assert sorted(path.as_posix() for path in Path("reports/evaluation/mteb").rglob("*.json")) == [
        "reports/evaluation/mteb/bm25/organs.json",
        "reports/evaluation/mteb/pico/organs.json",
    ]
    built = build_report(found, {"organs": make_task()}, load_section("report", ReportParams))
    assert set(built.metrics["models"]) == {"pico", "bm25"}
    assert "organs: nDCG@10" in capsys.readouterr().err


def test_slices_of_texts_do_not_change_a_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [{"text": [f"the {word} {i}" for word in WORDS]} for i in range(3)]
    whole, sliced = OneHot(), OneHot()
    expected = DenseModel(whole, {}, "m", "r").encode(batches, task_metadata=LocalTask(make_task(), "r").metadata)
    monkeypatch.setattr(models, "SLICE", 7)
    found = DenseModel(sliced, {}, "m", "r").encode(batches, task_metadata=LocalTask(make_task(), "r").metadata)
    assert np.array_equal(found, expected)
    assert [len(texts) for _, texts in sliced.asked] == [7, 7, 7, 7, 2]


def test_tasks_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_task(make_task(name), tmp_path / name, "test")
    (tmp_path / "b" / "corpus.jsonl").write_text("broken")
    tasks = read_local_tasks(tmp_path)
    assert next(tasks)[0].name == "a"
    with pytest.raises(DataError, match=r"b/corpus\.jsonl, line 1"):
        next(tasks)
