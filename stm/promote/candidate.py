"""The model under test with all that is known of it from files: scores, rivals, lineage, merge recipe, prompts.

Reads the project's folder and gives typed values and tags. Does not know the registry.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from stm.errors import DataError
from stm.files import read_json, sha256_tree
from stm.metrics import NDCG
from stm.model_hash import adapter_base, hash_model
from stm.params.base import MERGED, PARAMS_FILE
from stm.params.promote import Average, Gates, PromoteParams
from stm.params.rows import known_reports
from stm.progress import track
from stm.promote.evidence import Evaluation, read_contamination, read_evaluations
from stm.promote.lineage import Lineage, read_lineage
from stm.prompts import own_prompts

RECIPE = ("method", "weights", "densities", "lambda", "seed", "rescale", "layers", "parameters")
TAG_CHARS = 5000  # servers of earlier MLflow versions take no longer value


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
        averages = {name: self.evaluation.average(name) for name in get_args(Average)}
        scores = {f"{NDCG}.{name}": f"{value:.6f}" for name, value in averages.items() if value is not None}
        return {
            **self.lineage.tags(),
            **scores,
            "merge.method": str(self.recipe.get("method", "unknown")),
            "merge.weights": _canonical(self.recipe.get("weights", {})),
            "merge.recipe": recipe_tag(self.recipe),
            "prompts": _canonical(_prompts(self.folder)),
        }


def recipe_tag(recipe: Mapping[str, Any]) -> str:
    """The recipe as JSON with sorted keys, whole where a tag has room for it.

    Otherwise its longest parts, such as the weights of each layer, are left out and named under `left_out`, and
    `sha256` is that of the whole JSON in UTF-8: recipes that differ have tags that differ.
    """
    text = whole = _canonical(recipe)
    digest = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()
    kept, left_out = dict(recipe), list[str]()
    while len(text) > TAG_CHARS:
        longest = max(kept, key=lambda key: len(_canonical(kept[key])))
        del kept[longest]
        left_out.append(longest)
        text = _canonical({**kept, "left_out": left_out, "sha256": digest})
    return text


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _check_content(evaluation: Evaluation, folder: Path, content: str) -> None:
    """`DataError` unless the scores are those of the files in the folder."""
    if evaluation.content != content:
        raise DataError(
            f"reports/evaluation/{evaluation.name}.json is of another model than {folder} (hash "
            f"{evaluation.content[:12] or 'unknown'}, not {content[:12]}); after `git pull` or `git checkout` "
            "run `dvc checkout` (or `dvc pull`), else `dvc repro evaluate`, and promote again"
        )


def _check_prompts(evaluation: Evaluation, folder: Path) -> None:
    """`DataError` unless the scores are those with the prompts in the folder, which is all that consumers get."""
    own, scored = own_prompts(_prompts(folder)), evaluation.prompts
    if scored and scored != own:
        raise DataError(
            f"{evaluation.name} was evaluated with the prompts {dict(scored)}, but {folder} holds {own}; take "
            f"query_prompt and passage_prompt out of models.{evaluation.name} in params.yaml"
        )


def _check_rivals(root: Path, rivals: Sequence[Evaluation], lineage: Lineage, hash_tree: Callable[[Path], str]) -> None:
    """`DataError` where a rival's scores are of other files than those in its folder.

    A folder that is not here, as in a clone that pulled the merged model alone, contradicts no scores; then dvc.lock
    may. Prompts are not looked at: `models` may give a rival others than its own.
    """
    for rival in track(rivals, "check rivals", len(rivals)):
        folder = root / rival.path
        if folder.is_dir() and (root / (adapter_base(folder) or "")).is_dir():
            _check_content(rival, folder, hash_model(folder, root, hash_tree))
        elif lineage.is_outdated(f"evaluate@{rival.name}", rival.path):
            raise DataError(
                f"reports/evaluation/{rival.name}.json is of another model than the {rival.path} of dvc.lock; run "
                "`dvc repro --pull`, and promote again"
            )


def _prompts(folder: Path) -> Any:
    config = folder / "config_sentence_transformers.json"
    return read_json(config).get("prompts", {}) if config.exists() else {}


def _recipe(path: Path) -> dict[str, Any]:
    """The winning recipe of the merge report; empty where there is no report."""
    report = read_json(path) if path.exists() else {}
    recipe = report.get("decision", {}).get("taken", {})
    return {key: recipe[key] for key in RECIPE if key in recipe}


def _enters(gates: Gates, evaluation: Evaluation) -> bool:
    return any(evaluation.matches(pattern) for rule in gates.comparisons.values() for pattern in rule.against)


def read_candidate(root: Path, params: PromoteParams) -> Candidate:
    """Collect the model under test; `DataError` if it has no files, or no evaluation of these files and prompts, or one
    that it is compared with has other files than those that were evaluated.
    """
    model, names = params.model, known_reports(root / PARAMS_FILE).get("evaluation")
    evaluations = read_evaluations(root / "reports" / "evaluation", names)
    if model not in evaluations or not evaluations[model].tasks:
        known = [name for name, evaluation in evaluations.items() if evaluation.tasks]
        raise DataError(
            f"reports/evaluation has no model {model!r} (promote.model in params.yaml); it has {', '.join(known)}"
        )
    folder, others = root / MERGED, [other for name, other in evaluations.items() if name != model]
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; run `dvc repro merge` or `dvc pull {MERGED}`")
    hash_tree = functools.cache(sha256_tree)  # adapters share their base
    content, lineage = hash_tree(folder), read_lineage(root)
    _check_content(evaluations[model], folder, content)
    _check_prompts(evaluations[model], folder)
    rivals = [other for other in others if other.path and _enters(params.gates, other)]
    _check_rivals(root, rivals, lineage, hash_tree)
    return Candidate(
        folder=folder,
        content=content,
        evaluation=evaluations[model],
        others=others,
        lineage=lineage,
        contamination=read_contamination(root / "reports" / "prepare.json"),
        recipe=_recipe(root / "reports" / "merge.json"),
    )
