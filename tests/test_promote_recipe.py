"""The merge recipe as a tag of a version: whole, or without what is long, and JSON in any case."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from stm.files import write_json
from stm.merge.recipe import Recipe
from stm.promote.candidate import TAG_CHARS, Candidate, _recipe, recipe_tag
from stm.promote.evidence import Evaluation
from stm.promote.lineage import read_lineage

FLAT = Recipe("task_arithmetic", {"a": 0.5, "b": 0.5})
LAYERED = Recipe("task_arithmetic", FLAT.weights, layers={"0": {"a": 1.0, "b": 0.0}, "1": {"a": 0.0, "b": 1.0}})


def tag_of(taken: dict[str, Any], folder: Path) -> str:
    """The tag that a version of a model merged like that gets."""
    write_json(folder / "merge.json", {"decision": {"taken": {"origin": "search", "search": 0.5, **taken}}})
    candidate = Candidate(
        folder, "", Evaluation("merged", "merged", {}), [], read_lineage(folder), None, _recipe(folder / "merge.json")
    )
    return candidate.tags()["merge.recipe"]


@pytest.mark.parametrize(
    "taken",
    [
        FLAT.as_dict(),
        LAYERED.as_dict(),
        Recipe("dare_ties", {"a": 0.5, "b": 0.5}, {"a": 0.1}, seed=3, rescale="density").as_dict(),
        {"method": "mergekit:sce", "parameters": {"select_topk": 0.3, "weight": {"a": 1.0}}, "weights": {}},
    ],
)
def test_the_tag_holds_all_that_the_model_was_merged_by(taken: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads(tag_of(taken, tmp_path)) == taken


def test_models_of_the_same_mean_weights_have_different_tags(tmp_path: Path) -> None:
    assert LAYERED.key() != FLAT.key()
    assert tag_of(LAYERED.as_dict(), tmp_path) != tag_of(FLAT.as_dict(), tmp_path)


def many(layers: int, last: float = 1.0) -> dict[str, Any]:
    """A recipe with weights of its own in each of many layers."""
    weights = {f"experte-für-{name}": 0.123456 for name in "abcdefgh"}
    return Recipe("task_arithmetic", weights, layers={str(n): {**weights, "a": last} for n in range(layers)}).as_dict()


def test_a_long_recipe_leaves_out_its_layers_and_says_the_hash_of_the_whole(tmp_path: Path) -> None:
    recipe = many(30)
    tag = tag_of(recipe, tmp_path)
    found = json.loads(tag)
    whole = json.dumps(recipe, sort_keys=True, ensure_ascii=False)
    assert len(tag) <= TAG_CHARS < len(whole)
    assert found.pop("sha256") == hashlib.sha256(whole.encode()).hexdigest()
    assert found.pop("left_out") == ["layers"]
    assert found == {key: value for key, value in recipe.items() if key != "layers"}
    assert tag_of(many(30, last=0.9), tmp_path) != tag


def test_the_limit_itself_still_holds_the_whole() -> None:
    bare = {"method": "x", "parameters": {"p": ""}}
    room = TAG_CHARS - len(json.dumps(bare))
    full = {**bare, "parameters": {"p": "x" * room}}
    assert json.loads(recipe_tag(full)) == full
    assert "sha256" in json.loads(recipe_tag({**bare, "parameters": {"p": "x" * (room + 1)}}))


def test_any_recipe_gives_json_of_bounded_length() -> None:
    long = {f"expert {number} 🫀": 0.5 for number in range(1000)}
    tag = recipe_tag({"method": "m" * 9999, "weights": long, "densities": long, "layers": {"0": long}})
    assert len(tag) <= TAG_CHARS
    assert sorted(json.loads(tag)["left_out"]) == ["densities", "layers", "method", "weights"]
