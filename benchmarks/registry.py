"""Publishing to the registry: how long it takes, how much it stores, and whether vectors survive the round trip.

The model has the embedded default's shape, with random weights, since neither time nor size hangs on them; the reports
are those of the tests. `--model FOLDER` takes a real one. `python -m benchmarks.registry`
"""

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.figures import write_figures
from benchmarks.shapes import SHAPES, build_shape
from stm.files import sha256_tree
from stm.progress import say
from stm.promote.promotion import promote
from stm.promote.registry import Registry, connect
from stm.promote.versions import find_version, measure
from tests.pico import MAX_TOKENS, pico_tokenizer
from tests.registry_project import ACTOR, promote_params, write_project

FIGURES = Path("benchmarks/results/registry.json")
# SmolLM2-135M cut to six layers, as the embedded default has it.
SHAPE = {**SHAPES["smollm2-135m"], "num_hidden_layers": 6, "max_position_embeddings": 512, "tie_word_embeddings": True}


def megabytes(folder: Path) -> float:
    """Size of all files below a folder, in units of 10^6 bytes."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def timed_promotion(root: Path) -> tuple[float, str]:
    """Seconds and decision of one promotion."""
    started = time.perf_counter()
    outcome = promote(promote_params(root), ACTOR, root=root)
    return round(time.perf_counter() - started, 2), outcome.decision


def main() -> None:
    """Publish twice, load back, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = given.model or build_shape(SHAPE, pico_tokenizer(), MAX_TOKENS, Path(scratch) / "model")
        root = Path(scratch) / "project"
        started = time.perf_counter()
        connect(promote_params(root).tracking_uri).search_experiments()
        database = round(time.perf_counter() - started, 2)
        write_project(root, model)
        empty = megabytes(root / "mlruns")
        first, decision = timed_promotion(root)
        stored = megabytes(root / "mlruns")
        again, repeated = timed_promotion(root)
        registry = Registry.open(promote_params(root).tracking_uri, "stm-retriever")
        version = find_version(registry, sha256_tree(root / "models" / "merged"))
        if version is None:
            raise RuntimeError("the promoted model has no version")
        trip = measure(f"models:/stm-retriever/{version.number}", root / "models" / "merged")
        figures = {
            "new_database_seconds": database, "publish_seconds": first, "publish_again_seconds": again,
            "decisions": [decision, repeated], "model_megabytes": trip.megabytes,
            "stored_megabytes": round(stored - empty, 1),
            "stored_again_megabytes": round(megabytes(root / "mlruns") - stored, 1),
            "max_difference": trip.max_difference,
        }  # fmt: skip
    write_figures(
        FIGURES, ("mlflow", "sentence-transformers", "torch"), {"model": str(given.model or "random")}, **figures
    )
    say(", ".join(f"{name} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
