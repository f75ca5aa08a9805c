"""Writes a merged model: the base's folder with merged weights and prompts, streamed tensor by tensor.

The result is a plain sentence-transformers folder: safetensors only, no code, no file that depends on this project.
Does not know how the recipe was found.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from stm.chip import device
from stm.files import atomic_directory, read_json, write_json, write_text
from stm.folders import copy_notices, describe_folder
from stm.merge.card import folder_card, recipe_line
from stm.merge.experts import Experts, model_files
from stm.merge.recipe import Recipe
from stm.merge.shards import rewrite_shard
from stm.progress import Meter
from stm.prompts import FILE as PROMPTS_FILE
from stm.rounding import add_delta

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


def write_model_prompts(folder: Path, prompts: Mapping[str, str]) -> None:
    """Save the prompts "query" and "document" in a sentence-transformers folder, with no default prompt."""
    config = read_json(folder / CONFIG) if (folder / CONFIG).exists() else {}
    config |= {"prompts": {"query": prompts.get("query", ""), "document": prompts.get("document", "")}}
    config["default_prompt_name"] = None
    write_json(folder / CONFIG, config)


def materialise(experts: Experts, recipe: Recipe, prompts: Mapping[str, str], folder: Path | str) -> None:
    """Write the merged model to `folder`, whole or not at all.

    Weights are `base + lambda * merged delta`, computed in fp32 where models are encoded with too, and saved in the
    base's type; tensors that no adapter changes are copied byte for byte, tied weights stand once as in the base.
    `prompts` has the texts "query" and "document"; a README says how to use the model. The peak memory is one tensor
    and its deltas.
    """
    adapter_names = {target: name for name, target in experts.targets.items()}
    adapters = {expert: adapter.to(device()) for expert, adapter in experts.adapters.items()}

    with atomic_directory(folder) as scratch, Meter("write the merged model", len(adapter_names)) as meter:

        def change(target: str, tensor: Tensor) -> Tensor:
            meter.advance()
            name = adapter_names[target]
            delta = recipe.merged_delta(adapters, name)
            if delta is None:
                return tensor
            return add_delta(tensor.to(device()), delta, tensor.dtype, name).to(tensor.dtype).cpu()

        _copy_files(experts.base, scratch)
        copy_notices(experts.base, scratch)
        for shard in experts.shards:
            target = scratch / shard.path.relative_to(experts.base)
            target.parent.mkdir(parents=True, exist_ok=True)
            rewrite_shard(shard, target, change, adapter_names)
        write_model_prompts(scratch, prompts)
        line = recipe_line(recipe.method, recipe.weights, recipe.scale, is_layered=bool(recipe.layers))
        write_text(scratch / "README.md", folder_card(experts.names, line, prompts, describe_folder(experts.base)))
