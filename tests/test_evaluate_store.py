"""The embedding store: nothing is encoded twice, keys are by content, and the folder stays within its bound."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Router, StaticEmbedding

from stm.errors import DataError, ModelError, STMError
from stm.evaluate import dense, store
from stm.evaluate.store import EmbeddingStore, StoredEncoder
from stm.files import read_json, write_json
from stm.named_models import load_retriever
from stm.params.evaluate import EvaluateParams
from stm.text_encoder import Floats
from tests.pico import pico_backbone, pico_tokenizer

PARAMS = EvaluateParams(batch_tokens=0, store_megabytes=10)


class Counting:
    """Encodes a text as its length and first letter; remembers every text that it was given."""

    def __init__(self, broken: bool = False) -> None:
        self.seen: list[tuple[str, str]] = []
        self.broken = broken

    def encode(self, texts: Sequence[str], prompt: str = "", description: str = "") -> Floats:
        self.seen += [(prompt, text) for text in texts]
        rows = [[float(len(prompt + text)), float(ord(text[0])), np.nan if self.broken else 0.5] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), 3)


def test_a_text_is_encoded_once_per_prompt_and_comes_back_bit_by_bit(tmp_path: Path) -> None:
    inner = Counting()
    encoder = StoredEncoder(inner, EmbeddingStore("model", 10, tmp_path))
    first = encoder.encode(["b", "a", "b", "\u00e9\u4e2d"], "Q: ")
    again = StoredEncoder(inner, EmbeddingStore("model", 10, tmp_path)).encode(["\u00e9\u4e2d", "new", "b"], "Q: ")
    assert inner.seen == [("Q: ", "b"), ("Q: ", "a"), ("Q: ", "\u00e9\u4e2d"), ("Q: ", "new")]
    assert np.array_equal(again[[0, 2]], first[[3, 0]])
    assert first.dtype == again.dtype == np.float32
    assert (encoder.encoded, encoder.reused) == (3, 0)
    encoder.encode(["b"], "")
    assert inner.seen[-1] == ("", "b")


def test_prompt_and_text_are_not_confused(tmp_path: Path) -> None:
    inner = Counting()
    encoder = StoredEncoder(inner, EmbeddingStore("model", 10, tmp_path))
    encoder.encode(["c"], "ab")
    encoder.encode(["bc"], "a")
    assert inner.seen == [("ab", "c"), ("a", "bc")]


def test_models_do_not_share_vectors(tmp_path: Path) -> None:
    for name in ("one", "two"):
        inner = Counting()
        StoredEncoder(inner, EmbeddingStore(name, 10, tmp_path)).encode(["a"])
        assert inner.seen == [("", "a")]


def test_no_texts_give_no_rows(tmp_path: Path) -> None:
    assert StoredEncoder(Counting(), EmbeddingStore("model", 10, tmp_path)).encode([]).shape == (0, 3)


def test_broken_vectors_are_handed_on_but_never_stored(tmp_path: Path) -> None:
    assert np.isnan(StoredEncoder(Counting(broken=True), EmbeddingStore("m", 10, tmp_path)).encode(["a"])).any()
    sound = Counting()
    StoredEncoder(sound, EmbeddingStore("m", 10, tmp_path)).encode(["a"])
    assert sound.seen == [("", "a")]


def test_the_least_recently_used_model_goes_when_the_bound_is_reached(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(600)]
    vectors = np.random.default_rng(0).standard_normal((600, 256)).astype(np.float32)  # about 0.7 MB a model
    for name in ("old", "middle"):
        EmbeddingStore(name, 2, tmp_path).write("", texts, vectors)
    EmbeddingStore("old", 2, tmp_path).read("", texts[:1])  # used again, so "middle" is the older one now
    EmbeddingStore("new", 2, tmp_path).write("", texts, vectors)
    assert sorted(path.stem for path in tmp_path.glob("*.sqlite")) == ["new", "old"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2_000_000


def test_one_model_larger_than_the_bound_keeps_to_it_and_to_its_vectors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = StoredEncoder(Counting(), EmbeddingStore("model", 1, tmp_path))
    for start in range(0, 30_000, 6_000):
        rows = encoder.encode([f"{number} " * 10 for number in range(start, start + 6_000)])
        assert rows.shape == (6_000, 3)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1_000_000
    assert capsys.readouterr().err.count("more than evaluate.store_megabytes (1), and are not kept; raise it") == 1


def test_a_file_that_another_process_evicts_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, gone = EmbeddingStore("mine", 10, tmp_path), tmp_path / "gone.sqlite"
    mine.write("", ["a"], np.ones((1, 3), dtype=np.float32))
    gone.touch()
    found = list(tmp_path.glob("*.sqlite"))
    gone.unlink()
    monkeypatch.setattr(Path, "glob", lambda *_: iter(found))
    mine.write("", ["b"], np.ones((1, 3), dtype=np.float32))
    monkeypatch.setattr("os.utime", lambda path: gone.stat())
    assert set(mine.read("", ["a", "b"])) == {"a", "b"}


def test_a_broken_store_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model.sqlite").write_text("this is no database, however long one makes it " * 50)
    with pytest.raises(STMError, match=r"delete it, or set evaluate\.store_megabytes to 0"):
        EmbeddingStore("model", 10, tmp_path).read("", ["a"])


def test_an_opened_model_uses_the_store_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pico_backbone(tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    sides = []
    for model_hash in ("one", "one", "two"):
        model = dense.open_model("pico", folder, model_hash, PARAMS)
        rows = model.encode([{"text": ["heart", "lung"]}], task_metadata=model.mteb_model_meta)
        assert isinstance(model.encoder, StoredEncoder)
        sides.append((model.encoder.encoded, model.encoder.reused))
        assert rows.shape == (2, 32)
    assert sides == [(2, 0), (0, 2), (2, 0)]
    monkeypatch.setattr(store, "hash_code", lambda *_: "other code")
    model = dense.open_model("pico", folder, "one", PARAMS)
    model.encode([{"text": ["heart", "lung"]}], task_metadata=model.mteb_model_meta)
    assert isinstance(model.encoder, StoredEncoder)
    assert (model.encoder.encoded, model.encoder.reused) == (2, 0)


def test_a_model_that_is_compared_in_another_way_is_refused(tmp_path: Path) -> None:
    folder = pico_backbone(tmp_path / "backbone")
    config = folder / "config_sentence_transformers.json"
    values = read_json(config)
    for name, fits in (("dot", True), ("euclidean", False), ("cosine", True)):
        write_json(config, {**values, "similarity_fn_name": name})
        if fits:
            dense.open_model("pico", folder, "hash", PARAMS)
        else:
            with pytest.raises(ModelError, match="made for the similarity 'euclidean'"):
                dense.open_model("pico", folder, "hash", PARAMS)
    pooling = next(folder.glob("*Pooling*/config.json"))
    write_json(pooling, {**read_json(pooling), "include_prompt": False})
    with pytest.raises(ModelError, match="leaves its prompt out"):
        dense.open_model("pico", folder, "hash", PARAMS)
    write_json(pooling, {**read_json(pooling), "include_prompt": True})
    dense.open_model("pico", folder, "hash", PARAMS)


def test_a_prompt_that_leaves_no_room_for_a_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pico_backbone(tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    for side in ("query", "document"):
        dense.open_model("pico", folder, "hash", PARAMS, {side: "find " * 7})
        with pytest.raises(DataError, match=r"leaves none of the 48 of a text to what follows it: 'find find"):
            dense.open_model("pico", folder, "hash", PARAMS, {side: "find " * 12})


def test_a_model_with_an_encoder_for_each_side_is_refused_here_and_in_mining(tmp_path: Path) -> None:
    queries, passages = (
        list(SentenceTransformer(str(pico_backbone(tmp_path / str(seed), seed=seed)), device="cpu")) for seed in (1, 2)
    )
    router = Router.for_query_document(query_modules=queries, document_modules=passages)
    SentenceTransformer(modules=[router], device="cpu").save(str(tmp_path / "both"))
    for load in (lambda path: dense.open_model("both", path, "hash", PARAMS), lambda path: load_retriever(path, "")):
        with pytest.raises(ModelError, match=r"both has one encoder for queries and another for passages \(Router\)"):
            load(str(tmp_path / "both"))


def test_a_model_without_a_tokenizer_of_transformers_is_refused(tmp_path: Path) -> None:
    static = StaticEmbedding(pico_tokenizer().backend_tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    with pytest.raises(ModelError, match="static begins with a StaticEmbedding, which has no tokenizer"):
        dense.open_model("static", tmp_path / "static", "hash", PARAMS)
