"""Training throughput on real pairs against SentenceTransformerTrainer with PEFT: same base, rows, loss and batch size.

usage: python -m benchmarks.train_speed [--layers 12] [--batch 32] [--steps 4] [--rounds 3] [--skip 1] [--compile]
         [--plain_cached] [--profile]
       python -m benchmarks.train_speed --shape qwen3-0.6b --max_tokens 256 --batch 128 --steps 12
         --chunk_tokens 65536 --plain_cached --plain_bf16 --compile --profile

Both sides train the same LoRA factors for one epoch of the same rows, in turns; the first `--skip` rounds are not
counted. `--plain_cached` is for batches that the plain stack cannot hold: it then takes sentence-transformers' own
CachedMultipleNegativesRankingLoss, which encodes everything twice, in mini-batches of its default size unless
`--plain_mini_batch` gives another: a large GPU is faster with larger ones. Ours holds what it encodes unless
`--ours_cached` says otherwise, and the peak of memory is told, on a GPU that of its own. Without `--plain_cached` the
plain stack holds padded columns of 256 tokens in float32: 45 KB per token and layer of SmolLM2, beyond any card at 256
rows. Ours holds 24 KB per token and layer of SmolLM2 in bfloat16 and 66 KB of Qwen3-0.6B.

Tokens are those of all queries, positives and negatives without padding, the same number for both, so that the ratio of
rates is the ratio of times. Beside wall time stands CPU time, which other load disturbs less. The rate of the chip is
that of plain products of the model's own shapes in the same run; bfloat16 is measured as well, since a checkpoint that
is saved in it would be trained in it by default. On a GPU the rate is that of large products in the type that is
computed in, and `--plain_bf16` gives the plain stack its mixed precision, which it does not choose by itself. Where the
folder is saved in bfloat16, as that of qwen3-0.6b, `SentenceTransformer.add_adapter` makes its factors in bfloat16 too;
ours are always float32.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiment import build_data
from benchmarks.figures import peak_megabytes
from benchmarks.speed import (
    TIMES,
    Clock,
    base_folder,
    compare_sides,
    count_weights,
    make_parser,
    product_rate,
    profile,
    read_options,
    write_results,
)
from stm.ahead import ahead
from stm.chip import compute_dtype, device
from stm.models import load_model
from stm.params.base import load_section
from stm.params.train import TrainParams
from stm.progress import say
from stm.prompts import read_instruction, read_prompts
from stm.schema import read_rows
from stm.train.batches import Example, PromptSource, make_batch, make_examples, plan_steps
from stm.train.loop import advance, make_optimizer
from stm.train.lora import attach, trainable
from stm.train.step import Step


def read_examples(options: argparse.Namespace, base: Path, params: TrainParams) -> list[Example]:
    """Rows with a negative, of all splits in equal shares, shuffled by the seed."""
    data, wanted, found = Path(options.work) / "data", options.batch * options.steps, []
    prompts = read_prompts(base)
    splits = build_data(options, data)
    for split in splits:
        instruction, _ = read_instruction(data / f"instructions/{split}.json")
        source = PromptSource(prompts.template, prompts.document, instruction)
        examples = make_examples(read_rows(data / f"pairs/{split}.parquet"), source, params)
        found += [e for e in examples if len(e.negatives) == params.negatives][: -(-wanted // len(splits))]
    random.Random(params.seed).shuffle(found)
    return found[:wanted]


def ours(base: Path, examples: Sequence[Example], params: TrainParams) -> Callable[[], dict[str, float]]:
    """An epoch of this project's training."""
    model = load_model(base)
    parameters = trainable(attach(model, params, compute_dtype()))
    optimizer = make_optimizer(parameters, params)
    step = Step(model.train(), params)

    def epoch() -> dict[str, float]:
        clock = Clock()
        steps = plan_steps(len(examples), params)
        for batch in ahead(steps, lambda rows: step.prepare(make_batch([examples[row] for row in rows]))):
            advance(step, batch, optimizer, parameters, params.learning_rate)
        return clock.read()

    return epoch


def plain(
    base: Path, examples: Sequence[Example], params: TrainParams, scratch: str, options: argparse.Namespace
) -> Callable[[], dict[str, float]]:
    """An epoch of the plain stack with its defaults, without reports and saves."""
    from datasets import Dataset
    from peft import LoraConfig, TaskType
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        clock, seconds = Clock(), dict[str, float]()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.clock = Clock()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = self.clock.read()

    model = SentenceTransformer(str(base), device=str(device()))
    linear = {n.rsplit(".", 1)[-1] for n, m in model[0].model.named_modules() if isinstance(m, torch.nn.Linear)}
    settings = {"r": params.rank, "lora_alpha": params.alpha, "target_modules": sorted(linear)}
    model.add_adapter(LoraConfig(task_type=TaskType.FEATURE_EXTRACTION, inference_mode=False, **settings))
    columns: dict[str, list[str]] = {
        "anchor": [e.query for e in examples],
        "positive": [e.positive for e in examples],
        **{f"negative_{i}": [e.negatives[i] for e in examples] for i in range(params.negatives)},
    }
    arguments = SentenceTransformerTrainingArguments(
        output_dir=scratch, num_train_epochs=1, per_device_train_batch_size=params.batch_size,
        use_cpu=device().type == "cpu", bf16=options.plain_bf16,
        learning_rate=params.learning_rate, weight_decay=params.weight_decay, max_grad_norm=params.max_grad_norm,
        dataloader_drop_last=True, save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    kind = CachedMultipleNegativesRankingLoss if options.plain_cached else MultipleNegativesRankingLoss
    cached = {"mini_batch_size": options.plain_mini_batch} if options.plain_cached else {}
    loss, watch = kind(model, scale=1 / params.temperature, **cached), Watch()
    trainer = SentenceTransformerTrainer(
        model, arguments, train_dataset=Dataset.from_dict(columns), loss=loss, callbacks=[watch]
    )

    def epoch() -> dict[str, float]:
        trainer.train()
        return watch.seconds

    return epoch


def compare_losses(base: Path, examples: Sequence[Example], params: TrainParams) -> dict[str, float]:
    """The loss of one batch on both sides, before any training: they train the same objective."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.util import batch_to_device

    model = SentenceTransformer(str(base), device=str(device()))
    texts = [[e.query for e in examples], [e.positive for e in examples]]
    texts += [[e.negatives[i] for e in examples] for i in range(params.negatives)]
    loss = MultipleNegativesRankingLoss(model, scale=1 / params.temperature)
    step = Step(load_model(base), params)
    with torch.no_grad():
        columns = [batch_to_device(model.preprocess(column), device()) for column in texts]
        theirs = loss(columns, torch.zeros(0))
    return {"ours": step.measure(step.prepare(make_batch(examples))), "plain": float(theirs)}


def count_work(base: Path, examples: Sequence[Example]) -> dict[str, float]:
    """Per epoch: tokens of all columns without padding, and the operations that frozen linear layers need for them.

    Two operations per weight forward and two for the gradient of the input; neither factors, attention nor padding.
    """
    model = load_model(base)
    texts = [text for e in examples for text in (e.query, e.positive, *e.negatives)]
    ids = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"]
    tokens = sum(map(len, ids))
    return {"tokens": tokens, "texts": len(texts), "operations": 4.0 * count_weights(model) * tokens}


def reset_peak() -> None:
    """Forget the GPU's peak; that of a process on a CPU only grows."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gigabytes() -> float:
    """The most memory since then: of the GPU where there is one, else of the process."""
    return torch.cuda.max_memory_allocated() / 1e9 if device().type == "cuda" else peak_megabytes() / 1024


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, in turns."""
    params = load_section("train", TrainParams, options.params)
    sizes = {"batch_size": options.batch, "epochs": 1, "max_steps": 0, "negatives": 1}
    sizes |= {"chunk_tokens": options.chunk_tokens} if options.chunk_tokens else {}
    params = params.model_copy(update={**sizes, "cache_gradients": options.ours_cached})
    base = base_folder(options)
    examples = read_examples(options, base, params)
    work, loss = count_work(base, examples), compare_losses(base, examples[:16], params)
    with tempfile.TemporaryDirectory() as scratch:
        sides = {"ours": ours(base, examples, params), "plain": plain(base, examples, params, scratch, options)}
        if options.compile:
            sides["compiled"] = ours(base, examples, params.model_copy(update={"compile": True}))
        times: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        rates: list[dict[str, float]] = []
        peaks: dict[str, float] = {}  # in gigabytes in a side's first epoch; with what the other side holds at rest
        for number in range(options.rounds + options.skip):
            for name, epoch in sides.items():
                reset_peak()
                seconds = epoch()
                say(f"train_speed: {name}, round {number}: {seconds['wall']:.1f} s, CPU {seconds['cpu']:.1f} s")
                times[name] += [seconds] if number >= options.skip else []
                peaks.setdefault(name, peak_gigabytes())
            rates += [product_rate(compute_dtype())] if number >= options.skip else []
    results: dict[str, Any] = {"work": work, "peak_gb": peaks, "loss": loss}
    results |= compare_sides(times, rates, work["tokens"], work["operations"])
    is_bfloat16 = compute_dtype() == torch.bfloat16
    results["product_rate_bfloat16"] = rates[-1] if is_bfloat16 and rates else product_rate(torch.bfloat16)
    if options.profile:
        results["profile"] = {name: profile(epoch) for name, epoch in sides.items() if name != "plain"}
    return results


def main() -> None:
    """Run the benchmark."""
    parser = make_parser(__doc__, "train_speed")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip", type=int, default=1, help="first rounds that are not counted")
    parser.add_argument("--compile", action="store_true", help="a third side: ours with compiled layers")
    parser.add_argument("--plain_cached", action="store_true")
    parser.add_argument("--plain_mini_batch", type=int, default=32, help="texts of a column; with --plain_cached")
    parser.add_argument("--plain_bf16", action="store_true")
    parser.add_argument("--ours_cached", action="store_true")
    parser.add_argument("--chunk_tokens", type=int, default=0, help="of ours; 0: as params.yaml says")
    options = read_options(parser)
    results = measure(options)
    for kind in TIMES[:1] if device().type == "cuda" else TIMES:  # a CPU that waits for a GPU spins
        ratio, used = results[f"ratio_{kind}"]["median"], results[f"fraction_of_rate_{kind}"]["median"]
        say(f"train_speed: {ratio:.2f} times the plain stack by {kind} time; {used:.0%} of the rate of products")
    write_results(options, results)


if __name__ == "__main__":
    main()
