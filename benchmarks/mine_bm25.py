"""Mining hard negatives by BM25 against sentence_transformers.util.mine_hard_negatives with a small dense model.

usage: python -m benchmarks.mine_bm25 [--queries 100000] [--passages 100000] [--peer-size 0] [--runs 3] [--output FILE]

Both sides get the same queries and passages: the pairs of the embedded corpora, and pieces of their passages where
those do not suffice. With --peer-size N the peer gets N queries and N passages, and ours the same once more: only these
two are compared, and nothing is extrapolated. The peer's model has the shape of BERT-tiny (2 layers, width 128) with
random weights and a word-piece vocabulary of the passages: its negatives mean nothing, its work is that of a model of
this size. Each run is a process of its own; its time starts after imports, its peak memory is that of the whole
process.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.figures import make_parser, measure_run, print_result, run_sides, run_worker, write_figures

NAME = "benchmarks.mine_bm25"
PACKAGES = ("bm25s", "numpy", "polars", "torch", "transformers", "sentence-transformers")
NEGATIVES, RANK_FROM, RANK_TO, MAX_RATIO = 3, 2, 40, 0.95
VOCABULARY, WIDTH, LAYERS, MAX_TOKENS = 16_000, 128, 2, 128
MARGIN = round(1 - MAX_RATIO, 3)


def read_pairs() -> Iterator[tuple[str, str, list[str]]]:
    """Query, passage and given negatives of all embedded corpora."""
    from typing import get_args

    from stm.params.prepare import EmbeddedName, EmbeddedSource
    from stm.prepare.embedded import Corpora
    from stm.prepare.sources import load_source

    corpora = Corpora()
    for name in get_args(EmbeddedName):
        frame = load_source(EmbeddedSource(kind="embedded", name=name), corpora).frame
        rows = frame.select("anchor", "positive", "negatives").iter_rows()
        yield from ((query, passage, negatives) for query, passage, negatives in rows if query and passage)


def prepare(folder: Path, queries: int, passages: int) -> dict[str, int]:
    """Write rows.parquet with so many queries and distinct passages; return how much of it is real pairs."""
    from stm.schema import ROWS, write_rows

    import polars as pl  # isort: skip

    pairs = list(read_pairs())
    corpus = dict.fromkeys(islice(dict.fromkeys(passage for _, passage, _ in pairs), passages))
    chosen = [(query, passage) for query, passage, _ in pairs if passage in corpus][:queries]
    real_queries = len(chosen)
    for text in (text for *_, negatives in pairs for text in negatives):
        if len(corpus) >= passages:
            break
        corpus[text] = None
    texts = list(corpus)  # that are real
    for index in range(10 * passages):
        if len(corpus) >= passages:
            break
        words = texts[index % len(texts)].split()
        corpus[" ".join(words[index // len(texts) + 1 :][:12])] = None
    for index in range(queries - len(chosen)):
        words = texts[index % len(texts)].split()
        chosen.append((" ".join(words[index // len(texts) :][:6]) or words[0], texts[index % len(texts)]))
    used = {passage for _, passage in chosen}
    spare = [text for text in corpus if text not in used]
    # A passage that is no row's positive is in the pool as a given negative of some row.
    share = -(-len(spare) // len(chosen))
    rows = []
    for i, (query, passage) in enumerate(chosen):
        given = spare[i * share : (i + 1) * share]
        rows.append({
            "id": str(i), "anchor": query, "positive": passage, "negatives": given, "origins": ["given"] * len(given),
            "instruction": "", "source": "benchmark", "concept": "", "answers": [],
        })  # fmt: skip
    write_rows(pl.DataFrame(rows, schema=ROWS), folder / "rows.parquet")
    return {
        "real_queries": real_queries, "real_passages": len(texts),
        "queries": len(rows), "passages": len(used) + len(spare),
    }  # fmt: skip


def make_model(folder: Path, texts: list[str]) -> None:
    """Write the peer's model: a random BERT of two layers with mean pooling."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special))
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
        intermediate_size=4 * WIDTH, max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    raw = folder / "bert"
    BertModel(config).save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    module = Transformer(str(raw), max_seq_length=MAX_TOKENS)
    SentenceTransformer(modules=[module, Pooling(WIDTH, "mean")], device="cpu").save(str(folder / "model"))


def mine_ours(folder: Path) -> int:
    """Our stage's core; returns the number of negatives."""
    from stm.mine.rows import mine
    from stm.params.mine import MineParams
    from stm.schema import read_rows

    params = MineParams(
        negatives=NEGATIVES, max_given=0, rank_from=RANK_FROM, rank_to=RANK_TO, max_ratio=MAX_RATIO, min_margin=0.0
    )
    return int(mine(read_rows(folder / "rows.parquet"), params)[1]["negatives"])


def mine_theirs(folder: Path) -> int:
    """The peer on the same rows and passages; returns the number of negatives."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    from stm.schema import read_rows

    rows = read_rows(folder / "rows.parquet")
    corpus = list(dict.fromkeys([*rows["positive"], *rows["negatives"].explode().drop_nulls()]))
    model = SentenceTransformer(str(folder / "model"), device="cpu")
    pairs = Dataset.from_dict({"anchor": rows["anchor"].to_list(), "positive": rows["positive"].to_list()})
    mined = mine_hard_negatives(
        pairs, model, corpus=corpus, range_min=RANK_FROM - 1, range_max=RANK_TO, relative_margin=MARGIN,
        num_negatives=NEGATIVES, output_format="triplet", batch_size=128, verbose=False,
    )  # fmt: skip
    return len(mined)


def work(side: str, folder: Path) -> dict[str, float]:
    """One run in this process."""
    import torch

    if side == "ours":
        import stm.mine.rows  # noqa: F401 - imports are not what is timed
    else:
        import datasets  # noqa: F401
        import sentence_transformers.util  # noqa: F401
    torch.set_num_threads(2)
    mine = mine_ours if side == "ours" else mine_theirs
    negatives, figures = measure_run(lambda: mine(folder))
    return {**figures, "negatives": negatives}


def measure(sides: list[str], queries: int, passages: int, runs: int) -> dict[str, Any]:
    """The sides in turn, `runs` times each, on the same data."""
    with tempfile.TemporaryDirectory() as scratch:
        data = run_worker(NAME, "--prepare", scratch, "--queries", str(queries), "--passages", str(passages))
        found = run_sides(NAME, sides, runs, "--folder", scratch)
    return {"data": data, "scores_matrix_mb": queries * passages * 4 / 1e6, **found}  # of a matrix of all scores


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Ours at full size, and both sides at the size of the peer, which may be the same."""
    size, peer = (options.queries, options.passages), options.peer_size
    is_same = not peer or size == (peer, peer)
    both = measure(["ours", "theirs"], *(size if is_same else (peer, peer)), options.runs)
    full = both if is_same else measure(["ours"], *size, options.runs)
    names = ("seconds", "cpu_seconds", "peak_mb")
    return {
        "peer_model": f"random BERT, {LAYERS} layers, width {WIDTH}, {MAX_TOKENS} tokens",
        "full_size": {name: full[name] for name in ("data", "scores_matrix_mb", "ours")},
        "compared": both,
        "theirs_over_ours": {name: both["theirs"][name]["median"] / both["ours"][name]["median"] for name in names},
    }


def main() -> None:
    """Run the benchmark, or one of its worker processes."""
    parser = make_parser(__doc__, "mine_bm25")
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--peer-size", type=int, default=0, help="queries and passages of the comparison; 0: all")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        from stm.schema import read_rows

        folder = Path(options.prepare)
        data = prepare(folder, options.queries, options.passages)
        make_model(folder, read_rows(folder / "rows.parquet")["positive"].to_list())
        print_result(data)
    elif options.worker:
        print_result(work(options.worker, Path(options.folder)))
    else:
        from stm.progress import say

        names = ("queries", "passages", "peer_size", "runs")
        settings = {name: getattr(options, name) for name in names}
        results = compare(options)
        write_figures(options.output, PACKAGES, settings, results=results)
        say(json.dumps(results["theirs_over_ours"]) + " (theirs over ours)")


if __name__ == "__main__":
    main()
