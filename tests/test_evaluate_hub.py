"""Tasks of mteb from local copies of their data sets, in each form that the paper's tasks have, without any hub."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import datasets
import mteb
import pytest
import yaml
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from stm.errors import DataError, ParamsError
from stm.evaluate import named
from stm.evaluate.lexical import LexicalModel
from stm.evaluate.named import NamedTask, load_named_tasks
from stm.evaluate.record import Evaluation, run_hub
from stm.evaluate.score import evaluate_folder
from stm.evaluate.tasks import LocalTask
from stm.files import sha256_tree
from stm.params.base import parse_section
from stm.params.evaluate import EvaluateParams, ModelEntry
from stm.prepare.hub import read_hub
from stm.tasks import write_task
from tests.closure import ROOT
from tests.pico import pico_backbone
from tests.test_evaluate import make_task

PAPER = yaml.safe_load((ROOT / "profiles" / "paper-tasks.yaml").read_text())["evaluate"]["hub_tasks"]
Rows = list[dict[str, Any]]
WORDS = ["heart", "lung", "skin", "eye", "bone", "nerve"]
CORPUS: Rows = [{"_id": f"p{i}", "title": "", "text": f"about the {word}"} for i, word in enumerate(WORDS)]
QUERIES: Rows = [{"_id": f"q{i}", "text": f"the {word}?"} for i, word in enumerate(WORDS[:4])]
QRELS: Rows = [{"query-id": f"q{i}", "corpus-id": f"p{i}", "score": 1} for i in range(4)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(named, "is_hub_reachable", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def write_dataset(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """A data set as the hub has it: a card that lists the files of each configuration and split, and the files."""
    listed = []
    for config, splits in configs.items():
        files = []
        for split, rows in splits.items():
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            files.append({"split": split, "path": f"{config}/{split}.jsonl"})
        listed.append({"config_name": config, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': listed})}---\n")


def params(folder: Path, *tasks: dict[str, Any]) -> EvaluateParams:
    values = {"batch_tokens": 0, "store_megabytes": 0, "hub_tasks": list(tasks), "hub_folder": str(folder)}
    return EvaluateParams.model_validate(values)


def evaluate(found: EvaluateParams) -> Evaluation:
    evaluation = Evaluation()
    run_hub(evaluation, LexicalModel("bm25"), load_named_tasks(found))
    return evaluation


def test_a_copy_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """Also where its name and its card are as before, by which `datasets` alone would take it for the same one."""
    one, other = (Path(tmp_path, name, "mteb/nfcorpus") for name in "ab")
    changed = [{**row, "text": "nothing of that"} for row in CORPUS]
    for folder, corpus, score in ((one, CORPUS, 1.0), (one, changed, 0.0), (other, CORPUS, 1.0)):
        files = {"default": {"test": QRELS}, "corpus": {"corpus": corpus}, "queries": {"queries": QUERIES}}
        write_dataset(folder, files)
        row = evaluate(params(folder.parents[1], {"name": "NFCorpus"})).hub_tasks["NFCorpus"]
        assert (row["ndcg_at_10"], row["data"]) == (score, sha256_tree(folder))


def test_the_shape_of_beir(tmp_path: Path) -> None:
    write_dataset(
        tmp_path / "mteb/nfcorpus",
        {"default": {"test": QRELS}, "corpus": {"corpus": CORPUS}, "queries": {"queries": QUERIES}},
    )
    found = evaluate(params(tmp_path, {"name": "NFCorpus"}))
    assert found.not_run == {}
    assert found.hub_tasks["NFCorpus"]["ndcg_at_10"] == 1.0
    assert found.hub_tasks["NFCorpus"]["data"] == sha256_tree(tmp_path / "mteb/nfcorpus")
    assert found.hub_tasks["NFCorpus"]["domain"] == "medical"
    assert (found.hub_tasks["NFCorpus"]["queries"], found.hub_tasks["NFCorpus"]["passages"]) == (4, 6)


def test_a_model_is_evaluated_on_tasks_of_mteb_beside_those_of_the_pipeline(tmp_path: Path) -> None:
    own = make_task()
    write_task(own, tmp_path / "tasks/own", "test")
    configs = {"qrels": {"train": QRELS}, "corpus": {"train": CORPUS}, "queries": {"train": QUERIES}}
    write_dataset(tmp_path / "mteb/NanoQuoraRetrieval", configs)
    asked = params(tmp_path, {"name": "NanoQuoraRetrieval"})
    folder = pico_backbone(tmp_path / "pico")
    entry, named_tasks = ModelEntry(path="pico"), load_named_tasks(asked)
    report, results = evaluate_folder("m", folder, entry, asked, tmp_path / "tasks", named_tasks)
    assert (list(report["tasks"]), list(report["hub"]["tasks"])) == ([own.name], ["NanoQuoraRetrieval"])
    assert set(results) == {own.name, "NanoQuoraRetrieval"}


def test_a_split_that_is_called_train(tmp_path: Path) -> None:
    configs = {"qrels": {"train": QRELS}, "corpus": {"train": CORPUS}, "queries": {"train": QUERIES}}
    write_dataset(tmp_path / "mteb/NanoQuoraRetrieval", configs)
    found = evaluate(params(tmp_path, {"name": "NanoQuoraRetrieval", "domain": "general"}))
    assert found.not_run == {}
    assert found.hub_tasks["NanoQuoraRetrieval"]["ndcg_at_10"] == 1.0


def test_one_language_and_one_split_of_many(tmp_path: Path) -> None:
    # "all" is the data set library's word for the union of the splits.
    names = ["dentistry_and_oral_health", "dermatology", "gastroenterology", "genetics",
             "neuroscience_and_neurology", "orthopedic_surgery", "otorhinolaryngology", "plastic_surgery",
             "psychiatry_and_psychology", "pulmonology"]  # fmt: skip
    configs = {f"queries-{language}": dict.fromkeys(names, QUERIES) for language in ("en", "es", "fr")}
    configs |= {"corpus": dict.fromkeys(names, CORPUS), "qrels": dict.fromkeys(names, QRELS)}
    write_dataset(tmp_path / "clinia/CUREv1", configs)
    found = evaluate(params(tmp_path, {"name": "CUREv1", "subsets": ["en"], "splits": ["all"]}))
    assert found.not_run == {}
    assert list(found.hub_tasks) == ["CUREv1"]
    assert found.hub_tasks["CUREv1"]["ndcg_at_10"] == 1.0


def test_questions_and_answers_of_one_language(tmp_path: Path) -> None:
    rows = [{"question": f"the {word}?", "answer": f"about the {word}"} for word in WORDS]
    write_dataset(tmp_path / "xhluca/publichealth-qa", {"english": {"test": rows}})
    found = evaluate(params(tmp_path, {"name": "PublicHealthQA", "subsets": ["english"]}))
    assert found.not_run == {}
    assert found.hub_tasks["PublicHealthQA"]["ndcg_at_10"] == 1.0
    assert found.hub_tasks["PublicHealthQA"]["queries"] == 6


def test_the_papers_tasks_by_params_are_seven_medical_and_five_general(tmp_path: Path) -> None:
    found = load_named_tasks(params(tmp_path, *PAPER))
    assert len(found) == 12
    assert [task.domain for task in found].count("medical") == 7
    splits = {task.task.metadata.name: list(task.task.eval_splits) for task in found}
    subsets = {task.task.metadata.name: list(task.task.hf_subsets) for task in found}
    assert splits["CUREv1"] == ["all"]
    assert splits["NanoFEVERRetrieval"] == splits["NanoQuoraRetrieval"] == ["train"]
    assert {split for name, [split] in splits.items() if not name.startswith(("CURE", "Nano"))} == {"test"}
    assert (subsets["CUREv1"], subsets["PublicHealthQA"]) == (["en"], ["english"])
    assert next(task for task in found if task.task.metadata.name == "ArguAna").task.ignore_identical_ids


def test_a_benchmark_by_name_runs_what_is_at_hand_and_names_the_rest(tmp_path: Path) -> None:
    configs = {"default": {"test": QRELS}, "corpus": {"corpus": CORPUS}, "queries": {"queries": QUERIES}}
    write_dataset(tmp_path / "mteb/nfcorpus", configs)
    values = {"batch_tokens": 0, "store_megabytes": 0, "benchmarks": ["MTEB(Medical, v1)"], "hub_folder": str(tmp_path)}
    found = evaluate(EvaluateParams.model_validate(values))
    everything = {task.metadata.name for task in mteb.get_benchmark("MTEB(Medical, v1)").tasks}
    assert list(found.hub_tasks) == ["NFCorpus"]
    assert set(found.not_run) == everything - {"NFCorpus"}
    assert found.not_run["CMedQAv2-reranking"] == "it is a Reranking task; only retrieval tasks run here"
    assert found.not_run["TRECCOVID"].startswith("the data of TRECCOVID cannot be loaded")


def test_a_row_that_would_lose_something_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="names 'CUREv1' twice"):
        parse_section(
            params(tmp_path).model_dump() | {"hub_tasks": [{"name": "CUREv1"}, {"name": "CUREv1", "subsets": ["es"]}]},
            EvaluateParams, "evaluate",
        )  # fmt: skip
    with pytest.raises(ParamsError, match=r"'CUREv1' has no subset 'xx'; it has en, es, fr"):
        load_named_tasks(params(tmp_path, {"name": "CUREv1", "subsets": ["en", "xx"]}))


def test_an_aggregate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="an aggregate of other tasks"):
        load_named_tasks(params(tmp_path, {"name": "CQADupstackRetrieval"}))


def test_data_that_is_cached_in_part_is_no_end_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Couldn't find cache for mteb/nfcorpus")

    monkeypatch.setattr("mteb.abstasks.retrieval.AbsTaskRetrieval.load_data", refuse)
    found = evaluate(params(tmp_path, {"name": "NFCorpus"}))
    assert "Couldn't find cache" in found.not_run["NFCorpus"]


@pytest.mark.parametrize(
    "error",
    [HTTPError("403 Forbidden"), DatasetGenerationError("a broken file"), RuntimeError("scripts are not supported")],
)
def test_a_proxy_that_refuses_and_data_that_cannot_be_read_are_no_end_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("mteb.abstasks.retrieval.AbsTaskRetrieval.load_data", refuse)
    found = evaluate(params(tmp_path, {"name": "NFCorpus"}))
    assert found.not_run["NFCorpus"] == f"the data of NFCorpus cannot be loaded: {error}"


def test_a_split_that_the_data_lack_is_named(tmp_path: Path) -> None:
    rows = [{"question": f"the {word}?", "answer": f"about the {word}"} for word in WORDS]
    write_dataset(tmp_path / "xhluca/publichealth-qa", {"english": {"test": rows}})
    found = evaluate(params(tmp_path, {"name": "PublicHealthQA", "subsets": ["english"], "splits": ["dev"]}))
    assert found.not_run == {"PublicHealthQA": "the data of PublicHealthQA have no split 'dev' of 'english'"}


def test_without_hub_and_copy_every_task_is_named(tmp_path: Path) -> None:
    found = evaluate(params(tmp_path, *PAPER))
    assert sorted(found.not_run) == sorted(row["name"] for row in PAPER)
    assert found.hub_tasks == found.results == {}
    with pytest.raises(ParamsError, match=r"hub_folder: 'nowhere' is no folder"):
        load_named_tasks(params(Path("nowhere")))


OTHER, PINNED = "1" * 40, "2" * 40


def fill_cache(folder: Path, commits: list[str]) -> None:
    """The library's cache of `folder` as the hub's data set owner/set, at some commits, the last one the newest."""
    for number, commit in enumerate(commits):
        copy = datasets.load_dataset(str(folder), split="train")
        made = Path(copy.cache_files[0]["filename"]).parent
        target = Path(str(datasets.config.HF_DATASETS_CACHE)) / "owner___set" / "default" / made.parent.name / commit
        shutil.copytree(made, target)
        os.utime(target, (number + 1, number + 1))


def test_a_cached_data_set_of_another_commit_is_refused(tmp_path: Path) -> None:
    rows = [{"query": f"the {word}?", "passage": f"about the {word}"} for word in WORDS]
    write_dataset(tmp_path / "set", {"default": {"train": rows}})
    names = {"anchor": "query", "positive": "passage"}
    fill_cache(tmp_path / "set", [OTHER])
    with pytest.raises(DataError, match="its cache has owner/set at 111111111111, not at 222222222222 as asked for"):
        read_hub("owner/set", names, revision=PINNED)
    assert read_hub("owner/set", names, revision=OTHER).height == len(WORDS)


def test_cached_csv_files_that_were_read_without_words_like_na_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_text("query,passage\nwhich allele,NA\nwhich gene,BRCA1\n")
    fill_cache(tmp_path / "set", [PINNED])
    with pytest.raises(DataError, match="what is cached of its csv files lacks words like NA"):
        read_hub("owner/set", {"anchor": "query", "positive": "passage"}, revision=PINNED)


class FromHub(LocalTask):
    """A task that says its data are owner/set at PINNED, and loads what the library gives for that."""

    def __init__(self, keeps_tables: bool) -> None:
        super().__init__(make_task("Far"), PINNED)
        self.metadata = self.metadata.model_copy(update={"dataset": {"path": "owner/set", "revision": PINNED}})
        self.keeps_tables = keeps_tables

    def load_data(self, **options: Any) -> None:
        table = datasets.load_dataset("owner/set", split="train", revision=PINNED)
        super().load_data(**options)
        if self.keeps_tables:
            self.dataset["default"]["test"]["corpus"] = table
            return
        self.dataset = None  # type: ignore[assignment]  # tasks of mteb's older form hold plain dictionaries
        self.corpus = {"test": {row["id"]: {"text": row["text"]} for row in table}}
        self.queries, self.relevant_docs = {"test": self._task.queries}, {"test": self._task.qrels}


@pytest.mark.parametrize("keeps_tables", [True, False])
def test_a_task_whose_cached_data_are_of_another_commit_is_not_run(tmp_path: Path, keeps_tables: bool) -> None:
    passages = [{"id": key, "text": passage.text} for key, passage in make_task().corpus.items()]
    write_dataset(tmp_path / "set", {"default": {"train": passages}})
    fill_cache(tmp_path / "set", [PINNED, OTHER])
    evaluation = Evaluation()
    run_hub(evaluation, LexicalModel("bm25"), [NamedTask(FromHub(keeps_tables), "general")])
    assert "its cache has owner/set at 111111111111" in evaluation.not_run["Far"]
    assert evaluation.hub_tasks == {}
    shutil.rmtree(next(Path(str(datasets.config.HF_DATASETS_CACHE)).glob("owner___set/*/*/1*")))
    run_hub(evaluation, LexicalModel("bm25"), [NamedTask(FromHub(keeps_tables), "general")])
    assert evaluation.hub_tasks["Far"]["queries"] > 0
