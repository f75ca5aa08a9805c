"""The model under test with all that is known of it from files: scores, rivals, lineage, merge recipe, prompts.

Reads the project's folder and gives typed values and tags. Does not know the registry.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm.errors import DataError
from stm.files import read_json, sha256_tree
from stm.params.promote import Average
from stm.promote.evidence import Evaluation, read_contamination, read_evaluations
from stm.promote.lineage import Lineage, read_lineage

MODEL = Path("models/merged")
AVERAGES: tuple[Average, ...] = ("all", "medical", "general")
RECIPE = ("method", "weights", "densities", "lambda", "seed", "rescale")


@dataclass(frozen=True)
class Candidate:
    """The model under test with all that is known from files."""

    folder: Path
    content: str
    evaluation: Evaluation
    others: Sequence[Evaluation]
    lineage: Lineage
    contamination: int | None
    recipe: dict[str, Any]

    def tags(self) -> dict[str, str]:
        """Lineage, recipe and scores as tags of the version."""
        averages = {name: self.evaluation.average(name) for name in AVERAGES}
        scores = {f"ndcg_at_10.{name}": f"{value:.6f}" for name, value in averages.items() if value is not None}
        return {
            **self.lineage.tags(),
            **scores,
            "merge.method": str(self.recipe.get("method", "unknown")),
            "merge.weights": json.dumps(self.recipe.get("weights", {}), sort_keys=True, ensure_ascii=False),
            "merge.recipe": json.dumps(self.recipe, sort_keys=True, ensure_ascii=False)[:5000],
            "prompts": json.dumps(_prompts(self.folder), sort_keys=True, ensure_ascii=False),
        }


def _prompts(folder: Path) -> Any:
    config = folder / "config_sentence_transformers.json"
    return read_json(config).get("prompts", {}) if config.exists() else {}


def _recipe(path: Path) -> dict[str, Any]:
    """The winning recipe of the merge report; empty where there is no report."""
    report = read_json(path) if path.exists() else {}
    recipe = report.get("decision", {}).get("taken", {})
    return {key: recipe[key] for key in RECIPE if key in recipe}


def read_candidate(root: Path, model: str) -> Candidate:
    """Collect the model under test; `DataError` if it has no evaluation or no files."""
    evaluations = read_evaluations(root / "reports" / "evaluation")
    if model not in evaluations:
        raise DataError(
            f"reports/evaluation has no model {model!r} (promote.model in params.yaml); it has {', '.join(evaluations)}"
        )
    folder = root / MODEL
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; run `dvc repro merge` or `dvc pull {MODEL}`")
    return Candidate(
        folder=folder,
        content=sha256_tree(folder),
        evaluation=evaluations[model],
        others=[other for name, other in evaluations.items() if name != model],
        lineage=read_lineage(root),
        contamination=read_contamination(root / "reports" / "prepare.json"),
        recipe=_recipe(root / "reports" / "merge.json"),
    )
