"""Runs a model on tasks through mteb and keeps the scores of every query.

The rankings are mteb's; the scores per query are computed from them by `stm.metrics`, and their mean must agree with
the nDCG@10 that mteb reports, or the run fails. Knows nothing of files but a scratch folder.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import mteb
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # a proxy that refuses is no OSError
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.results import TaskResult

from stm.errors import DataError, STMError, brief
from stm.files import read_json
from stm.hub_data import folder_cache, require_cached_commit, require_commit
from stm.metrics import NDCG, RECALL, mean, missing_queries, ndcg_at_k, order_passages, recall_at_k

TOLERANCE = 1e-4  # mteb rounds to five decimals
TOP = 3  # passages per query that are kept for reading failures
DECIMALS = 6
TEXTS = ("corpus", "queries")
Run = dict[str, dict[str, float]]
LOADER_BATCH = 1024  # texts per step of mteb's data loader; batches for the model are formed by the encoder


class MissingTaskError(STMError):
    """A task's data cannot be had, for example because the hub is out of reach."""


@dataclass(frozen=True)
class TaskScores:
    """Scores of one model on one task (one split and subset of it)."""

    ndcg_at_10: float
    recall_at_10: float
    queries: int
    passages: int
    missing: int  # queries for which nothing was retrieved; they score 0
    per_query: Mapping[str, Mapping[str, float]]  # metric -> query id -> score
    same_answers: Mapping[str, str]  # query id -> an earlier query that asks for the same passages, where there is one
    top: Mapping[str, list[str]]  # query id -> ids of the first passages
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return plain data; scores per query are rounded to 1e-6."""
        rounded = {
            metric: {query_id: round(score, DECIMALS) for query_id, score in scores.items()}
            for metric, scores in self.per_query.items()
        }
        return {**vars(self), "per_query": rounded, "seconds": round(self.seconds, 1)}


def _drop(task: AbsTaskRetrieval, query_id: str, found: dict[str, float]) -> dict[str, float]:
    """What mteb leaves out before it scores: the query itself (ArguAna's rule), or whatever came first."""
    if task.ignore_identical_ids:
        found = {key: score for key, score in found.items() if key != query_id}
    if task.skip_first_result:
        found = {key: found[key] for key in order_passages(found, len(found), query_id)[1:]}
    return found


def _score(task: AbsTaskRetrieval, found: Run, split: str, subset: str, seconds: float) -> TaskScores:
    data = task.dataset[subset][split]
    qrels = data["relevant_docs"]
    run = {query_id: _drop(task, query_id, scores) for query_id, scores in found.items()}
    ndcg, recall = ndcg_at_k(qrels, run), recall_at_k(qrels, run)
    return TaskScores(
        ndcg_at_10=mean(ndcg), recall_at_10=mean(recall), queries=len(ndcg),
        passages=len(data["corpus"]), missing=len(missing_queries(qrels, run)),
        per_query={NDCG: ndcg, RECALL: recall}, same_answers=_find_same(qrels, ndcg),
        top={query_id: order_passages(run.get(query_id, {}), TOP) for query_id in ndcg}, seconds=seconds,
    )  # fmt: skip


def _find_same(qrels: Mapping[str, Mapping[str, int]], query_ids: Iterable[str]) -> dict[str, str]:
    first: dict[frozenset[str], str] = {}
    same: dict[str, str] = {}
    for query_id in query_ids:
        relevant = frozenset(passage_id for passage_id, gain in qrels[query_id].items() if gain > 0)
        if relevant and (earlier := first.setdefault(relevant, query_id)) != query_id:
            same[query_id] = earlier
    return same


def _check(scores: TaskScores, found: Run, reported: float, name: str) -> None:
    ndcg = scores.per_query[NDCG]
    answered = sum(query_id in found for query_id in ndcg)  # mteb averages over the queries that the run names
    ours = sum(ndcg.values()) / max(1, answered)
    if abs(ours - reported) > TOLERANCE:
        raise STMError(
            f"task {name!r}: nDCG@10 is {ours:.5f} by this project's contract but {reported:.5f} by mteb; "
            "one of the two changed, so no score is written. Install the locked versions"
        )


def _require_splits(task: AbsTaskRetrieval) -> None:
    for subset in task.hf_subsets or task.dataset:
        parts = task.dataset.get(subset, task.dataset)  # the data of one subset may be its splits themselves
        for split in task.eval_splits:
            if split not in parts:
                raise MissingTaskError(f"the data of {task.metadata.name} have no split {split!r} of {subset!r}")


@contextmanager
def _own_cache(source: Mapping[str, Any]) -> Iterator[None]:
    """Where the data come from a folder, have them cached by its hash, which stands for the revision."""
    shared = datasets.config.HF_DATASETS_CACHE
    if Path(str(source["path"])).is_dir():
        datasets.config.HF_DATASETS_CACHE = folder_cache(str(source["revision"]))
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = shared


def _load(task: AbsTaskRetrieval) -> None:
    """Load the task's data, of the commit that its metadata names."""
    datasets.disable_progress_bars()
    name, source = task.metadata.name, task.metadata.dataset
    try:
        with _own_cache(source):
            task.load_data()
        loaded = [data[key] for splits in (task.dataset or {}).values() for data in splits.values() for key in TEXTS]
        tables = [table for table in loaded if isinstance(table, datasets.Dataset)]
        require_commit(str(source["path"]), str(source["revision"]), tables)
        if not tables:  # a task with a loader of its own
            require_cached_commit(str(source["path"]), str(source["revision"]))
        task.convert_v1_dataset_format_to_v2(num_proc=None)
        _require_splits(task)
    except KeyError as error:
        raise MissingTaskError(f"the data of {name} have no {error}, which mteb looks for in them") from error
    except (OSError, ValueError, RuntimeError, HTTPError, DatasetsError) as error:
        # Data that are cached in part are a ValueError, data that would need code of their own a RuntimeError.
        raise MissingTaskError(f"the data of {name} cannot be loaded: {brief(error)}") from error
    except DataError as error:
        raise MissingTaskError(f"the data of {name} is not what mteb names: {error}") from error


def _without_clock(result: TaskResult) -> TaskResult:
    blank = {"evaluation_time": None, "date": None, "evaluation_phases": None, "kg_co2_emissions": None}
    return result.model_copy(update=blank)


def run_task(model: Any, task: AbsTaskRetrieval) -> tuple[dict[tuple[str, str], TaskScores], TaskResult]:
    """Run an mteb model on a task; return the scores per (split, subset), and mteb's own result without its clock.

    Raises `MissingTaskError` if the task's data cannot be loaded, and `STMError` if mteb's nDCG@10 differs from ours.
    """
    _load(task)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        results = mteb.evaluate(
            model, task, co2_tracker=False, cache=None, prediction_folder=scratch, show_progress_bar=False,
            encode_kwargs={"batch_size": LOADER_BATCH, "show_progress_bar": False},
        )  # fmt: skip
        runs = read_json(Path(scratch) / task.prediction_file_name)
    seconds = time.monotonic() - started
    result = results.task_results[0]
    scores = {}
    for split, rows in sorted(result.scores.items()):
        for row in sorted(rows, key=lambda row: str(row["hf_subset"])):
            subset = str(row["hf_subset"])
            scores[split, subset] = _score(task, runs[subset][split], split, subset, seconds)
            _check(scores[split, subset], runs[subset][split], float(row["ndcg_at_10"]), task.metadata.name)
    return scores, _without_clock(result)
