"""The embedded setting at any size, in one process: data, backbone, warm-up, experts and all-data baseline of a seed.

Used by `benchmarks.merge_seeds` and `benchmarks.warm_up_rates`. Whatever is there is kept, so that an interrupted run
goes on; a folder of other options is refused.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stm.backbone import build_backbone
from stm.files import read_json, write_json
from stm.mine.rows import mine
from stm.params.backbone import BackboneParams
from stm.params.base import load_section
from stm.params.mine import MineParams
from stm.params.prepare import PrepareParams
from stm.params.train import TrainParams
from stm.prepare.build import prepare
from stm.schema import write_rows
from stm.tasks import write_task
from stm.train.expert import Share, train_expert
from stm.warm_up import warm_up

Options = argparse.Namespace
ALL, SHORT = "all_data", "all_data short"  # of the experts' steps in sum, and of as many as one of them
# What data and models depend on; how models are merged and scored may change within one work folder.
TRAINING = (
    "params", "layers", "max_tokens", "pairs", "warm_up_pairs", "warm_up_steps", "steps", "learning_rate", "negatives",
    "max_queries", "max_passages", "mined",
)  # fmt: skip


def check_work(options: Options, folder: Path, keys: Sequence[str] = TRAINING) -> None:
    """Refuse a work folder of another setting, whose models would be taken for this one's."""
    ours = {key: getattr(options, key) for key in keys}
    path = folder / "options.json"
    if path.exists() and read_json(path) != ours:
        raise SystemExit(f"{path} is of other options; name another --work, or delete the folder")
    write_json(path, ours)


def keep(path: Path, make: Callable[[], Any]) -> Any:
    """What `path` holds, made and written there unless it exists."""
    if not path.exists():
        write_json(path, make())
    return read_json(path)


def build_data(options: Options, folder: Path) -> list[str]:
    """Pairs, warm-up mix, instructions and tasks under `folder`, once; return the splits."""
    params = load_section("prepare", PrepareParams, options.params)
    if not (folder / "done.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        mining = load_section("mine", MineParams, options.params)
        sizes = {
            "max_pairs": options.pairs, "warm_up_pairs": options.warm_up_pairs, "max_queries": options.max_queries,
            "max_passages": options.max_passages,
        }  # fmt: skip
        prepared = prepare(params.model_copy(update=sizes))
        for split, rows in prepared.pairs.items():
            write_rows(mine(rows, mining, {})[0] if options.mined else rows, folder / "pairs" / f"{split}.parquet")
            write_json(folder / f"instructions/{split}.json", {"instruction": prepared.instructions[split], "pool": []})
        write_rows(prepared.warm_up, folder / "warm_up.parquet")
        for part, tasks in prepared.tasks.items():
            for task in tasks:
                write_task(task, folder / "tasks" / part / task.name, part)
        write_json(folder / "done.json", sizes)
    return list(params.splits)


def build_base(options: Options, folder: Path, **changes: Any) -> Path:
    """The backbone of params.yaml with this run's numbers of layers and tokens, and further changes, once."""
    if not folder.exists():
        params = load_section("backbone", BackboneParams, options.params)
        sizes = {"layers": options.layers, "max_tokens": options.max_tokens}
        build_backbone(params.model_copy(update={**sizes, **changes}), folder)
    return folder


def train_params(options: Options, section: str, seed: int, steps: int) -> TrainParams:
    """A section of params.yaml with this run's seed, steps and epochs enough for them."""
    params = load_section(section, TrainParams, options.params)
    changes: dict[str, Any] = {"seed": seed, "max_steps": steps, "epochs": 1000, "must_learn": False}
    if section == "train":
        changes |= {"learning_rate": options.learning_rate, "negatives": options.negatives}
    return params.model_copy(update=changes)


def train_models(options: Options, splits: Sequence[str], data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """The models of one seed, each unless it is there; return their training reports."""
    reports: dict[str, Any] = {}

    def train(name: str, out: Path, make: Callable[[], dict[str, Any]]) -> None:
        path = folder / f"{name}.json"
        if not (out.exists() and path.exists()):
            write_json(path, {key: value for key, value in make().items() if key != "history"})
        reports[name] = read_json(path)

    base, backbone = folder / "warm_up", data.parent / "backbone"
    params = train_params(options, "warm_up", seed, options.warm_up_steps)
    train("warm_up", base, partial(warm_up, backbone, data / "warm_up.parquet", params, base, folder / "work"))
    shares = {s: Share(data / f"pairs/{s}.parquet", data / f"instructions/{s}.json") for s in splits}
    jobs = {split: ([share], options.steps) for split, share in shares.items()}
    jobs[ALL] = (list(shares.values()), options.steps)  # for each of the splits
    jobs[SHORT] = (list(shares.values()), max(1, options.steps // len(splits)))
    for name, (rows, steps) in jobs.items():
        settings, out = train_params(options, "train", seed, steps), folder / "adapters" / name
        train(name, out, partial(train_expert, base, rows, settings, out, folder / f"work-{name}", name))
    return reports
