"""Models by name through mining and validation: from a cache laid out as the hub's client does, and without a hub."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from stm import hub_models
from stm.encode import Encoder
from stm.errors import ModelError
from stm.mine.rows import mine
from stm.models import load_model
from stm.named_models import load_cross_encoder, load_retriever
from stm.synthesize.similarity import DenseSimilarity
from tests.pico import pico_backbone
from tests.test_mine import FIRST, WIDE, others, rows_of
from tests.test_mine_judges import pico_cross_encoder
from tests.test_outside import COMMIT, cache, fill

__all__ = ["cache"]  # a fixture: an empty cache of the hub, and an address at which no hub answers
TEXTS = ["heart valve tissue", "a lung", "x"]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection is a failure of the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_cached_model_mines_and_validates_as_its_folder_does(cache: Path, tmp_path: Path) -> None:
    folder = pico_backbone(tmp_path / "pico")
    fill(cache, folder)
    rows = rows_of({**FIRST, "negatives": ["lung"]}, *others(6))
    local = WIDE.model_copy(update={"dense_model": str(folder)})
    named = WIDE.model_copy(update={"dense_model": "own/pico", "dense_revision": COMMIT})
    mined, report = mine(rows, named)
    expected, expected_report = mine(rows, local)
    assert mined.equals(expected)
    assert report == expected_report
    assert report["negatives_by_origin"]["dense"] > 0
    by_name, by_folder = DenseSimilarity("own/pico", COMMIT), DenseSimilarity(str(folder))
    assert by_name.query_to_passage(TEXTS, TEXTS[::-1]) == by_folder.query_to_passage(TEXTS, TEXTS[::-1])
    assert Encoder(load_retriever("own/pico", COMMIT)).encode_queries(TEXTS).shape == (3, 32)


def test_a_passage_prompt_counts_by_whichever_name_it_has(tmp_path: Path) -> None:
    model = load_model(pico_backbone(tmp_path / "pico"))
    model.prompts = {"query": "q: ", "passage": "p: "}
    encoder = Encoder(model)
    assert (encoder.encode_passages(TEXTS) == encoder.encode(TEXTS, "p: ", "encode")).all()


@pytest.mark.usefixtures("no_network")
def test_a_cached_cross_encoder_scores_as_its_folder_does(cache: Path, tmp_path: Path) -> None:
    folder = pico_cross_encoder(tmp_path / "cross")
    fill(cache, folder)
    pairs = [("heart valve", text) for text in TEXTS]
    by_name, by_folder = load_cross_encoder("own/pico", COMMIT), load_cross_encoder(str(folder), "")
    assert by_name.predict(pairs).tolist() == by_folder.predict(pairs).tolist()


@pytest.mark.parametrize("load", [load_retriever, load_cross_encoder])
def test_a_hub_out_of_reach_is_one_sentence(cache: Path, load: Callable[[str, str], object]) -> None:
    with pytest.raises(ModelError) as caught:
        load("own/pico", COMMIT)
    assert str(caught.value) == (
        f"the hub does not answer and its cache lacks own/pico at {COMMIT[:12]}; "
        "run again when it answers, or name a local folder"
    )
    assert not list(cache.rglob("*.safetensors"))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("own/pico", "", "pin a commit"),
        ("no such//name", COMMIT, "neither a folder here nor a hub id"),
        ("a/b/c", COMMIT, "neither a folder here nor a hub id"),
    ],
)
def test_what_is_no_name_is_refused(name: str, revision: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_retriever(name, revision)


@pytest.mark.parametrize(
    ("load", "lost", "missing"),
    [
        (load_retriever, "modules.json", "modules.json or adapter_config.json"),
        (load_retriever, "model.safetensors", "*.safetensors"),
        (load_cross_encoder, "config.json", "config.json"), (load_cross_encoder, "model.safetensors", "*.safetensors"),
    ],
)  # fmt: skip
def test_a_part_of_a_model_in_the_cache_is_fetched_whole(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[[str, str], object], lost: str,
    missing: str,
) -> None:  # fmt: skip
    make = pico_backbone if load is load_retriever else pico_cross_encoder
    snapshot = fill(cache, make(tmp_path / "pico"))
    links = {path: path.readlink() for path in snapshot.rglob(lost) if path.parent.name != "1_Pooling"}
    for link in links:
        link.unlink()
    with pytest.raises(ModelError) as caught:
        load("own/pico", COMMIT)
    assert f"the hub does not answer and its cache lacks {missing} of own/pico" in str(caught.value)

    def download(*_: object, local_files_only: bool, **__: object) -> str:
        for link, target in ({} if local_files_only else links).items():
            link.symlink_to(target)
        return str(snapshot)

    monkeypatch.setattr(hub_models, "is_hub_reachable", lambda: True)
    monkeypatch.setattr(hub_models, "snapshot_download", download)
    load("own/pico", COMMIT)


def test_a_snapshot_that_is_no_retriever_is_refused(cache: Path, tmp_path: Path) -> None:
    fill(cache, pico_cross_encoder(tmp_path / "cross"))
    with pytest.raises(ModelError, match=r"modules\.json"):
        load_retriever("own/pico", COMMIT)
