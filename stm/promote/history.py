"""Who made which version the champion, when and why: a log in the tags of the registered model.

An entry is written before the alias moves and marked as done afterwards; one that is not marked counts only if the
alias shows that it moved. So a crash in between leaves the old champion and a true history. Entries are ordered by
their number, never by a clock.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from stm.errors import RegistryError
from stm.progress import say
from stm.promote.registry import CHALLENGER, CHAMPION, Registry, Version, explained, no_leftovers
from stm.promote.versions import load_registered

PREFIX = "stm.history."
PATIENCE_SECONDS, POLL_SECONDS = 10.0, 0.2  # for another's move that was announced and is not carried out
Kind = Literal["promote", "force", "rollback", "outside"]


class OvertakenError(RegistryError):
    """Another promotion was faster."""


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
    done: bool = False  # the alias has moved; False in what was announced, or where a crash came before the mark


def read_history(registry: Registry) -> list[Entry]:
    """The moves that took place, the oldest first; an alias moved by other hands appears as kind "outside"."""
    logged, champion = [entry for _, entry in _logged(registry)], registry.aliases().get(CHAMPION, 0)
    followed_by = [*(entry.previous for entry in logged[1:]), champion]
    entries: list[Entry] = []
    for entry, after in zip(logged, followed_by, strict=False):
        if entry.done or entry.version == after:  # else announced and never carried out
            entries += [*_outside(entries, entry.previous), entry]
    return entries + _outside(entries, champion)


def _outside(entries: Sequence[Entry], champion: int) -> list[Entry]:
    """An entry for a champion that the log does not explain; empty where it does, or where there was none."""
    before = entries[-1].version if entries else 0
    if champion in (0, before):
        return []
    return [Entry("outside", champion, before, "unknown", "unknown", "the alias was moved without stm", True)]


def replay(history: Sequence[Entry]) -> tuple[list[int], dict[int, Entry]]:
    """The champions that stand, the latest first, and of those that were taken down the rollback that did it, the
    latest last.

    A promotion puts a version on top of a stack, a rollback takes down what lies above its target.
    """
    stack: list[int] = []
    down: dict[int, Entry] = {}
    for entry in history:
        if entry.kind == "rollback" and entry.version in stack:
            above = stack.index(entry.version) + 1
            down |= dict.fromkeys(stack[above:], entry)
            del stack[above:]
            continue
        if entry.version in stack:
            stack.remove(entry.version)
        stack.append(entry.version)
        down.pop(entry.version, None)
    return stack[::-1], down


def withdrawn(history: Sequence[Entry], number: int) -> Entry | None:
    """The rollback that took this version down, unless it was made champion again afterwards."""
    return replay(history)[1].get(number)


def crown(registry: Registry, number: int, kind: Kind, actor: Actor, why: str, expected: int) -> Entry:
    """Make a version the champion, if the champion is still the `expected` one (0: none); log who, when and why.

    `OvertakenError` if another promotion was faster; the champion is then the other one's. MLflow has no conditional
    write, so everybody announces the move under a key of their own, which nobody else deletes, nor writes before the
    move is final, and looks at the alias before and after. Of several whose moves met, the one that was announced last
    has the last word.
    """
    _expect(registry, expected)
    logged = _logged(registry)
    key = f"{PREFIX}{_position(logged[-1][0]) + 1 if logged else 1:06d}.{uuid.uuid4().hex[:8]}"
    entry = Entry(kind, number, expected, actor.who, actor.when, why)
    _write(registry, key, entry)
    try:
        _expect(registry, expected)
    except OvertakenError:
        _delete(registry, key)  # nothing came of it
        raise
    registry.point(CHAMPION, number)
    if rival := _rival(registry, key, entry):
        registry.point(CHAMPION, rival.version)
        _delete(registry, key)
        raise _overtaken(rival.version, expected)
    return _finish(registry, key, entry, {})


def settle(registry: Registry, champion: Version) -> Entry | None:
    """Complete what a cut has left out after the move that made this version the champion, and return that move.

    None where the log knows no such move, or a rival's announcement may still undo it. The alias is looked at before
    the log: whoever was announced before it moved is then seen there, and whoever comes later finds it moved.
    """
    if registry.aliases().get(CHAMPION) != champion.number:
        return None
    logged = _logged(registry)
    key, entry = next(((k, e) for k, e in reversed(logged) if e.version == champion.number), ("", None))
    if entry is None:
        return None
    if not entry.done and any(name > key and other.previous == entry.previous for name, other in logged):
        return None
    return _finish(registry, key, entry, champion.tags)


def _finish(registry: Registry, key: str, entry: Entry, known: Mapping[str, str]) -> Entry:
    """Write what follows the alias: the mark in the log, and who, when and why in the version's tags, where they are
    not `known`; the champion is no challenger any more.
    """
    if not entry.done:
        entry = replace(entry, done=True)
        _write(registry, key, entry)
    tags = {"champion.since": entry.when, "champion.by": entry.who, "champion.why": entry.why or entry.kind}
    registry.tag(entry.version, tags, known)
    if registry.aliases().get(CHALLENGER) == entry.version:
        registry.drop(CHALLENGER)
    return entry


def _rival(registry: Registry, key: str, entry: Entry) -> Entry | None:
    """The move from the same champion that was announced after `entry` and carried out; None if there is none.

    One that is announced is waited for; of one that then is neither carried out nor taken back, the alias is taken.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        later = [other for name, other in _logged(registry) if name > key]
        rivals = [other for other in later if other.previous == entry.previous]
        if not rivals or any(other.previous == entry.version for other in later):  # or somebody has built on it
            return None
        if rivals[-1].done:
            return rivals[-1]
        if time.monotonic() > deadline:
            registry.point(CHAMPION, entry.version)
            return None
        time.sleep(POLL_SECONDS)


def _write(registry: Registry, key: str, entry: Entry) -> None:
    with explained(registry.uri):
        text = json.dumps(asdict(entry), ensure_ascii=False, sort_keys=True)
        registry.client.set_registered_model_tag(registry.name, key, text)


def _delete(registry: Registry, key: str) -> None:
    with explained(registry.uri):
        registry.client.delete_registered_model_tag(registry.name, key)


def _expect(registry: Registry, expected: int) -> None:
    """Raise `OvertakenError` unless the champion is the expected one."""
    present = registry.aliases().get(CHAMPION, 0)
    if present != expected:
        raise _overtaken(present, expected)


def _overtaken(present: int, expected: int) -> OvertakenError:
    return OvertakenError(
        f"another promotion made version {present} the champion meanwhile (it was {expected or 'none'}); "
        "the champion stays, run the command again to judge against it"
    )


def _logged(registry: Registry) -> list[tuple[str, Entry]]:
    """Keys and entries of the log as written, in order."""
    model = registry.model()
    tags = model.tags if model else {}
    try:
        return [(key, Entry(**json.loads(value))) for key, value in sorted(tags.items()) if _position(key)]
    except (TypeError, ValueError) as error:
        raise RegistryError(
            f"the history of {registry.name!r} in MLflow is damaged ({error}); mend or delete its tags {PREFIX}*"
        ) from error


def _position(key: str) -> int:
    """The number of an entry by its key; 0 for a tag that is none."""
    return int(key.removeprefix(PREFIX).split(".")[0]) if key.startswith(PREFIX) else 0


@no_leftovers()
def roll_back(registry: Registry, number: int | None, actor: Actor, why: str, *, other_backbone: bool = False) -> Entry:
    """Make an earlier champion the champion again: the latest one that MLflow still has, or version `number`.

    `RegistryError` if there is none, or the version was never champion, was rolled back itself, has another backbone
    (its vectors do not fit existing indexes) or cannot be loaded. After the champion was deleted in MLflow there is no
    backbone to compare.
    """
    champion = registry.by_alias(CHAMPION)
    present = champion.number if champion else 0
    existing = {version.number: version for version in registry.versions()}
    standing, down = replay(read_history(registry))
    past = [item for item in standing if item in existing and item != present]
    if not present and not past:
        registry.require(CHAMPION)
    if number is not None:
        registry.version(number)
    target = number or next(iter(past), 0)  # versions count from 1
    if champion and target == present:
        raise RegistryError(f"version {target} is the champion already")
    if target not in past:
        down = {item: entry for item, entry in down.items() if item in existing}
        raise RegistryError(_no_way_back(target, present, past, down))
    theirs = existing[target].tags.get("backbone", "")
    if champion and champion.tags.get("backbone", "") != theirs and not other_backbone:
        raise RegistryError(
            f"version {target} has another backbone than version {present}, so indexes built with the present "
            "champion do not fit it; rebuild them and add --other-backbone"
        )
    _check_readable(registry, target)
    return crown(registry, target, "rollback", actor, why, present)


def _no_way_back(target: int, present: int, past: Sequence[int], down: dict[int, Entry]) -> str:
    """Why there is no rollback to the target, or (0) to any version."""
    nothing = f"MLflow has no champion before version {present}, so there is nothing to roll back to"
    reasons = [] if target else [nothing]
    target = target or next(reversed(down), 0)
    if target in down:
        entry = down[target]
        reasons.append(
            f"version {target} was rolled back by {entry.who} on {entry.when} ({entry.why}); "
            '`stm promote --force --reason "..."` with its files in models/merged brings it back'
        )
    elif not reasons:
        known = ", ".join(str(item) for item in past) or "none"
        reasons.append(f"version {target} is no earlier champion; the earlier champions are: {known}")
    return "; ".join(reasons)


def _check_readable(registry: Registry, number: int) -> None:
    """A rollback must not end at a model whose files are gone: it is loaded, as a service would load it."""
    say(f"loading version {number}, to see that it can be used")
    load_registered(f"models:/{registry.name}/{number}")
