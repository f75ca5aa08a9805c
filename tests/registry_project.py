"""A small finished project for the tests of promotion: reports, a pico model, an empty store."""

import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from stm.files import sha256_tree, write_json
from stm.params.promote import PromoteParams
from stm.promote.history import Actor

QUERIES = 40
ACTOR = Actor("Ada", "2026-01-02T03:04:05+00:00")
LEVELS = {
    "base": ("base", 0.10), "med_real-ft": ("expert", 0.40), "nlu-ft": ("expert", 0.35), "all": ("all_data", 0.42),
    "merged": ("merged", 0.50), "bm25": ("outside", 0.45),
}  # fmt: skip


@lru_cache(maxsize=1)
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()  # held until the process ends


@lru_cache(maxsize=1)
def migrated_store() -> Path:
    """An empty MLflow database with all tables; making it takes seconds, so that tests copy this one."""
    from stm.promote.registry import connect

    path = Path(_scratch().name) / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:  # connecting names the store in the environment, where it would win
        patch.setenv("MLFLOW_TRACKING_URI", "unset")
        connect(f"sqlite:///{path}").search_experiments()
    return path


@lru_cache(maxsize=4)
def pico(seed: int = 0) -> Path:
    """A pico model folder; another seed gives other weights."""
    from tests.pico import pico_backbone

    return pico_backbone(Path(_scratch().name) / f"pico-{seed}", seed=seed)


def copy_store(root: Path) -> None:
    """Put an empty store where the params of `promote_params` look for it."""
    (root / "mlruns").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(migrated_store(), root / "mlruns" / "mlflow.db")


def promote_params(root: Path, **changes: Any) -> PromoteParams:
    """Params with the store and the artifacts inside `root`; gates are those of the embedded default."""
    comparison = {"average": "all", "significance": 0.05, "required": True}
    limit = {"at_most": 0, "required": True}
    gates = {
        "comparisons": {
            "base": {**comparison, "against": ["base"], "min_gain": 0.0},
            "best_expert": {**comparison, "against": ["expert"], "min_gain": -0.02},
            "all_data": {**comparison, "against": ["all_data"], "min_gain": -0.02},
            "champion": {**comparison, "against": ["@champion"], "min_gain": -0.02},
        },
        "task_loss": {"at_most": 0.05, "required": True},
        "contamination": limit,
        "reload_difference": limit,
        "megabytes": {"at_most": 2000, "required": True},
        "query_milliseconds": {"at_most": 60_000, "required": False},
        "changed_files": {"at_most": 0, "required": False},
    }
    values = {
        "tracking_uri": f"sqlite:///{root}/mlruns/mlflow.db", "artifact_folder": str(root / "mlruns" / "artifacts"),
        "experiment": "stm", "registered_model": "stm-retriever", "model": "merged", "resamples": 200, "seed": 7,
        "max_trials": 2, "gates": gates,
    }  # fmt: skip
    return PromoteParams.model_validate({**values, **changes})


def evaluation(
    name: str, role: str, level: float, tasks: tuple[str, ...] = ("med-a", "gen-b"), model: Path | None = None
) -> dict[str, Any]:
    """An evaluation report: every query scores around `level`, all models alike in which queries are hard.

    `model` is the folder that was scored; by default the pico model that `write_project` writes.
    """
    rows = {}
    for task in tasks:
        scores = {f"q{index}": min(1.0, max(0.0, level + 0.1 * ((index * 7) % 5 - 2) / 2)) for index in range(QUERIES)}
        mean = sum(scores.values()) / len(scores)
        rows[task] = {
            "domain": "medical" if task.startswith("med") else "general", "data": "d" * 64, "ndcg_at_10": mean,
            "recall_at_10": mean, "per_query": {"ndcg_at_10": scores, "recall_at_10": scores}, "queries": QUERIES,
            "same_answers": {},
        }  # fmt: skip
    hashes = {"model": sha256_tree(model or pico())}
    return {"model": name, "role": role, "tasks": rows, "averages": {"all": {"ndcg_at_10": level}}, "hashes": hashes}


def write_project(root: Path, model: Path | None = None, levels: dict[str, tuple[str, float]] | None = None) -> Path:
    """Write reports, the merged model and an empty store into `root` and return it."""
    if not (root / "mlruns").exists():
        copy_store(root)
    reports = root / "reports"
    for name, (role, level) in (levels or LEVELS).items():
        write_json(reports / "evaluation" / f"{name}.json", evaluation(name, role, level, model=model))
    write_json(reports / "metrics.json", {"models": {"merged": {"averages": {"all": {"ndcg_at_10": 0.5}}}}})
    history = [{"step": step, "loss": 1.0 / step, "tokens": 10 * step} for step in range(1, 6)]
    for expert in ("med_real-ft", "nlu-ft"):
        write_json(reports / "train" / f"{expert}.json", {"rows": 100, "seconds": 1.5, "history": history})
    write_json(reports / "search_prompts" / "nlu.json", {"instruction": 'Find "it" / 🫀', "score": 0.4})
    trials = [{"search": 0.1 * index, "weights": {"nlu-ft": index / 4}} for index in range(4)]
    recipe = {"method": "ties", "weights": {"med_real-ft": 0.7, "nlu-ft": 0.3}, "lambda": 1.0}
    write_json(reports / "merge.json", {"decision": {"taken": recipe}, "trials": trials})
    write_json(reports / "prepare.json", {"contamination": {"tested": 9, "removed": 2, "left": 0}})
    (reports / "model_card.md").write_text(
        "# A merged retriever\n\n| all | 0.500 | 0.480 to 0.520 |\n", encoding="utf-8"
    )
    (root / "params.yaml").write_text("promote: {seed: 7}\n", encoding="utf-8")
    shutil.copytree(model or pico(), root / "models" / "merged", dirs_exist_ok=True)
    return root
