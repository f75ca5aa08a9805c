"""At which rate does a raw decoder become a retriever? The warm-up at several depths and rates, scored on dev.

usage: python -m benchmarks.warm_up_rates --layers 12 30 --rates 1e-4 3e-4 1e-3 --steps 60

Each training is that of the section warm_up in --params with another depth, rate, seed, number of steps or batch. Said
are the mean loss of its last ten steps beside that of embeddings that tell nothing apart, and nDCG@10 on dev, which is
what a rate may be chosen by. Before that, where the raw decoder has its massive activations: on a token of their own
before the text, or on the pooled one of some texts, which makes a start unsteady (`backbone.bos_token`). Models lie
under --work, so that an interrupted run goes on.
"""

from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.experiment import Options, build_base, build_data, check_work, keep, train_params
from benchmarks.figures import make_parser, write_figures
from benchmarks.merge_summary import average
from stm.encode import Encoder
from stm.massive import find_massive
from stm.merge.dev import DevSet, make_dev_set, score_model
from stm.models import load_model
from stm.params.backbone import BackboneParams
from stm.params.base import load_section
from stm.progress import say
from stm.prompts import own_prompts
from stm.schema import read_rows
from stm.tasks import read_tasks
from stm.train.dev import why_unlearned
from stm.warm_up import sample_texts, warm_up

PACKAGES = ("torch", "transformers", "peft")
DATA = ("params", "bos_token", "max_tokens", "pairs", "warm_up_pairs", "max_queries", "max_passages")


def build_backbone_of(options: Options, layers: int) -> Path:
    """The backbone with that many layers, once."""
    folder = Path(options.work) / f"backbone-{layers}"
    return build_base(Options(**{**vars(options), "layers": layers}), folder, bos_token=options.bos_token)


def train_at(options: Options, layers: int, rate: float, seed: int, dev: DevSet) -> dict[str, Any]:
    """One training and its score, once."""
    work = Path(options.work)
    changes = {"learning_rate": rate, "warmup_steps": options.warmup_steps, "batch_size": options.batch_size}
    params = train_params(options, "warm_up", seed, options.steps).model_copy(update=changes)
    name = f"{layers} layers, rate {rate:g}, {params.batch_size} rows, seed {seed}"
    folder = work / f"{layers}-{rate:g}-{params.warmup_steps}-{options.steps}-{params.batch_size}-{seed}"

    def train() -> dict[str, Any]:
        base = build_backbone_of(options, layers)
        report = warm_up(base, work / "data/warm_up.parquet", params, folder / "model", folder / "work")
        model = load_model(folder / "model")
        scores = score_model(dev, Encoder(model), own_prompts(model.prompts))
        last = report["history"][-10:]
        means = {key: sum(entry[key] for entry in last) / len(last) for key in ("loss", "chance")}
        return {
            "layers": layers, "rate": rate, "seed": seed, **means, "dev": average(scores.queries_overall()),
            "unlearned": why_unlearned(report["history"]), "seconds": report["seconds"],
            "losses": [round(entry["loss"], 3) for entry in report["history"]],
        }  # fmt: skip

    found: dict[str, Any] = keep(folder / "result.json", train)
    say(f"{name}: loss {found['loss']:.2f}, chance {found['chance']:.2f}, dev {found['dev']:.3f}")
    return found


def main() -> None:
    """Run the benchmark."""
    parser = make_parser(__doc__, "warm_up_rates")
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--layers", type=int, nargs="+", default=[6], help="layers of the backbone that are kept")
    parser.add_argument("--bos-token", help="token before every text, in place of backbone.bos_token")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 2e-3], help="peak learning rates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--warmup-steps", type=int, default=20, help="of these, with a rising rate")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens per text")
    parser.add_argument(
        "--pairs", type=int, default=1500, help="pairs per split, of which the warm-up's are drawn; 0: all"
    )
    parser.add_argument("--warm-up-pairs", type=int, default=4000)
    parser.add_argument("--max-queries", type=int, default=40, help="per dev task")
    parser.add_argument("--max-passages", type=int, default=60)
    parser.add_argument("--work", default=".stm/benchmarks/warm_up_rates")
    options = Options(**vars(parser.parse_args()), mined=False)
    options.bos_token = options.bos_token or load_section("backbone", BackboneParams, options.params).bos_token
    work = Path(options.work)
    check_work(options, work, DATA)
    build_data(options, work / "data")
    dev = make_dev_set(read_tasks(work / "data/tasks/dev", "dev"), [], 0, 0, 0)
    rows, found = read_rows(work / "data/warm_up.parquet"), {}
    for layers in options.layers:
        model = load_model(build_backbone_of(options, layers))
        found[layers] = find_massive(model, sample_texts(model, rows))
        shares = ", ".join(f"{key} {value:.2f}" for key, value in found[layers].items())
        say(f"{layers} layers, massive activations: {shares}")
    results = []
    for layers, rate, seed in product(options.layers, options.rates, options.seeds):
        results.append(train_at(options, layers, rate, seed, dev))
        write_figures(options.output, PACKAGES, vars(options), massive=found, trainings=results)
    say(f"written to {options.output}")


if __name__ == "__main__":
    main()
