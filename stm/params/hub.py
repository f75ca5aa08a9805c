"""What `check` demands of everything that comes from a hub, beyond what a params file must have to be one.

A profile is valid before its user has filled in the commits and chosen the rows; a run is not. Params go in, a list of
faults comes out.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stm.errors import ParamsError
from stm.params.all import Params
from stm.params.backbone import HubSource as HubBackbone
from stm.params.prepare import HubSource

COMMIT = re.compile(r"[0-9a-f]{40}")
PIN = (
    "must be the commit of {name}, 40 hexadecimal digits, so that the run can be repeated (given: {given!r}); "
    "it stands on the hub's page under Files, History, or name a local copy as the path"
)


def _hub_sources(params: Params) -> Iterator[tuple[str, str, HubSource]]:
    for split, sources in params.prepare.splits.items():
        for place, source in enumerate(sources):
            if isinstance(source, HubSource):
                yield f"prepare.splits.{split}.{place}", split, source


def _pins(params: Params) -> Iterator[tuple[str, str, str]]:
    """Every key that must hold a commit, what it is the commit of, and what it holds; a local path has none."""
    backbone = params.backbone.source
    if isinstance(backbone, HubBackbone):
        yield "backbone.source.revision", backbone.id, backbone.revision
    for where, _, source in _hub_sources(params):
        pinned = [(where, source)] + ([(f"{where}.released", source.released)] if source.released else [])
        for key, item in pinned:
            if item.revision and not Path(item.path).exists():
                yield f"{key}.revision", item.path, item.revision


def _same_rows(params: Params) -> Iterator[str]:
    seen: list[tuple[str, dict[str, Any], set[str]]] = []
    for where, split, source in _hub_sources(params):
        origin = source.model_dump(include={"path", "revision", "config", "split"})
        texts = set(source.only_instructions)
        for other, known, others in seen:
            if known == origin and other != split and (not texts or not others or texts & others):
                yield (
                    f"{where}.only_instructions: the splits {other!r} and {split!r} take the same rows of "
                    f"{source.path}; name the texts of the instruction column that belong to each"
                )
                break
        seen.append((split, origin, texts))


def check_hub(params: Params) -> None:
    """`ParamsError`, one line per fault, for a hub id without a commit and for splits that share a source's rows."""
    faults = [
        f"{key} {PIN.format(name=name, given=given)}"
        for key, name, given in _pins(params)
        if not COMMIT.fullmatch(given)
    ]
    faults += _same_rows(params)
    if faults:
        raise ParamsError("params.yaml is not complete:\n" + "\n".join(faults))
