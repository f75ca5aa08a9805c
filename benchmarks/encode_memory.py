"""Peak memory of evaluating a dense model on corpora of growing size: what is held is a chunk, not the corpus.

usage: python -m benchmarks.encode_memory [--passages 50000 200000 800000] [--words 60] [--width 384] [--output FILE]

The vectors are made from a hash of the text, so that only the evaluation is measured. Each size runs in a process of
its own; memory is what it has above its imports, beside the sizes that all texts and all vectors would have.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import peak_megabytes, run_worker, write_figures
from stm.progress import say


class Hashed:
    """Unit vectors from the text alone."""

    def __init__(self, width: int) -> None:
        self._width = width

    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "") -> Any:
        """Return float32 unit rows [N, D]."""
        rows = np.empty((len(texts), self._width), dtype=np.float32)
        for place, text in enumerate(texts):
            rows[place] = np.random.default_rng(abs(hash(text)) % 2**32).standard_normal(self._width)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_corpus(folder: Path, passages: int, words: int) -> None:
    """A task of that many passages in BEIR layout, written as a stream."""
    from stm.files import write_jsonl, write_text

    rng = np.random.default_rng(1)
    rows = ({"_id": f"p{i}", "title": "", "text": " ".join(f"w{n}" for n in rng.integers(0, 50_000, words))}
            for i in range(passages))  # fmt: skip
    write_jsonl(folder / "corpus.jsonl", rows)
    write_jsonl(folder / "queries.jsonl", ({"_id": f"q{i}", "text": f"w{i} w{i + 1}"} for i in range(20)))
    write_text(folder / "qrels" / "test.tsv", "\n".join(["q\tp\ts", *(f"q{i}\tp{i}\t1" for i in range(20))]) + "\n")


def work(folder: Path, width: int) -> dict[str, float]:
    """Evaluate in this process."""
    import mteb  # noqa: F401 - imports are not what is measured

    from stm.evaluate.models import DenseModel
    from stm.evaluate.record import Evaluation, read_local_tasks, run_local
    from stm.evaluate.robustness import ChangedQueries

    at_start = peak_megabytes()
    started, model = time.perf_counter(), DenseModel(Hashed(width), {}, "hashed", "1")
    for task, revision in read_local_tasks(folder):
        changed = ChangedQueries(model, task, 10, 1)
        with model.watched(changed.search):
            run_local(Evaluation(), model, [(task, revision)])
        changed.scores()
    peak = peak_megabytes()
    return {"seconds": time.perf_counter() - started, "peak_mb": peak, "above_imports_mb": peak - at_start}


def main() -> None:
    """Run the benchmark, or one of its worker processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, nargs="+", default=[50_000, 200_000, 800_000])
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--output", default="benchmarks/results/encode_memory.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sys.stdout.write(json.dumps(work(options.worker, options.width)) + "\n")
        return
    results = {}
    for passages in options.passages:
        with tempfile.TemporaryDirectory() as scratch:
            write_corpus(Path(scratch, "task"), passages, options.words)
            size = Path(scratch, "task", "corpus.jsonl").stat().st_size / 1e6
            row = run_worker("benchmarks.encode_memory", "--worker", scratch, "--width", str(options.width))
        results[passages] = {**row, "texts_mb": size, "vectors_mb": passages * options.width * 4 / 1e6}
        say(f"encode_memory: {passages} passages: {row['above_imports_mb']:.0f} MB above imports")
    settings = {"words": options.words, "width": options.width}
    write_figures(options.output, ("mteb", "datasets", "numpy", "pyarrow"), settings, results=results)


if __name__ == "__main__":
    main()
