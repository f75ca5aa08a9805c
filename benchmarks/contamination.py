"""Contamination of training rows by evaluation passages at scale: time, peak memory, and recall of planted copies.

usage: python -m benchmarks.contamination [--rows 1000000] [--passages 1000000] [--planted 3000] [--output FILE]

Texts are words of WordNet's glosses drawn by their frequency, 30 to 90 in a passage. A row has a query, a positive and
a hard negative. Planted positives repeat an evaluation passage: exactly, in capitals and with other punctuation, or
with one word in thirty replaced and words before and after. The work is done in a process of its own, whose peak memory
includes making the texts; the times, by the clock and of all cores together, do not.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl

from benchmarks.figures import make_parser, peak_megabytes, print_result, run_worker, write_figures
from stm.prepare.contamination import EvaluationIndex
from stm.prepare.decontamination import Counts, decontaminate
from stm.prepare.embedded import Corpora
from stm.progress import say
from stm.tasks import Passage, Task

KINDS = ("exact", "normalised", "near")
TASKS, CHUNK, MAX_OVERLAP = 10, 50_000, 0.5


class Stopwatch(dict[str, float]):
    """Seconds by the clock and, under the name with ` cpu`, of processor time, added up per name."""

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add what the block takes."""
        clock, cpu = time.perf_counter(), time.process_time()
        yield
        taken = {name: time.perf_counter() - clock, f"{name} cpu": time.process_time() - cpu}
        self.update({key: self.get(key, 0.0) + seconds for key, seconds in taken.items()})


class Writer:
    """Writes texts of words that are drawn by their frequency."""

    def __init__(self, seed: int) -> None:
        counts = Counter(word for s in Corpora().wordnet.synsets.values() for word in s.gloss.lower().split())
        self._words = np.array([word.strip(",;:().'`\"") or "of" for word in counts])
        shares = np.array(list(counts.values()), dtype=np.float64)
        self._cumulated = np.cumsum(shares / shares.sum())
        self._rng = np.random.default_rng(seed)

    def texts(self, count: int, shortest: int, longest: int) -> list[str]:
        """`count` texts of `shortest` to `longest` words."""
        lengths = self._rng.integers(shortest, longest + 1, count)
        drawn = np.searchsorted(self._cumulated, self._rng.random(int(lengths.sum()))).clip(max=len(self._words) - 1)
        words, ends = self._words[drawn].tolist(), np.cumsum(lengths).tolist()
        return [" ".join(words[end - size : end]) for end, size in zip(ends, lengths.tolist(), strict=True)]


def make_tasks(writer: Writer, passages: int, planted: int, sources: list[str], watch: Stopwatch) -> Iterator[Task]:
    """Evaluation tasks one by one; the first passages of each are kept in `sources` for planting."""
    for number in range(TASKS):
        with watch.measure("making"):
            texts = writer.texts(passages // TASKS, 30, 90)
            sources += texts[: -(-planted // TASKS)]
            queries = {f"q{i}": text for i, text in enumerate(writer.texts(max(1, passages // TASKS // 20), 6, 15))}
            corpus = {f"p{i}": Passage("", text) for i, text in enumerate(texts)}
        yield Task(f"task-{number}", "general", corpus, queries, {})


def copy_passage(text: str, kind: str, writer: Writer, rng: random.Random) -> str:
    """The passage as a training row might hold it."""
    if kind == "exact":
        return text
    words = text.split(" ")
    if kind == "normalised":
        return ",  ".join(word.upper() for word in words) + " !"
    fresh = writer.texts(1, 40, 40)[0].split(" ")
    for place in rng.sample(range(len(words)), max(1, len(words) // 30)):
        words[place] = fresh[place % 20] + "x"
    return " ".join([*fresh[20:25], *words, *fresh[25:30]])


def make_rows(
    writer: Writer, rows: int, sources: Sequence[str], rng: random.Random
) -> Iterator[tuple[pl.DataFrame, dict[int, str]]]:
    """Frames of rows, and the kind of each planted row by its number."""
    places = {row: index for index, row in enumerate(sorted(rng.sample(range(rows), min(rows, len(sources)))))}
    for start in range(0, rows, CHUNK):
        size = min(CHUNK, rows - start)
        positives, kinds = writer.texts(size, 30, 90), {}
        for row in range(start, start + size):
            if row in places:
                kinds[row] = KINDS[places[row] % len(KINDS)]
                positives[row - start] = copy_passage(sources[places[row]], kinds[row], writer, rng)
        columns = {"row": range(start, start + size), "anchor": writer.texts(size, 6, 15), "positive": positives,
                   "negatives": [[text] for text in writer.texts(size, 30, 90)], "synthetic": [""] * size}  # fmt: skip
        yield pl.DataFrame(columns), kinds


def work(rows: int, passages: int, planted: int) -> dict[str, Any]:
    """Index the passages, check the rows, and compare what is found with what was planted."""
    writer, rng, watch = Writer(1), random.Random(2), Stopwatch()
    sources: list[str] = []
    with watch.measure("index"):
        index = EvaluationIndex(make_tasks(writer, passages, planted, sources, watch), MAX_OVERLAP)
    index_seconds, index_cpu = watch["index"] - watch["making"], watch["index cpu"] - watch["making cpu"]
    after_index = peak_megabytes()
    asked: Counter[str] = Counter()
    found: Counter[str] = Counter()
    counts = Counts()
    for frame, kinds in make_rows(writer, rows, sources, rng):
        with watch.measure("check"):
            clean, own = decontaminate(frame, index)
        counts.add(own)
        gone = set(frame["row"]) - set(clean["row"])
        asked.update(kinds.values())
        found.update(kinds.get(row, "unplanted") for row in gone)
    return {
        "index_seconds": index_seconds, "check_seconds": watch["check"], "seconds": index_seconds + watch["check"],
        "cpu_seconds": index_cpu + watch["check cpu"], "index": index.describe(),
        "peak_mb_after_index": after_index, "peak_mb": peak_megabytes(),
        "planted": dict(asked), "recall": {kind: found[kind] / asked[kind] for kind in KINDS if asked[kind]},
        "unplanted_found": found["unplanted"], "negatives_found": counts.negatives_found,
    }  # fmt: skip


def main() -> None:
    """Run the benchmark, or its worker process."""
    parser = make_parser(__doc__, "contamination")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--planted", type=int, default=3000)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print_result(work(options.rows, options.passages, options.planted))
        return
    sizes = [f"--{name}={getattr(options, name)}" for name in ("rows", "passages", "planted")]
    results = run_worker("benchmarks.contamination", "--worker", *sizes)
    settings = {"rows": options.rows, "passages": options.passages, "max_overlap": MAX_OVERLAP}
    write_figures(options.output, ("numpy", "polars"), settings, results=results)
    say(f"contamination: {results['seconds']:.0f} s, {results['cpu_seconds']:.0f} s of processor time, "
        f"{results['peak_mb']:.0f} MB, recall {results['recall']}")  # fmt: skip


if __name__ == "__main__":
    main()
