"""What the benchmarks of training, encoding and prompt search share: their options, their clock, their tasks.

All draw from the same data and backbone, made once under `--work`. With `--shape` the backbone is one of random
weights: its vectors say nothing, its speed is that of the real one.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerFast

from benchmarks.experiment import build_base, build_data
from benchmarks.figures import spread, write_figures
from benchmarks.shapes import SHAPES, build_shape
from stm.chip import device
from stm.params.backbone import BackboneParams
from stm.params.base import load_section
from stm.tasks import Task, cap_task, read_tasks

TIMES = ("wall", "cpu")
PROFILED = 40  # rows of a profile that are kept
PACKAGES = ("torch", "transformers", "peft", "sentence-transformers")


class Clock:
    """Seconds of wall and of this process's CPU time since it was made; a GPU's queue is waited for at both ends."""

    def __init__(self) -> None:
        synchronize()
        self.started = (time.perf_counter(), time.process_time())

    def read(self) -> dict[str, float]:
        """Both times until now."""
        synchronize()
        now = (time.perf_counter(), time.process_time())
        return dict(zip(TIMES, (b - a for a, b in zip(self.started, now, strict=True)), strict=True))


def synchronize() -> None:
    """Wait until a GPU, if there is one, has done what it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def make_parser(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with the options that all have; the results go to a file of that name."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--shape", choices=SHAPES, default="", help="a model of this shape and random weights instead")
    parser.add_argument("--max_tokens", type=int, default=0, help="tokens per text; 0: as params.yaml says")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: as torch chooses")
    parser.add_argument("--profile", action="store_true", help="what our sides spend their time on, after the rounds")
    parser.add_argument("--work", default=".stm/bench/speed")
    parser.add_argument("--output", default=f"benchmarks/results/{name}.json", help="with --shape, its name is added")
    return parser


def add_caps(parser: argparse.ArgumentParser) -> None:
    """The options that cap the tasks."""
    parser.add_argument("--queries", type=int, default=40, help="per task")
    parser.add_argument("--passages", type=int, default=120, help="per task, judged ones always")


def read_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given, with the sizes of the common data, and torch at the threads asked for."""
    options = parser.parse_args()
    if options.shape and options.output == parser.get_default("output"):
        options.output = options.output.replace(".json", f"_{options.shape}.json")
    options.pairs, options.warm_up_pairs, options.max_queries, options.max_passages = 1500, 400, 60, 400
    options.mined = False
    options.max_tokens = options.max_tokens or load_section("backbone", BackboneParams, options.params).max_tokens
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def base_folder(options: argparse.Namespace) -> Path:
    """The backbone, or the model of the shape with the backbone's tokenizer, made once."""
    work = Path(options.work)
    if not options.shape:
        return build_base(options, work / f"backbone-{options.layers}-{options.max_tokens}")
    tokenizer, folder = work / "tokenizer", work / f"{options.shape}-{options.max_tokens}"
    if not tokenizer.exists():
        smallest = argparse.Namespace(**{**vars(options), "layers": 1})
        PreTrainedTokenizerFast.from_pretrained(build_base(smallest, work / "backbone-1")).save_pretrained(tokenizer)
    if not folder.exists():
        same = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        build_shape(SHAPES[options.shape], same, options.max_tokens, folder)
    return folder


def base_and_tasks(options: argparse.Namespace, part: str) -> tuple[Path, list[Task]]:
    """The backbone and the capped dev or test tasks."""
    work = Path(options.work)
    build_data(options, work / "data")
    tasks = read_tasks(work / "data/tasks" / part, part)
    return base_folder(options), [cap_task(task, options.queries, options.passages, 1) for task in tasks]


def product_rate(dtype: torch.dtype) -> dict[str, float]:
    """Floating-point operations per second of products of 512 tokens with an MLP's weight; on a GPU, of 8192 with
    8192 x 8192, many between two looks at the clock, which wait for it.
    """
    is_cpu = device().type == "cpu"
    rows, inner, outer, at_once, seconds = (512, 576, 1536, 1, 2.0) if is_cpu else (8192, 8192, 8192, 20, 0.5)
    x = torch.randn(rows, inner, device=device(), dtype=dtype)
    w = torch.randn(outer, inner, device=device(), dtype=dtype)
    torch.nn.functional.linear(x, w)
    clock, count = Clock(), 0
    while clock.read()["wall"] < seconds:
        for _ in range(at_once):
            torch.nn.functional.linear(x, w)
        count += at_once
    return {kind: count * 2 * rows * inner * outer / value for kind, value in clock.read().items()}


def profile(run: Callable[[], Any]) -> dict[str, list[dict[str, Any]]]:
    """Where one more run of each kind spends its time, the longest first: torch's operations by the shapes of their
    inputs and, on a GPU, the kernels.

    Milliseconds are the processor's own, on a GPU the GPU's; an operation's are without those of the ones it calls.
    """
    kinds, found = torch.profiler.ProfilerActivity, {}
    is_gpu = device().type == "cuda"
    with torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if is_gpu else [])], record_shapes=True) as seen:
        run()
        synchronize()
    for name, shaped in (("operations", True), *([("kernels", False)] if is_gpu else [])):
        events = [e for e in seen.key_averages(shaped) if e.device_type.name == ("CPU" if shaped else "CUDA")]
        rows = [
            {
                "name": e.key[:160], "calls": e.count, **({"shapes": str(e.input_shapes)[:240]} if shaped else {}),
                "milliseconds": round((e.self_device_time_total if is_gpu else e.self_cpu_time_total) / 1000, 2),
            }
            for e in events
        ]  # fmt: skip
        found[name] = sorted(rows, key=lambda row: -row["milliseconds"])[:PROFILED]
    return found


def count_weights(model: SentenceTransformer) -> int:
    """The weights of the decoder's linear layers that every token is multiplied with.

    Of the last layer those are keys and values alone; the rest of it is needed for one token a text, and left out.
    """
    layers = list(model[0].model.layers)
    linear = [(n, m) for layer in layers for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)]
    last = [(n, m) for n, m in layers[-1].named_modules() if isinstance(m, torch.nn.Linear)]
    spared = sum(m.weight.numel() for n, m in last if not n.endswith(("k_proj", "v_proj")))
    return sum(m.weight.numel() for _, m in linear) - spared


Times = Mapping[str, Sequence[Mapping[str, float]]]  # per side, of every round


def compare_sides(
    times: Times, rates: Sequence[Mapping[str, float]], tokens: float, operations: float
) -> dict[str, Any]:
    """Tokens per second of every side, the ratio of the times of `plain` to each of ours, and the share that ours have
    of the chip's `rates` of products, for the tokens and the operations of a round.
    """
    results: dict[str, Any] = {}
    for kind in TIMES:
        results[f"product_rate_{kind}"] = spread([rate[kind] for rate in rates])
        for side, rounds in times.items():
            seconds = [taken[kind] for taken in rounds]
            results[f"{side}_tokens_per_{kind}_second"] = spread([tokens / taken for taken in seconds])
            if side == "plain":
                continue
            name = kind if side == "ours" else f"{side}_{kind}"
            pairs = zip(times["plain"], seconds, strict=True)
            results[f"ratio_{name}"] = spread([plain[kind] / taken for plain, taken in pairs])
            used = [operations / taken / rate[kind] for taken, rate in zip(seconds, rates, strict=True)]
            results[f"fraction_of_rate_{name}"] = spread(used)
    return results


def write_results(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """The figures with the options and the threads that torch had."""
    write_figures(options.output, PACKAGES, {**vars(options), "threads": torch.get_num_threads()}, **results)
