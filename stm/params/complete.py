"""What `check` demands beyond a valid params file: commits of what comes from a hub, rows of `files` for what lies on
this machine.

A profile is valid before its user has filled in the commits and chosen the rows; a run is not. Params go in, an error
with a line per fault comes out.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any, get_args

import yaml

from stm.errors import ParamsError
from stm.params.all import Params
from stm.params.backbone import FolderSource
from stm.params.backbone import HubSource as HubBackbone
from stm.params.base import COMMIT
from stm.params.experts import BASELINE
from stm.params.files import FileRow, Reader
from stm.params.names import unknown_names
from stm.params.prepare import EmbeddedSource, EmbeddedTask, FileSource, HubSource, Source

ADAPTER_CONFIG = "adapter_config.json"  # as in stm.model_hash, of which params know nothing
PIN = (
    "must be the commit of {name}, 40 hexadecimal digits, so that the run can be repeated (given: {given!r}); "
    "it stands on the hub's page under Files, History, or name a local copy as the path"
)


def _sources(params: Params) -> Iterator[tuple[str, str, Source]]:
    """Where params name each source of pairs, its split and the source."""
    for split, sources in params.prepare.splits.items():
        for place, source in enumerate(sources):
            yield f"prepare.splits.{split}.{place}", split, source


def _pins(params: Params) -> Iterator[tuple[str, str, str]]:
    """Every key that must hold a commit, what it is the commit of, and what it holds."""
    backbone = params.backbone.source
    if isinstance(backbone, HubBackbone):
        yield "backbone.source.revision", backbone.id, backbone.revision
    for where, _, source in _sources(params):
        if not isinstance(source, HubSource):
            continue
        for key, item in ((where, source), (f"{where}.released", source.released)):
            if item and not Path(item.path).exists():
                yield f"{key}.revision", item.path, item.revision
    for _, where, _, name, revision in _named_models(params):
        if revision and not Path(name).exists():
            yield where, name, revision


def _named_models(params: Params) -> Iterator[tuple[str, str, Reader, str, str]]:
    """Key of the name, key of the revision, reading stage, name, revision of models that are a folder or a hub id."""
    mine, judge, validation = params.mine, params.mine.judge, params.synthesize.validation
    if mine.dense_model:
        yield "mine.dense_model", "mine.dense_revision", "mine", mine.dense_model, mine.dense_revision
    if judge.cross_encoder:
        yield "mine.judge.cross_encoder", "mine.judge.revision", "mine", judge.cross_encoder, judge.revision
    if validation.dense_model:
        where = "synthesize.validation.dense_"
        yield f"{where}model", f"{where}revision", "synthesize", validation.dense_model, validation.dense_revision


def _neither(params: Params) -> Iterator[str]:
    for where, key, _, name, revision in _named_models(params):
        if not revision and not Path(name).exists():
            yield f"{where}: there is no folder {name}; correct the path or, if it is a model of a hub, set {key}"


def _same_rows(params: Params) -> Iterator[str]:
    seen: list[tuple[str, dict[str, Any], set[str]]] = []
    for where, split, source in _sources(params):
        if not isinstance(source, FileSource | HubSource):
            continue
        # Other columns of the same rows make other pairs.
        origin = source.model_dump(include={"path", "revision", "config", "split", "anchor", "positive"})
        texts = set(source.only_instructions)
        for other, known, others in seen:
            if known == origin and other != split and (not texts or not others or texts & others):
                yield (
                    f"{where}.only_instructions: the splits {other!r} and {split!r} take the same rows of "
                    f"{source.path}; name the texts of the instruction column that belong to each, or leave the source "
                    "out of one"
                )
                break
        seen.append((split, origin, texts))


def _local_paths(params: Params) -> Iterator[tuple[str, Reader, str]]:
    """Where params name a path of this machine, the stage that reads it, and the path."""
    if isinstance(params.backbone.source, FolderSource):
        yield "backbone.source.path", "backbone", params.backbone.source.path
    for where, _, source in _sources(params):
        is_of_a_hub = isinstance(source, HubSource) and not Path(source.path).exists()
        if not isinstance(source, EmbeddedSource) and not is_of_a_hub:
            yield f"{where}.path", "prepare", source.path
        released = getattr(source, "released", None)
        if released and Path(released.path).exists():
            yield f"{where}.released.path", "prepare", released.path
    for part, tasks in (("dev", params.prepare.tasks.dev), ("test", params.prepare.tasks.test)):
        for name, task in tasks.items():
            if not isinstance(task, EmbeddedTask):
                yield f"prepare.tasks.{part}.{name}.path", "prepare", task.path
    for where, _, reader, name, _ in _named_models(params):
        if Path(name).exists():
            yield where, reader, name
    if params.evaluate.hub_folder:
        yield "evaluate.hub_folder", "evaluate", params.evaluate.hub_folder
    yield from _bases(params)


def _bases(params: Params) -> Iterator[tuple[str, Reader, str]]:
    for where, reader, model in _models(params):
        if (base := _base(model)) and Path(base).is_dir() and not _is_made(base):
            yield f"the base of {where}", reader, base


def _made_bases(params: Params) -> Iterator[str]:
    """Adapters of the user's whose base the pipeline makes: when that changes they are other models, unseen."""
    for where, _, model in _models(params):
        if (base := _base(model)) and _is_made(base) and not _is_made(model):
            yield (
                f"{where} is {model!r}, an adapter of {base}, which the pipeline makes anew; copy that folder too, "
                f"name the copy as base_model_name_or_path in {model}/{ADAPTER_CONFIG}, and give it a row in files"
            )


def _models(params: Params) -> Iterator[tuple[str, Reader, str]]:
    """Where params name a model's folder, the stage that reads it, and the folder."""
    yield from ((f"models.{name}.path", "evaluate", row.path) for name, row in params.models.items())
    yield from ((where, reader, model) for where, _, reader, model, _ in _named_models(params))


def _is_made(path: str) -> bool:
    return Path(path).resolve().is_relative_to(Path("models").resolve())


def _base(model: str) -> str:
    """What a model is an adapter of, as it is written there; empty for no adapter."""
    try:
        values = json.loads((Path(model) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever loads a broken one says so
        return ""
    return str(values.get("base_model_name_or_path") or "") if isinstance(values, dict) else ""


def _unseen(params: Params) -> Iterator[str]:
    paths = list(_local_paths(params))
    names: dict[tuple[str, Reader], str] = {}
    for where, reader, path in paths:
        holding = {name: row for name, row in params.files.items() if row.holds(path)}
        if any(row.read_by == reader for row in holding.values()):
            continue
        idle = [name for name, row in holding.items() if not _is_needed(row, paths)]
        if idle:
            yield (
                f"{where} is {path!r}, which {reader} reads, but files.{idle[0]}.read_by is "
                f"{holding[idle[0]].read_by}; set it to {reader}"
            )
            continue
        name = names.setdefault((path, reader), _suggest_name(path, {*params.files, *names.values()}))
        yield (
            f"{where} is {path!r}, which the table `files` does not have for {reader}, so that a change of it would go "
            f"unseen; add a row there, for example `{name}: {{path: {path}, read_by: {reader}}}`"
        )


def _is_needed(row: FileRow, paths: list[tuple[str, Reader, str]]) -> bool:
    """Whether the stage that a row of `files` names reads something that the row holds."""
    return any(row.read_by == reader and row.holds(path) for _, reader, path in paths)


def _suggest_name(path: str, taken: set[str]) -> str:
    """A name for a row of `files` that no other row has and that YAML takes for text, not for a number or a truth."""
    name = re.sub(r"[^a-z0-9_-]+", "_", Path(path).name.split(".")[0].lower()).strip("_-") or "mine"
    if name[0].isdigit() or not isinstance(yaml.safe_load(name), str):
        name = f"my_{name}"
    return next(free for free in chain([name], (f"{name}_{i}" for i in count(2))) if free not in taken)


def _absent(params: Params) -> Iterator[str]:
    for name, row in params.files.items():
        if not Path(row.path).exists():
            yield f"files.{name}.path: there is no {row.path}; correct the path or bring the file"


def check_complete(params: Params) -> None:
    """`ParamsError`, one line per fault: a hub id without a commit, splits that share a source's rows, a path without
    a row in `files`, a row there without its file, an adapter of what the pipeline makes, a name that stands for
    nothing.
    """
    faults = [
        f"{key} {PIN.format(name=name, given=given)}"
        for key, name, given in _pins(params)
        if not re.fullmatch(COMMIT, given)
    ]
    faults += [*_neither(params), *_same_rows(params), *_unseen(params), *_made_bases(params)]
    faults += [*_absent(params), *unknown_names(params)]
    if faults:
        raise ParamsError("params.yaml is not complete:\n" + "\n".join(faults))


def find_unread(params: Params) -> list[str]:
    """What an LLM is asked for and no expert is trained with, a sentence each."""
    rows = params.experts.values()
    tables = (
        ("synthesize_splits", {row.split for row in rows if row.negatives == "synthetic"},
         "shn", "negatives: synthetic, instruction: seed"),
        ("search_prompts_splits", {row.split for row in rows if row.instruction != "seed"},
         "po", "negatives: mined, instruction: searched"),
    )  # fmt: skip
    return [
        f"{table} names {split!r}, but no expert is trained with what comes of it; add a row such as "
        f"`{split}-{ending}: {{split: {split}, {settings}}}` to experts, or take {split!r} out"
        for table, read, ending, settings in tables
        for split in getattr(params, table)
        if split not in read
    ]


def find_leftovers(params: Params) -> list[str]:
    """What lies in the folders that are dependencies as a whole and is of no row of params.yaml, by path."""
    made = {
        "data/mined": {f"{split}.parquet" for split in params.splits},
        "models/experts": {*params.experts, BASELINE},
        **{
            f"data/files/{reader}": {f"{name}.json" for name, row in params.files.items() if row.read_by == reader}
            for reader in get_args(Reader)
        },
    }
    return [
        path.as_posix()
        for folder, names in made.items()
        for path in sorted(Path(folder).glob("[!.]*"))
        if path.name not in names
    ]
