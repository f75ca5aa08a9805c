"""Four LoRA experts to one model on disk: this project's streaming merge against SentenceTransformer.merge from the
same experts.

usage: python -m benchmarks.merge_methods [--shapes smollm2-135m qwen3-0.6b] [--method linear] [--runs 3]

Each run is a process of its own; its time starts after imports, its peak memory is that of the whole process. Seconds
are elapsed; CPU seconds, of all threads, are what to trust where other loads run beside. The other side gets its four
full models in memory, made from the adapters, since it takes no adapters; nothing is written for it but the result.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import make_parser, measure_run, print_result, run_sides, run_worker, write_figures
from benchmarks.shapes import SHAPES, build_shape

WEIGHTS = {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}
RANK = 16
NAME = "benchmarks.merge_methods"
PACKAGES = ("torch", "transformers", "sentence-transformers", "mergekit", "safetensors")


def prepare(shape: str, folder: Path) -> None:
    """Write a random base of the shape and four random adapters on all its linear layers."""
    from tests.pico import MAX_TOKENS, pico_adapter, pico_tokenizer

    base = build_shape(SHAPES[shape], pico_tokenizer(), MAX_TOKENS, folder / "base")
    for seed, name in enumerate(WEIGHTS):
        pico_adapter(base, folder / name, rank=RANK, seed=seed, scale=0.02)


def merge_ours(folder: Path, method: str) -> None:
    """The streaming merge, adapters in, folder out."""
    from stm.merge.experts import read_experts
    from stm.merge.materialise import materialise
    from stm.merge.recipe import Recipe

    experts = read_experts(folder / "base", {name: folder / name for name in WEIGHTS})
    densities = dict.fromkeys(WEIGHTS, 0.5)
    materialise(experts, Recipe(method, WEIGHTS, densities), {"query": "", "document": ""}, folder / "ours")


def merge_theirs(folder: Path, method: str) -> None:
    """Full models from the adapters, SentenceTransformer.merge, save."""
    import torch
    from sentence_transformers import SentenceTransformer

    from stm.deltas import add_adapter, read_adapter

    def load(name: str = "") -> SentenceTransformer:
        model = SentenceTransformer(str(folder / "base"), device="cpu", model_kwargs={"dtype": "auto"})
        if name:
            add_adapter(model, read_adapter(folder / name))
        return model

    parameters: dict[str, Any] = {"weight": dict(enumerate(WEIGHTS.values()))}
    if method in ("ties", "dare_linear", "dare_ties"):
        parameters["density"] = 0.5
    base = None if method == "linear" else load()
    torch.manual_seed(0)
    merged = SentenceTransformer.merge([load(name) for name in WEIGHTS], method, base_model=base, parameters=parameters)
    merged.save(str(folder / "theirs"))


def work(side: str, folder: Path, method: str) -> dict[str, float]:
    """One run in this process."""
    import torch

    if side == "ours":
        import stm.merge.materialise  # noqa: F401 - imports are not what is timed
    else:
        import mergekit.merge_methods  # noqa: F401
        import sentence_transformers  # noqa: F401
    torch.set_num_threads(2)
    merge = merge_ours if side == "ours" else merge_theirs
    return measure_run(lambda: merge(folder, method))[1]


def largest_difference(folder: Path) -> float:
    """The largest difference between the weights that both sides wrote."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / side / "model.safetensors") for side in ("ours", "theirs"))
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


def compare(shape: str, method: str, runs: int) -> dict[str, Any]:
    """Both sides in turn, `runs` times each, from the same folder."""
    with tempfile.TemporaryDirectory() as scratch:
        run_worker(NAME, "--prepare", scratch, "--shapes", shape)
        sides = run_sides(NAME, ("ours", "theirs"), runs, "--folder", scratch, "--method", method)
        difference = largest_difference(Path(scratch)) if not method.startswith("dare") else None
    keys = ("seconds", "cpu_seconds", "peak_mb")
    ratios = {key: sides["theirs"][key]["median"] / sides["ours"][key]["median"] for key in keys}
    return {
        "shape": SHAPES[shape],
        "method": method,
        "runs": runs,
        **sides,
        "theirs_over_ours": ratios,
        "largest_difference": difference,
    }


def main() -> None:
    """Run the benchmark, or one of its worker processes."""
    parser = make_parser(__doc__, "merge_methods")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["smollm2-135m", "qwen3-0.6b"])
    parser.add_argument("--method", default="linear")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(options.shapes[0], Path(options.prepare))
    elif options.worker:
        print_result(work(options.worker, Path(options.folder), options.method))
    else:
        from stm.progress import say

        results = {}
        for shape in options.shapes:
            results[shape] = compare(shape, options.method, options.runs)
            say(f"{shape}: {json.dumps(results[shape]['theirs_over_ours'])} (theirs over ours)")
        settings = {"shapes": options.shapes, "method": options.method, "runs": options.runs, "rank": RANK}
        write_figures(options.output, PACKAGES, settings, results=results)


if __name__ == "__main__":
    main()
