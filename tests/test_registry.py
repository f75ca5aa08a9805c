"""The registry: aliases, history, rollback, and what goes wrong there."""

import contextlib
import itertools
import json
import shutil
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import pytest

from stm.errors import RegistryError, redact
from stm.promote import history
from stm.promote.history import Actor, Entry, crown, read_history, replay, roll_back, withdrawn
from stm.promote.registry import CHALLENGER, CHAMPION, Registry, resolve_uri
from stm.promote.versions import CONTENT, find_version, may_retag
from tests.registry_project import ACTOR, migrated_store

NUMBERS = itertools.count()


@lru_cache(maxsize=1)
def store() -> Path:
    path = migrated_store().with_name("registry.db")
    shutil.copyfile(migrated_store(), path)
    return path


def open_registry(name: str = "") -> Registry:
    """A registered model of its own for each test, all in one store: opening a store is slow."""
    return Registry.open(f"sqlite:///{store()}", name or f"retriever-{next(NUMBERS)}", create=True)


def add_versions(registry: Registry, count: int, **tags: str) -> None:
    """Register `count` versions whose files do not matter."""
    if registry.model() is None:
        registry.client.create_registered_model(registry.name)
    for _ in range(count):
        registry.client.create_model_version(registry.name, "file:///nowhere", tags={"backbone": "b1", **tags})


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry with four versions, none of them champion, whose files count as readable."""
    monkeypatch.setattr(history, "_check_readable", lambda *_: None)
    found = open_registry()
    add_versions(found, 4)
    return found


def promote_all(registry: Registry, *numbers: int) -> None:
    for number in numbers:
        crown(registry, number, "promote", ACTOR, "gates passed", registry.aliases().get(CHAMPION, 0))


def test_an_empty_registry_has_nothing_and_says_what_to_do() -> None:
    registry = open_registry()
    assert (registry.model(), registry.aliases(), registry.versions(), read_history(registry)) == (None, {}, [], [])
    with pytest.raises(RegistryError, match=r"no 'champion' \(its aliases are: none\); `stm promote`"):
        registry.require(CHAMPION)
    with pytest.raises(RegistryError, match=r"has no version 3; its versions are: none"):
        registry.version(3)


def test_a_missing_local_store_is_not_created_by_looking(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no registry yet"):
        Registry.open(f"sqlite:///{tmp_path}/none/mlflow.db", "stm-retriever")
    assert not list(tmp_path.iterdir())


def test_a_store_whose_making_is_cut_off_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def cut_off(self: object, uri: str, *_: object) -> None:
        made.append(Path(uri.removeprefix("sqlite:///")))
        made[0].write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore.__init__", cut_off)
    with pytest.raises(KeyboardInterrupt):
        Registry.open(f"sqlite:///{tmp_path}/mlruns/mlflow.db", "stm-retriever", create=True)
    assert made[0].parent == tmp_path / "mlruns"
    assert list((tmp_path / "mlruns").iterdir()) == []


def test_an_alias_that_does_not_exist_names_those_that_do(registry: Registry) -> None:
    registry.point(CHALLENGER, 2)
    with pytest.raises(RegistryError, match="its aliases are: challenger"):
        registry.require("no/such 'alias' 🫀")
    assert registry.require(CHALLENGER).number == 2


def test_versions_carry_aliases_and_tags_newest_first(registry: Registry) -> None:
    registry.tag(3, {"note": "quotes \"' and 🫀 / slash"})
    promote_all(registry, 3)
    versions = registry.versions()
    assert [version.number for version in versions] == [4, 3, 2, 1]
    assert [version.aliases for version in versions] == [(), (CHAMPION,), (), ()]
    assert versions[1].tags["note"] == "quotes \"' and 🫀 / slash"


def test_a_promotion_is_logged_with_who_when_and_why(registry: Registry) -> None:
    registry.point(CHALLENGER, 1)
    crown(registry, 1, "force", Actor('Zoë / 🫀 "x"', "2026-01-01"), "a 'good' reason", 0)
    (entry,) = read_history(registry)
    assert (entry.kind, entry.version, entry.previous) == ("force", 1, 0)
    assert (entry.who, entry.when, entry.why) == ('Zoë / 🫀 "x"', "2026-01-01", "a 'good' reason")
    assert registry.aliases() == {CHAMPION: 1}  # no longer challenger
    assert registry.version(1).tags["champion.why"] == "a 'good' reason"


def test_rollback_goes_back_step_by_step_and_not_to_and_fro(registry: Registry) -> None:
    promote_all(registry, 1, 2, 4)
    assert roll_back(registry, None, ACTOR, "bad").version == 2
    assert roll_back(registry, None, ACTOR, "bad").version == 1
    with pytest.raises(RegistryError, match="no champion before version 1, so there is nothing to roll back to"):
        roll_back(registry, None, ACTOR, "bad")
    assert [entry.version for entry in read_history(registry)] == [1, 2, 4, 2, 1]


def test_rollback_to_any_earlier_champion_and_to_no_other_version(registry: Registry) -> None:
    promote_all(registry, 1, 2, 4)
    with pytest.raises(RegistryError, match="version 3 is no earlier champion; the earlier champions are: 2, 1"):
        roll_back(registry, 3, ACTOR, "bad")
    with pytest.raises(RegistryError, match="version 4 is the champion already"):
        roll_back(registry, 4, ACTOR, "bad")
    assert roll_back(registry, 1, ACTOR, "bad").previous == 4
    assert registry.aliases()[CHAMPION] == 1


def test_rollback_without_a_champion_says_so(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="has no 'champion'"):
        roll_back(registry, None, ACTOR, "bad")


def test_rollback_to_another_backbone_needs_a_word(registry: Registry) -> None:
    add_versions(registry, 1, backbone="b2")
    promote_all(registry, 1, 5)
    with pytest.raises(RegistryError, match="another backbone"):
        roll_back(registry, None, ACTOR, "bad")
    assert roll_back(registry, None, ACTOR, "bad", other_backbone=True).version == 1


def test_rollback_refuses_a_version_whose_files_are_gone() -> None:
    registry = open_registry()
    add_versions(registry, 2)
    promote_all(registry, 1, 2)
    with pytest.raises(RegistryError, match=r"cannot be loaded: .*; the champion stays"):
        roll_back(registry, None, ACTOR, "bad")
    assert registry.aliases()[CHAMPION] == 2
    assert len(read_history(registry)) == 2


def test_rollback_skips_deleted_versions(registry: Registry) -> None:
    promote_all(registry, 1, 2, 4)
    registry.client.delete_model_version(registry.name, "2")
    with pytest.raises(RegistryError, match="has no version 2; its versions are: 1, 3, 4"):
        roll_back(registry, 2, ACTOR, "bad")
    assert roll_back(registry, None, ACTOR, "bad").version == 1


@pytest.mark.parametrize("number", [None, 2])
def test_after_the_champion_was_deleted_a_rollback_takes_the_latest_that_is_left(
    registry: Registry, number: int | None
) -> None:
    promote_all(registry, 1, 2, 4)
    registry.client.delete_model_version(registry.name, "4")
    assert registry.aliases() == {}
    entry = roll_back(registry, number, ACTOR, "bad")
    assert (entry.kind, entry.version, entry.previous, registry.aliases()) == ("rollback", 2, 0, {CHAMPION: 2})
    assert replay(read_history(registry))[0] == [2, 1]
    assert roll_back(registry, None, ACTOR, "bad").version == 1


def test_after_all_champions_were_deleted_there_is_none(registry: Registry) -> None:
    promote_all(registry, 1)
    registry.client.delete_model_version(registry.name, "1")
    with pytest.raises(RegistryError, match="has no 'champion'"):
        roll_back(registry, None, ACTOR, "bad")


def test_a_rollback_without_a_champion_gives_way_to_a_promotion_that_was_faster(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote_all(registry, 1, 2)
    registry.client.delete_model_version(registry.name, "2")
    monkeypatch.setattr(history, "_check_readable", lambda *_: promote_all(registry, 3))
    with pytest.raises(RegistryError, match="another promotion made version 3 the champion meanwhile"):
        roll_back(registry, None, ACTOR, "bad")
    assert registry.aliases() == {CHAMPION: 3}
    assert [entry.version for entry in read_history(registry)] == [1, 2, 3]


def test_what_was_rolled_back_is_told_with_the_way_to_bring_it_back(registry: Registry) -> None:
    promote_all(registry, 1, 2)
    roll_back(registry, None, Actor("Bob", "later"), "complaints")
    told = r'version 2 was rolled back by Bob on later \(complaints\); `stm promote --force --reason "\.\.\."` with'
    with pytest.raises(RegistryError, match=f"^{told}"):
        roll_back(registry, 2, ACTOR, "undo")
    with pytest.raises(RegistryError, match=f"no champion before version 1, so there is nothing to .*; {told}"):
        roll_back(registry, None, ACTOR, "undo")
    assert registry.aliases() == {CHAMPION: 1}


def test_a_version_that_was_rolled_back_is_known_until_it_is_champion_again(registry: Registry) -> None:
    promote_all(registry, 1, 2)
    roll_back(registry, None, Actor("Bob", "later"), "complaints")
    found = withdrawn(read_history(registry), 2)
    assert found is not None
    assert (found.who, found.why) == ("Bob", "complaints")
    promote_all(registry, 2)
    assert withdrawn(read_history(registry), 2) is None


def test_a_rollback_over_several_versions_takes_all_of_them_down(registry: Registry) -> None:
    promote_all(registry, 1, 2, 3)
    roll_back(registry, 1, Actor("Bob", "later"), "2 and 3 give wrong answers")
    found = [withdrawn(read_history(registry), number) for number in (1, 2, 3)]
    assert [entry and entry.who for entry in found] == [None, "Bob", "Bob"]
    promote_all(registry, 3)  # by force
    assert [withdrawn(read_history(registry), number) is None for number in (1, 2, 3)] == [True, False, True]
    assert replay(read_history(registry))[0] == [3, 1]


def test_two_promotions_at_once_end_in_one_winner_and_a_message(registry: Registry) -> None:
    promote_all(registry, 1)
    crown(registry, 2, "promote", ACTOR, "first", 1)
    with pytest.raises(RegistryError, match="another promotion made version 2 the champion meanwhile"):
        crown(registry, 3, "promote", ACTOR, "second", 1)
    assert registry.aliases()[CHAMPION] == 2
    assert [entry.version for entry in read_history(registry)] == [1, 2]


@pytest.mark.parametrize("call", ["set_registered_model_tag", "set_registered_model_alias"])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_promotion_that_falls_into_another_one_leaves_one_winner(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, call: str, is_before: bool
) -> None:
    """The second runs as a whole just before or just after a step of the first; exactly one says that it won."""
    promote_all(registry, 1)
    original, outcomes = getattr(registry.client, call), []

    def meanwhile(*args: object) -> None:
        monkeypatch.setattr(registry.client, call, original)
        if not is_before:
            original(*args)
        outcomes.append(attempt(registry, 3))
        if is_before:
            original(*args)

    monkeypatch.setattr(registry.client, call, meanwhile)
    outcomes.append(attempt(registry, 2))
    (winner,) = [number for number in outcomes if number]
    assert registry.aliases()[CHAMPION] == winner
    assert [entry.version for entry in read_history(registry)] == [1, winner]


@pytest.mark.parametrize("has_pointed", [True, False])
def test_a_rival_that_dies_after_its_announcement_loses(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, has_pointed: bool
) -> None:
    """It is announced after the first move and before the first moves the alias; then nothing more is heard of it."""
    promote_all(registry, 1)
    monkeypatch.setattr(history, "PATIENCE_SECONDS", 0.1)
    original = registry.client.set_registered_model_alias

    def meanwhile(*args: object) -> None:
        monkeypatch.setattr(registry.client, "set_registered_model_alias", original)
        original(*args)
        rival = Entry("promote", 3, 1, "Bob", "now", "why")
        registry.client.set_registered_model_tag(registry.name, f"{history.PREFIX}000009.x", json.dumps(asdict(rival)))
        if has_pointed:
            registry.point(CHAMPION, 3)

    monkeypatch.setattr(registry.client, "set_registered_model_alias", meanwhile)
    assert attempt(registry, 2) == 2
    assert registry.aliases()[CHAMPION] == 2
    assert [entry.version for entry in read_history(registry)] == [1, 2]
    promote_all(registry, 4)
    assert [entry.version for entry in read_history(registry)] == [1, 2, 4]


def test_whoever_comes_late_leaves_the_entries_of_others(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has read the log before the other's whole promotion, and writes after it."""
    promote_all(registry, 1)
    logged = history._logged(registry)
    crown(registry, 2, "promote", Actor("Ada", "now"), "why", 1)
    with monkeypatch.context() as patch:
        looks = [1, 2]
        patch.setattr(registry, "aliases", lambda: {CHAMPION: looks.pop(0)})
        patch.setattr(history, "_logged", lambda _: logged)
        with pytest.raises(RegistryError, match="made version 2 the champion meanwhile"):
            crown(registry, 3, "promote", Actor("Bob", "now"), "why", 1)
    assert [(entry.version, entry.who) for entry in read_history(registry)] == [(1, "Ada"), (2, "Ada")]


def attempt(registry: Registry, number: int) -> int:
    """The number if it became champion in place of version 1, else 0."""
    with contextlib.suppress(RegistryError):
        return crown(registry, number, "promote", ACTOR, "why", 1).version
    return 0


def test_a_crash_between_the_log_and_the_alias_leaves_champion_and_history(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote_all(registry, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(registry, "point", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            crown(registry, 3, "promote", ACTOR, "why", 2)
    assert registry.aliases()[CHAMPION] == 2
    assert [entry.version for entry in read_history(registry)] == [1, 2]
    promote_all(registry, 4)
    assert [entry.version for entry in read_history(registry)] == [1, 2, 4]


def test_an_alias_moved_by_other_hands_shows_in_the_history(registry: Registry) -> None:
    promote_all(registry, 1)
    registry.point(CHAMPION, 3)
    assert [(entry.kind, entry.version) for entry in read_history(registry)] == [("promote", 1), ("outside", 3)]
    promote_all(registry, 4)
    assert [entry.version for entry in read_history(registry)] == [1, 3, 4]
    assert roll_back(registry, None, ACTOR, "bad").version == 3


def test_an_alias_moved_back_by_hand_hides_no_promotion(registry: Registry) -> None:
    promote_all(registry, 1, 2)
    registry.point(CHAMPION, 1)
    found = [(entry.kind, entry.version) for entry in read_history(registry)]
    assert found == [("promote", 1), ("promote", 2), ("outside", 1)]


def test_a_clock_that_runs_backwards_does_not_change_the_order(registry: Registry) -> None:
    for number, when in ((1, "2030-01-01"), (2, "2020-01-01"), (3, "1999-01-01")):
        crown(registry, number, "promote", Actor("a", when), "why", registry.aliases().get(CHAMPION, 0))
    assert replay(read_history(registry))[0] == [3, 2, 1]


def test_a_damaged_history_is_named(registry: Registry) -> None:
    promote_all(registry, 1)
    registry.client.set_registered_model_tag(registry.name, f"{history.PREFIX}000002", "{not json")
    with pytest.raises(RegistryError, match=r"history of 'retriever-.*' in MLflow is damaged"):
        read_history(registry)


def test_a_server_that_is_down_is_one_sentence_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = Registry.open("http://ada:hunter22@127.0.0.1:9", "stm-retriever", create=True)
    with pytest.raises(RegistryError, match="results are safe in models/ and reports/") as caught:
        registry.versions()
    assert "hunter22" not in str(caught.value)


def test_the_environment_wins_over_params(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_uri("sqlite:///a.db") == "sqlite:///a.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert resolve_uri("sqlite:///a.db") == "http://127.0.0.1:5000"


def test_passwords_never_show() -> None:
    assert redact("postgresql://me:secret@host/db") == "postgresql://host/db"
    assert redact("sqlite:///mlruns/mlflow.db") == "sqlite:///mlruns/mlflow.db"
    assert (
        redact("of http://me:p@ss@host:5000/a and postgresql://me:a/b@host")
        == "of http://host:5000/a and postgresql://host"
    )


def test_a_registered_name_may_hold_emoji() -> None:
    registry = open_registry("retriever 🫀 №1")
    add_versions(registry, 1)
    promote_all(registry, 1)
    assert registry.require(CHAMPION).number == 1


def test_of_two_versions_of_one_content_the_first_counts(registry: Registry) -> None:
    add_versions(registry, 2, **{CONTENT: "same"})
    found = find_version(registry, "same")
    assert found is not None
    assert found.number == 5
    assert find_version(registry, "none") is None


@pytest.mark.parametrize(
    ("known", "new", "may"),
    [
        (("a", "true"), ("a", "false"), True),
        (("a", "false"), ("a", "false"), True),
        (("a", "unknown"), ("a", "unknown"), True),
        (("a", "false"), ("a", "true"), False),
        (("a", "false"), ("a", "unknown"), False),
        (("a", "true"), ("b", "false"), False),
        (("unknown", "true"), ("b", "false"), True),
    ],
)
def test_tags_give_way_to_those_of_the_same_results_of_which_no_less_is_known(
    registry: Registry, known: tuple[str, str], new: tuple[str, str], may: bool
) -> None:
    (had, dirty), tags = known, dict(zip(("dvc.lock", "git.dirty"), new, strict=True))
    add_versions(registry, 1, **{"dvc.lock": had, "git.dirty": dirty})
    assert may_retag(registry.version(5), tags) is may
