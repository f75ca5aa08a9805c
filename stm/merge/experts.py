"""The experts of one merge, read from adapter folders and checked against each other and against their base.

Whatever would make a merge meaningless is refused here, before any work, with the difference named. Does not know
methods or scores.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stm.deltas import WEIGHTS_FILE, Adapter, check_shape, match_names, read_adapter
from stm.errors import ModelError
from stm.files import read_json, sha256_file, sha256_text
from stm.merge.shards import Shard, find_shards
from stm.model_hash import ADAPTER_CONFIG
from stm.prompts import own_prompts, read_prompts

# Keys of a config.json that say nothing about the weights.
PROVENANCE = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures"}


@dataclass(frozen=True)
class Experts:
    """Adapters by name, in name order, of one base; `targets` maps each tensor of the adapters to the base's own
    name.
    """

    base: Path
    adapters: Mapping[str, Adapter]
    targets: Mapping[str, str]
    shards: tuple[Shard, ...]

    @property
    def names(self) -> list[str]:
        """The experts' names, sorted."""
        return list(self.adapters)

    def candidate_prompts(self, of_base: Mapping[str, str | None]) -> dict[str, dict[str, str]]:
        """The prompts "query" and "document" that a merge chooses from by who proposes them: the base, whose model has
        the prompts `of_base`, and every expert.
        """
        own = {name: read_prompts(adapter.folder).as_model_prompts() for name, adapter in self.adapters.items()}
        return {"base": own_prompts(of_base), **own}


def read_experts(base: Path | str, folders: Mapping[str, Path]) -> Experts:
    """Read and check the adapters in `folders` (expert name -> folder) and the headers of `base`.

    Ranks may differ. `ModelError` for an expert that changes nothing, and for experts of different targets, bases or
    vocabularies.
    """
    base = Path(base)
    if not folders:
        raise ModelError("there are no experts to merge; train at least one and run `dvc repro`")
    adapters = {name: read_adapter(folder) for name, folder in sorted(folders.items())}
    for name, adapter in adapters.items():
        if all(not factors.a.any() or not factors.b.any() for factors in adapter.factors.values()):
            raise ModelError(f"the expert {name!r} changes nothing: its deltas are all zero; train it or leave it out")
    _check_targets(adapters)
    _check_no_code(base)
    shards = find_shards(base)
    shapes = {name: shape for shard in shards for name, shape in shard.shapes.items()}
    targets: dict[str, str] = {}
    for adapter in adapters.values():
        _check_base(adapter, base)
        _check_vocabulary(adapter, base)
        targets = match_names(adapter, shapes)
        for name, target in targets.items():
            check_shape(adapter, name, shapes[target])
    return Experts(base, adapters, targets, tuple(shards))


def _check_no_code(base: Path) -> None:
    for path in sorted(base.rglob("config.json")):
        if "auto_map" in read_json(path):
            raise ModelError(f"{path} asks for custom code (auto_map); a merged model must load without any")


def model_files(base: Path) -> list[Path]:
    """All files of a model folder in name order but hidden ones, which are no part of the model."""
    files = sorted(path for path in base.rglob("*") if path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(base).parts)]


def hash_experts(experts: Experts) -> str:
    """A hash of all adapters and of the base: weights, tokenizer, and the configs that pool and cut its texts."""
    parts = [f"{path.relative_to(experts.base).as_posix()}:{sha256_file(path)}" for path in model_files(experts.base)]
    for name, adapter in experts.adapters.items():
        parts += [name, *(sha256_file(adapter.folder / file) for file in (ADAPTER_CONFIG, WEIGHTS_FILE))]
    return sha256_text(*parts)


def _check_targets(adapters: Mapping[str, Adapter]) -> None:
    (first, reference), *others = adapters.items()
    for name, adapter in others:
        difference = sorted(set(reference.names) ^ set(adapter.names))
        if difference:
            owner = first if difference[0] in reference.factors else name
            raise ModelError(
                f"the experts {first!r} and {name!r} have different targets: only {owner!r} changes {difference[0]!r} "
                f"({len(difference)} tensor(s) differ); train both with the same target modules"
            )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _check_base(adapter: Adapter, base: Path) -> None:
    """Compare the base that the adapter names with the one merged into, unless they are the same folder."""
    named = Path(adapter.base)
    if not adapter.base or named.resolve() == base.resolve():
        return
    theirs, ours = _read_object(named / "config.json"), _read_object(base / "config.json")
    if not theirs or not ours:
        # The named base cannot be looked at: its name is all there is to compare.
        if named.name != base.name:
            raise ModelError(
                f"the adapter {adapter.folder} is of the base {adapter.base!r}, not of {base}; "
                "merge experts of one base"
            )
        return
    for key in sorted((set(theirs) | set(ours)) - PROVENANCE):
        if theirs.get(key) != ours.get(key):
            raise ModelError(
                f"the adapter {adapter.folder} is of the base {named} with {key}={theirs.get(key)!r}; "
                f"{base} has {ours.get(key)!r}; merge experts of one base"
            )
    if [sha256_file(s.path) for s in find_shards(named)] != [sha256_file(s.path) for s in find_shards(base)]:
        raise ModelError(
            f"the adapter {adapter.folder} is of the base {named}, whose weights differ from {base}; "
            "merge experts of one base"
        )


def _check_vocabulary(adapter: Adapter, base: Path) -> None:
    """Compare the tokenizer that an adapter folder may carry with the base's."""
    theirs = _read_object(adapter.folder / "tokenizer.json").get("model", {}).get("vocab")
    if theirs is None:
        return
    ours = _read_object(base / "tokenizer.json").get("model", {}).get("vocab")
    if theirs != ours:
        sizes = f"{len(theirs)} and {len(ours or ())} entries"
        raise ModelError(
            f"the tokenizers of {adapter.folder} and {base} have different vocabularies ({sizes}); train on one base"
        )
