"""Who made which version the champion, when and why: a log in the tags of the registered model.

An entry is written before the alias moves, and counts only if the alias did move; so a crash between the two leaves
the old champion and a true history. Entries are ordered by their number, never by a clock.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from stm.errors import RegistryError
from stm.promote.registry import CHALLENGER, CHAMPION, Registry, explained

PREFIX = "stm.history."
Kind = Literal["promote", "force", "rollback", "outside"]


@dataclass(frozen=True)
class Actor:
    """Who acts, at which time (ISO 8601, UTC)."""

    who: str
    when: str


@dataclass(frozen=True)
class Entry:
    """One move of the champion alias, from `previous` (0: there was none) to `version`."""

    kind: Kind
    version: int
    previous: int
    who: str
    when: str
    why: str


def read_history(registry: Registry) -> list[Entry]:
    """The moves that took place, the oldest first; an alias moved by other hands appears as kind "outside"."""
    logged = [entry for _, entry in _logged(registry)]
    champion = registry.aliases().get(CHAMPION, 0)
    if logged and _is_unfinished(logged[-1], champion):
        logged.pop()
    entries: list[Entry] = []
    for entry in logged:
        entries += [*_outside(entries, entry.previous), entry]
    return entries + _outside(entries, champion)


def _is_unfinished(last: Entry, champion: int) -> bool:
    """Whether a move was announced and never carried out."""
    return last.version != champion and last.previous == champion


def _outside(entries: Sequence[Entry], champion: int) -> list[Entry]:
    """An entry for a champion that the log does not explain; empty where it does, or where there was none."""
    before = entries[-1].version if entries else 0
    if champion in (0, before):
        return []
    return [Entry("outside", champion, before, "unknown", "unknown", "the alias was moved without stm")]


def past_champions(history: Sequence[Entry]) -> list[int]:
    """Champions that a rollback can go back to, the nearest first, the present one left out.

    A promotion puts a version on top of a stack, a rollback takes off what lies above its target.
    """
    stack: list[int] = []
    for entry in history:
        if entry.kind == "rollback" and entry.version in stack:
            del stack[stack.index(entry.version) + 1 :]
            continue
        if entry.version in stack:
            stack.remove(entry.version)
        stack.append(entry.version)
    return stack[-2::-1]


def withdrawn(history: Sequence[Entry], number: int) -> Entry | None:
    """The rollback that took this version down, unless it was made champion again afterwards."""
    found = None
    for entry in history:
        if entry.version == number:
            found = None
        elif entry.kind == "rollback" and entry.previous == number:
            found = entry
    return found


def crown(registry: Registry, number: int, kind: Kind, actor: Actor, why: str, expected: int) -> Entry:
    """Make a version the champion, if the champion is still the `expected` one (0: none); log who, when and why.

    `RegistryError` if another promotion was faster; the champion is then the other one's. MLflow has no conditional
    write, so the alias is looked at before and after the announcement, and of two that were announced for the same
    place in the log the one that stands there wins.
    """
    logged = _logged(registry)
    entry = Entry(kind, number, expected, actor.who, actor.when, why)
    _expect(registry, expected)
    position = logged[-1][0] + 1 if logged else 1
    if logged and _is_unfinished(logged[-1][1], expected):
        position -= 1  # takes the place of what was announced and never carried out
    key = f"{PREFIX}{position:06d}"
    with explained(registry.uri):
        text = json.dumps(asdict(entry), ensure_ascii=False, sort_keys=True)
        registry.client.set_registered_model_tag(registry.name, key, text)
    try:
        _expect(registry, expected)
    except RegistryError:
        if dict(_logged(registry)).get(position) == entry:  # nothing came of it
            registry.client.delete_registered_model_tag(registry.name, key)
        raise
    registry.point(CHAMPION, number)
    winner = dict(_logged(registry)).get(position, entry)
    if winner != entry:
        registry.point(CHAMPION, winner.version)
        raise _overtaken(winner.version, expected)
    registry.tag(number, {"champion.since": actor.when, "champion.by": actor.who, "champion.why": why or kind})
    if registry.aliases().get(CHALLENGER) == number:
        registry.drop(CHALLENGER)
    return entry


def _expect(registry: Registry, expected: int) -> None:
    """Raise `RegistryError` unless the champion is the expected one."""
    present = registry.aliases().get(CHAMPION, 0)
    if present != expected:
        raise _overtaken(present, expected)


def _overtaken(present: int, expected: int) -> RegistryError:
    return RegistryError(
        f"another promotion made version {present} the champion meanwhile (it was {expected or 'none'}); "
        "the champion stays, run the command again to judge against it"
    )


def _logged(registry: Registry) -> list[tuple[int, Entry]]:
    """Positions and entries of the log as written, in order of position."""
    model = registry.model()
    tags = model.tags if model else {}
    try:
        return [
            (int(key.removeprefix(PREFIX)), Entry(**json.loads(value)))
            for key, value in sorted(tags.items())
            if key.startswith(PREFIX)
        ]
    except (TypeError, ValueError) as error:
        raise RegistryError(
            f"the history of {registry.name!r} in MLflow is damaged ({error}); mend or delete its tags {PREFIX}*"
        ) from error


def roll_back(registry: Registry, number: int | None, actor: Actor, why: str, *, other_backbone: bool = False) -> Entry:
    """Make an earlier champion the champion again: the previous one, or version `number`.

    `RegistryError` if there is none, or the version was never champion, has another backbone (its vectors do not fit
    existing indexes) or cannot be read.
    """
    present = registry.require(CHAMPION)
    past = past_champions(read_history(registry))
    existing = {version.number: version for version in registry.versions()}
    past = [item for item in past if item in existing]
    if number is None and not past:
        raise RegistryError(
            f"version {present.number} is the only champion there has been; there is nothing to roll back to"
        )
    target = past[0] if number is None else number
    if target == present.number:
        raise RegistryError(f"version {target} is the champion already")
    if target not in past:
        known = ", ".join(str(item) for item in past) or "none"
        raise RegistryError(f"version {target} is no earlier champion; the earlier champions are: {known}")
    ours, theirs = present.tags.get("backbone", ""), existing[target].tags.get("backbone", "")
    if ours != theirs and not other_backbone:
        raise RegistryError(
            f"version {target} has another backbone than version {present.number}, so indexes built with the present "
            "champion do not fit it; rebuild them and add --other-backbone"
        )
    _check_readable(registry, target)
    return crown(registry, target, "rollback", actor, why, present.number)


def _check_readable(registry: Registry, number: int) -> None:
    """A rollback must not end at a model whose files are gone."""
    from mlflow.models import get_model_info

    try:
        get_model_info(f"models:/{registry.name}/{number}")
    except Exception as error:  # the artifact store may be any of a dozen, each with errors of its own
        raise RegistryError(
            f"the files of version {number} cannot be read ({' '.join(str(error).split())[:200]}); the champion stays"
        ) from error
