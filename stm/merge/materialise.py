"""Writes a merged model: the base's folder with merged weights and prompts, streamed tensor by tensor.

The result is a plain sentence-transformers folder: safetensors only, no code, no file that depends on this project.
Does not know how the recipe was found.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from stm.errors import ModelError
from stm.files import atomic_directory, read_json, write_json, write_text
from stm.merge.card import folder_card, recipe_line
from stm.merge.experts import Experts, model_files
from stm.merge.recipe import Recipe
from stm.merge.shards import rewrite_shard
from stm.prompts import FILE as PROMPTS_FILE

# Pickles and code are never copied; a card would describe the base; stage hashes belong to the base's folder; its
# prompts.json holds other prompts than those chosen, which the config has.
SKIPPED_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".py", ".pyc", ".md", ".gguf")
CONFIG = "config_sentence_transformers.json"


def _copy_files(base: Path, folder: Path) -> None:
    for path in model_files(base):
        relative = path.relative_to(base)
        if path.suffix not in SKIPPED_SUFFIXES and relative != Path(PROMPTS_FILE):
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / relative)


def _check_no_code(base: Path) -> None:
    for path in sorted(base.rglob("config.json")):
        if "auto_map" in json.loads(path.read_text(encoding="utf-8")):
            raise ModelError(f"{path} asks for custom code (auto_map); a merged model must load without any")


def write_model_prompts(folder: Path, prompts: Mapping[str, str]) -> None:
    """Save the prompts "query" and "document" in a sentence-transformers folder, with no default prompt."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    config |= {"prompts": {"query": prompts.get("query", ""), "document": prompts.get("document", "")}}
    config["default_prompt_name"] = None
    write_json(folder / CONFIG, config)


def materialise(experts: Experts, recipe: Recipe, prompts: Mapping[str, str], folder: Path | str) -> None:
    """Write the merged model to `folder`, whole or not at all.

    Weights are `base + lambda * merged delta` in fp32, saved in the base's type; tensors that no adapter changes are
    copied byte for byte, tied weights stand once as in the base. `prompts` has the texts "query" and "document"; a
    README says how to use the model. The peak memory is one tensor and its deltas.
    """
    _check_no_code(experts.base)
    adapter_names = {target: name for name, target in experts.targets.items()}

    def change(target: str, tensor: Tensor) -> Tensor:
        delta = recipe.merged_delta(experts.adapters, adapter_names[target])
        return tensor if delta is None else (tensor.float() + delta).to(tensor.dtype)

    with atomic_directory(folder) as scratch:
        _copy_files(experts.base, scratch)
        for shard in experts.shards:
            target = scratch / shard.path.relative_to(experts.base)
            target.parent.mkdir(parents=True, exist_ok=True)
            rewrite_shard(shard, target, change, adapter_names)
        write_model_prompts(scratch, prompts)
        line = recipe_line(recipe.method, recipe.weights, recipe.scale, is_layered=bool(recipe.layers))
        write_text(scratch / "README.md", folder_card(experts.names, line, prompts))
