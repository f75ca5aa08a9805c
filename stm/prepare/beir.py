"""Makes pairs from a BEIR folder and a task from pairs.

Queries and judged passages go in, a frame of CANDIDATES comes out, and the other way round. Does not read other kinds
of files.
"""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from stm.errors import DataError
from stm.files import sha256_text
from stm.prepare.candidates import CANDIDATES, make_frame
from stm.tasks import Domain, Passage, Task, read_task


def read_beir_pairs(folder: Path | str, split: str, label: str) -> pl.DataFrame:
    """One pair per query and relevant passage; passages judged 0 are the query's given negatives.

    The concept is the query, whose relevant passages are never each other's negatives.
    """
    task = read_task(folder, split)
    rows = []
    for query_id, judged in task.qrels.items():
        negatives = [task.corpus[key].full_text() for key, score in judged.items() if score <= 0]
        positives = (task.corpus[key].full_text() for key, score in judged.items() if score > 0)
        rows += [(task.queries[query_id], positive, negatives, f"{label}:{query_id}") for positive in positives]
    names = ("anchor", "positive", "negatives", "concept")
    frame = pl.DataFrame(rows, schema={name: CANDIDATES[name] for name in names}, orient="row")
    return make_frame(frame.to_dict(), str(folder))


def make_task(frame: pl.DataFrame, name: str, domain: Domain, notes: Mapping[str, Any]) -> Task:
    """A task of CANDIDATES: distinct anchors are the queries, distinct positives and negatives the corpus.

    Texts that differ in case, blanks or the sign at their end alone are one, in the spelling that comes first: no
    answer counts as wrong for that. Other signs tell texts apart, as in CD25+ and CD25-. Rows that answer themselves
    are left out. A query that is a passage as well, as in files of paraphrases, has the passage's id, and the task
    ignores identical ids: finding oneself is no answer. `DataError` if no row is left.
    """
    corpus: dict[str, Passage] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    rows = frame.filter((pl.col("anchor") != "") & (pl.col("positive") != "")).to_dicts()
    rows = [row for row in rows if _form(row["anchor"]) != _form(row["positive"])]
    if not rows:
        raise DataError(f"the task {name!r} is empty: its file holds no row with a query and another text as passage")
    for row in rows:
        for text in (row["positive"], *row["negatives"]):
            corpus.setdefault(_key("p", text), Passage("", text))
    for row in rows:
        itself = _key("p", row["anchor"])
        query = itself if itself in corpus else _key("q", row["anchor"])
        queries.setdefault(query, row["anchor"])
        qrels.setdefault(query, {})[_key("p", row["positive"])] = 1
    if not corpus.keys().isdisjoint(queries):
        notes = {**notes, "ignore_identical_ids": True}
    return Task(name, domain, corpus, queries, qrels, notes).check()


def _key(kind: str, text: str) -> str:
    return f"{kind}-{sha256_text(_form(text))[:16]}"


def _form(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .?!") or text
