"""nDCG@10 of this project's evaluation against mteb's own runner with a plain SentenceTransformer, and published
figures.

usage: python -m benchmarks.mteb_parity --data FOLDER --model FOLDER [--tasks nfcorpus feedbackqa] [--max-queries 0]
[--max-passages 0] [--vectors-only] [--output FILE]

`--data` holds BEIR folders; `--model` is a sentence-transformers folder, by default taken for all-MiniLM-L6-v2. mteb
runs the model first, and its vectors are kept: with the very same vectors the two must agree to 1e-6. The reference is
not rounded: pytrec_eval on the rankings that mteb saved. BM25 follows, and the project's own encoder, which takes as
long again and is left out by `--vectors-only`. The file is written after every task.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytrec_eval

from benchmarks.figures import make_parser, write_figures
from stm.evaluate.dense import open_model
from stm.evaluate.lexical import LexicalModel
from stm.evaluate.models import DenseModel
from stm.evaluate.run import run_task
from stm.evaluate.tasks import SPLIT, SUBSET, LocalTask
from stm.files import read_json, sha256_tree
from stm.model_hash import hash_model
from stm.models import load_model
from stm.params.evaluate import EvaluateParams
from stm.progress import say
from stm.prompts import own_prompts
from stm.tasks import Task, cap_task, read_task
from stm.text_encoder import Floats

PUBLISHED = {"nfcorpus": {"all-MiniLM-L6-v2": 0.316, "BM25": 0.321}}  # whole test split
NAMES = {"nfcorpus": "NFCorpus", "feedbackqa": "FeedbackQA"}
TOLERANCE, PUBLISHED_TOLERANCE = 1e-6, 0.005
PACKAGES = ("mteb", "pytrec-eval-terrier", "sentence-transformers", "transformers", "torch", "bm25s", "numpy")


class Replay:
    """Gives back recorded vectors; the prompt names the side."""

    def __init__(self, vectors: dict[str, dict[str, Floats]]) -> None:
        self._vectors = vectors

    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "") -> Floats:
        """The recorded rows of the texts, scaled to length 1 as mteb's cosine does."""
        rows = np.stack([self._vectors[prompt][text] for text in texts])
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def record(method: Callable[..., Any], kept: dict[str, Floats]) -> Callable[..., Any]:
    """The same method, which also keeps a vector per text."""

    def call(texts: Sequence[str], *arguments: Any, **options: Any) -> Any:
        rows = method(texts, *arguments, **options)
        kept.update({text: np.asarray(row, dtype=np.float32) for text, row in zip(texts, rows, strict=True)})
        return rows

    return call


def run_reference(model: Any, task: Task) -> tuple[float, float]:
    """nDCG@10 by mteb's own runner, from its saved rankings, and as mteb rounds it."""
    local = LocalTask(task, "reference")
    with tempfile.TemporaryDirectory() as scratch:
        results = mteb.evaluate(model, local, co2_tracker=False, cache=None, prediction_folder=scratch)
        run = read_json(Path(scratch) / local.prediction_file_name)[SUBSET][SPLIT]
    qrels = {query: dict(judged) for query, judged in task.qrels.items() if judged}
    scores = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    exact = sum(row["ndcg_cut_10"] for row in scores.values()) / len(scores)
    return exact, float(results.task_results[0].scores[SPLIT][0]["ndcg_at_10"])


def compare(folder: Path, task: Task, with_own: bool) -> dict[str, Any]:
    """All figures of one task, those of the project's own encoder on demand."""
    model = load_model(folder)
    vectors: dict[str, dict[str, Floats]] = {"query": {}, "document": {}}
    prompts = own_prompts(model.prompts)
    model.encode_query = record(model.encode_query, vectors["query"])
    model.encode_document = record(model.encode_document, vectors["document"])
    started = time.perf_counter()
    exact, rounded = run_reference(model, task)
    plain_seconds = time.perf_counter() - started
    same = DenseModel(Replay(vectors), {side: side for side in vectors}, "replayed", "1")
    replayed = run_task(same, LocalTask(task, "1"))[0][SPLIT, SUBSET].ndcg_at_10
    figures = {
        "queries": len(task.queries), "passages": len(task.corpus), "prompts": prompts,
        "mteb": exact, "mteb_rounded": rounded, "same_vectors": replayed, "difference": abs(replayed - exact),
        "bm25": run_task(LexicalModel("bm25"), LocalTask(task, "1"))[0][SPLIT, SUBSET].ndcg_at_10,
        "plain_seconds": plain_seconds,
    }  # fmt: skip
    if with_own:
        params = EvaluateParams(batch_tokens=0, store_megabytes=0)
        opened = open_model("own", folder, hash_model(folder), params, prompts)
        own = run_task(opened, LocalTask(task, "1"))[0][SPLIT, SUBSET]
        figures |= {"own_encoder": own.ndcg_at_10, "own_seconds": own.seconds}
    return figures


def judge(name: str, row: dict[str, Any], is_whole: bool) -> dict[str, bool]:
    """Which of the promised figures hold."""
    held = {"same_vectors_within_1e-6": row["difference"] <= TOLERANCE}
    published = PUBLISHED.get(name, {}) if is_whole else {}
    for model, key in (("all-MiniLM-L6-v2", "mteb"), ("all-MiniLM-L6-v2", "own_encoder"), ("BM25", "bm25")):
        if model in published and key in row:
            held[f"{key}_within_.005_of_published"] = abs(row[key] - published[model]) <= PUBLISHED_TOLERANCE
    return held


def main() -> None:
    """Run the comparison."""
    parser = make_parser(__doc__, "mteb_parity")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["nfcorpus", "feedbackqa"])
    parser.add_argument("--max-queries", type=int, default=0)
    parser.add_argument("--max-passages", type=int, default=0)
    parser.add_argument("--vectors-only", action="store_true")
    options = parser.parse_args()
    is_whole, results = not options.max_queries and not options.max_passages, {}
    settings = {"model": options.model.name, "sha256": sha256_tree(options.model), "is_whole": is_whole}
    for name in options.tasks:
        task = read_task(options.data / name, "test", NAMES.get(name, name))
        if not is_whole:
            task = cap_task(task, options.max_queries, options.max_passages, 1)
        row = compare(options.model, task, not options.vectors_only)
        results[name] = {**row, "held": judge(name, row, is_whole), "published": PUBLISHED.get(name, {})}
        say(f"{name}: mteb {row['mteb']:.6f}, same vectors {row['same_vectors']:.6f}, bm25 {row['bm25']:.4f}")
        write_figures(options.output, PACKAGES, settings, results=results)


if __name__ == "__main__":
    main()
