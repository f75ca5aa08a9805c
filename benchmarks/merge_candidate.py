"""One candidate of the coefficient search, merge and score: mixed in memory and scored on reduced dev, against writing
the model with SentenceTransformer.merge and encoding everything.

usage: python -m benchmarks.merge_candidate --project FOLDER [--runs 3] [--share 1.0]

FOLDER is a project after `dvc repro select`. Each run is a process of its own; models that both sides keep in memory
between candidates (ours: the base; theirs: four experts as full models and the base) are loaded before the clock
starts. Theirs then merges, writes, loads what was written, and encodes with SentenceTransformer.encode: once the same
reduced dev texts as ours, once the whole dev tasks, which are made anew without caps. With --share below 1 a random
part of the whole tasks' texts is encoded and the time divided by the share, which the result says. All times are CPU
seconds of all threads, so that other loads on the machine do not count; elapsed seconds stand beside ours.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import make_parser, print_result, run_sides, write_figures
from stm.deltas import add_adapter, read_adapter
from stm.encode import Encoder
from stm.merge.dev import DevSet, make_dev_set, query_texts, score_embeddings
from stm.merge.experts import read_experts
from stm.merge.recipe import Recipe
from stm.models import load_model
from stm.params.base import load_section
from stm.params.merge import MergeParams
from stm.params.prepare import PrepareParams
from stm.prompts import own_prompts
from stm.tasks import Task, read_tasks, write_task

PACKAGES = ("torch", "transformers", "sentence-transformers", "mergekit")


def adapters(project: Path) -> dict[str, Path]:
    """The selected experts' folders; the program ends with one sentence where nothing has been trained."""
    folders = {path.name: path for path in sorted((project / "models/selected").glob("*/"))}
    if not folders:
        raise SystemExit(f"error: {project / 'models/selected'} holds no experts; run `make repro` first")
    return folders


def reduced(project: Path, tasks: Sequence[Task]) -> DevSet:
    """Dev as the merge stage reduces it."""
    params = load_section("merge", MergeParams, project / "params.yaml")
    return make_dev_set(tasks, params.tasks, params.max_queries, params.max_passages, params.seed)


def weights_of(names: Sequence[str]) -> dict[str, float]:
    """Some weights that are not uniform."""
    return {name: round(0.1 + 0.8 * index / len(names), 2) for index, name in enumerate(names)}


def measure_ours(project: Path) -> dict[str, float]:
    """Mix in memory, encode reduced dev, score."""
    from stm.merge.evaluator import Evaluator
    from stm.merge.mixer import Mixer

    dev = reduced(project, read_tasks(project / "data/tasks/dev", "dev"))
    experts = read_experts(project / "models/warm_up", adapters(project))
    model = load_model(experts.base)
    with Mixer(model, experts) as mixer:
        evaluator = Evaluator(mixer, Encoder(model), dev, {"base": own_prompts(model.prompts)})
        evaluator.evaluate("first", Recipe("linear", dict.fromkeys(experts.names, 0.25)))  # warms caches and threads
        started = time.process_time()
        mixer.mix(Recipe("linear", weights_of(experts.names)))
        mixed = time.process_time() - started
        trial = evaluator.evaluate("candidate", Recipe("linear", weights_of(experts.names)))
        seconds = time.process_time() - started - mixed
    return {
        "merge_seconds": mixed, "seconds": seconds, "elapsed_seconds": trial.seconds, "tokens": trial.tokens,
        "texts": count_texts(dev),
    }  # fmt: skip


def count_texts(dev: DevSet) -> int:
    """Queries and distinct passages."""
    return len(dev.texts) + len(query_texts(dev))


def measure_theirs(project: Path, whole: Path, share: float) -> dict[str, float]:
    """Merge full models, write, load, encode the reduced and the whole dev tasks, score."""
    from sentence_transformers import SentenceTransformer

    tasks = read_tasks(whole, "dev")
    everything = make_dev_set(tasks, [], 0, 0, 0)
    small = reduced(project, read_tasks(project / "data/tasks/dev", "dev"))
    folders = adapters(project)
    base, models = load_model(project / "models/warm_up"), []
    for folder in folders.values():
        models.append(load_model(project / "models/warm_up"))
        add_adapter(models[-1], read_adapter(folder))
    parameters = {"weight": dict(enumerate(weights_of(list(folders)).values()))}
    models[0].encode(small.texts[:64])  # warms caches and threads
    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        SentenceTransformer.merge(models, "linear", parameters=parameters).save(scratch)
        merged = SentenceTransformer(scratch, device="cpu", model_kwargs={"dtype": "float32"})
        merged.prompts = base.prompts
        written = time.process_time() - started
        small_seconds = encode_and_score(merged, small, 1.0)
        whole_seconds = encode_and_score(merged, everything, share)
    return {
        "merge_seconds": written, "same_texts_seconds": written + small_seconds, "same_texts": count_texts(small),
        "everything_seconds": written + whole_seconds, "everything_texts": count_texts(everything),
        "everything_share_encoded": share,
    }  # fmt: skip


def encode_and_score(model: Any, dev: DevSet, share: float) -> float:
    """Seconds to encode and score all texts, from a random `share` of them."""
    rng = random.Random(0)
    queries, passages = query_texts(dev), list(dev.texts)
    if share < 1:
        queries, passages = (rng.sample(texts, max(1, round(share * len(texts)))) for texts in (queries, passages))
    started = time.process_time()
    found = [
        model.encode(texts, prompt=model.prompts.get(name) or "", normalize_embeddings=True)
        for name, texts in (("query", queries), ("document", passages))
    ]
    if share == 1:
        score_embeddings(dev, np.asarray(found[0]), np.asarray(found[1]))
    return (time.process_time() - started) / share


def write_whole_tasks(params: Path, folder: Path) -> None:
    """The dev tasks without caps."""
    from stm.prepare.build import load_tasks
    from stm.prepare.embedded import Corpora

    settings = load_section("prepare", PrepareParams, params)
    for task in load_tasks(settings, "dev", Corpora()):
        write_task(task, folder / task.name, "dev")


def main() -> None:
    """Run the benchmark, or one of its worker processes."""
    parser = make_parser(__doc__, "merge_candidate")
    parser.add_argument("--project", default=".")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the whole tasks' texts that theirs encodes")
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--whole", help=argparse.SUPPRESS)
    options = parser.parse_args()
    project = Path(options.project)
    if options.worker:
        print_result(
            measure_ours(project)
            if options.worker == "ours"
            else measure_theirs(project, Path(options.whole), options.share)
        )
        return
    adapters(project)
    with tempfile.TemporaryDirectory() as whole:
        write_whole_tasks(project / "params.yaml", Path(whole))
        same = ("--project", options.project, "--whole", whole, "--share", str(options.share))
        sides = run_sides("benchmarks.merge_candidate", ("ours", "theirs"), options.runs, *same)
    ours = sides["ours"]["seconds"]["median"]
    ratios = {key: sides["theirs"][f"{key}_seconds"]["median"] / ours for key in ("same_texts", "everything")}
    write_figures(options.output, PACKAGES, vars(options), **sides, theirs_over_ours=ratios)
    print_result(ratios)


if __name__ == "__main__":
    main()
