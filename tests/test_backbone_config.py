"""What a backbone's config tells is checked before its weights are sought: family, layers, lengths and windows."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from stm.backbone import FAMILIES, build_backbone, describe_window, load_source
from stm.errors import ModelError
from stm.models import load_model
from stm.params.backbone import BackboneParams
from tests.pico import pico_decoder, pico_params, pico_tokenizer
from tests.test_outside import COMMIT, cache, fill

__all__ = ["cache"]  # a fixture: an empty cache of the hub, and an address at which no hub answers
KNOWN = "known: llama, qwen3, gemma, gemma2, phi3, mistral"
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 40.0, "rope_theta": 10000.0}


def settings_of(family: str, **changes: Any) -> dict[str, Any]:
    """A pico config of the family, as its config.json holds it."""
    return pico_decoder(family).config.to_dict() | changes


def weightless(folder: Path, settings: dict[str, Any]) -> Path:
    """A folder that has a config and a tokenizer, and no weights: whatever is sought in it is not found."""
    pico_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def params_for(folder: Path, **changes: object) -> BackboneParams:
    return pico_params(source={"kind": "folder", "path": str(folder)}, **changes)


def refusal(folder: Path, **changes: object) -> str:
    """The message with which the folder is refused."""
    with pytest.raises(ModelError) as caught:
        load_source(params_for(folder, **changes))
    return str(caught.value)


@pytest.fixture
def pico_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a GGUF file of an architecture without a single tensor, and has the package source find it."""

    def write(architecture: str) -> BackboneParams:
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", architecture)
        writer.add_block_count(2)
        writer.add_context_length(128)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        monkeypatch.setattr("stm.backbone.package_file", lambda *_: tmp_path / "x.gguf")
        return pico_params(source={"kind": "package", "package": "x", "file": "x.gguf"}, layers=3)

    return write


def test_the_list_of_known_families_is_the_one_that_the_tests_run_through() -> None:
    assert f"known: {', '.join(FAMILIES)}" == KNOWN


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "gpt_neox"},
        {"model_type": "not_in_transformers"},
        {"model_type": "by_own_code", "auto_map": {"AutoConfig": "configuration.Own"}},
        # Which transformers takes for ministral.
        {"model_type": "mistral", "layer_types": ["full_attention"], "num_hidden_layers": 1},
        {"model_type": "gpt_neox", "hidden_size": "wide"},
    ],
)
def test_an_unknown_family_is_named_with_the_known_ones_before_weights_are_sought(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    family = "ministral" if "layer_types" in settings else settings["model_type"]
    said = refusal(weightless(tmp_path, settings))
    assert said == f"unknown backbone family {family!r}; {KNOWN}"


def test_a_config_that_names_no_family_or_cannot_be_loaded_for_another_reason_says_so(tmp_path: Path) -> None:
    assert "Should have a `model_type` key" in refusal(weightless(tmp_path, {}))
    for changes, reason in (
        ({"num_attention_heads": 5}, "The hidden size (32) is not a multiple"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "Missing required keys in `rope_parameters`"),
    ):
        said = refusal(weightless(tmp_path, settings_of("llama", **changes)))
        assert said.startswith("cannot load the backbone")
        assert reason in said
    (tmp_path / "config.json").write_text("{")
    assert refusal(tmp_path).startswith("cannot load the backbone")


def test_a_model_of_the_hub_is_refused_before_its_weights_are_downloaded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = fill(cache, weightless(tmp_path / "source", settings_of("llama")))
    source = {"kind": "hub", "id": "own/pico", "revision": COMMIT}
    with pytest.raises(ModelError, match=r"backbone\.layers is 5, but the model has 2 layers"):
        load_source(pico_params(source=source, layers=5))
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text(json.dumps({"model_type": "not_in_transformers"}))
    with pytest.raises(ModelError, match=f"unknown backbone family 'not_in_transformers'; {KNOWN}"):
        load_source(pico_params(source=source))


def test_a_gguf_file_is_refused_by_its_config(pico_gguf: Any) -> None:
    with pytest.raises(ModelError) as caught:
        load_source(pico_gguf("llama"))
    assert str(caught.value) == "backbone.layers is 3, but the model has 2 layers; 0 takes all of them"
    for architecture in ("stablelm", "not-in-transformers"):  # transformers reads the first
        with pytest.raises(ModelError, match=f"unknown backbone family '{architecture}'; {KNOWN}"):
            load_source(pico_gguf(architecture))


@pytest.mark.parametrize("family", FAMILIES)
def test_more_layers_or_tokens_than_the_model_has_are_refused_before_weights_are_sought(
    family: str, tmp_path: Path
) -> None:
    folder = weightless(tmp_path, settings_of(family))
    assert refusal(folder, layers=3) == "backbone.layers is 3, but the model has 2 layers; 0 takes all of them"
    assert refusal(folder, max_tokens=129) == (
        "backbone.max_tokens is 129, but the model has positions for 128 tokens; set it to 128 or less"
    )
    assert "safetensors" in refusal(folder, layers=2, max_tokens=128), "only the weights are missing"


@pytest.mark.parametrize(
    ("family", "changes", "kind", "limit"),
    [
        ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}, "longrope", 32),
        # As configs before transformers 5 have it.
        ("phi3", {"rope_parameters": None, "original_max_position_embeddings": 32,
                  "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}},
         "longrope", 32),
        ("llama", {"rope_parameters": LONGROPE | {"original_max_position_embeddings": 32}}, "longrope", 32),
        ("qwen3", {"rope_parameters": {"full_attention": LONGROPE | {"original_max_position_embeddings": 32}}},
         "longrope", 32),
        ("llama", {"rope_parameters": DYNAMIC}, "dynamic", 128),
    ],
)  # fmt: skip
def test_texts_beyond_what_a_rotation_turns_alike_in_every_batch_are_refused(
    tmp_path: Path, family: str, changes: dict[str, Any], kind: str, limit: int
) -> None:
    folder = weightless(tmp_path, settings_of(family, **changes))
    for tokens in (limit + 1, 300):
        assert refusal(folder, max_tokens=tokens) == (
            f"backbone.max_tokens is {tokens}, but beyond {limit} tokens the model's rotation ({kind}) depends on the "
            f"longest text of a batch, and so would the vectors; set it to {limit} or less"
        )
    assert "safetensors" in refusal(folder, max_tokens=limit), "only the weights are missing"


@pytest.mark.parametrize(("rope", "positions", "limit"), [(LONGROPE, 128, 32), (DYNAMIC, 32, 32)])
def test_the_limit_of_a_rotation_is_where_padding_begins_to_change_a_text(
    rope: dict[str, Any], positions: int, limit: int
) -> None:
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=positions,
        rope_parameters=rope | ({"original_max_position_embeddings": 32} if rope is LONGROPE else {}),
    )  # fmt: skip
    torch.manual_seed(0)
    decoder = AutoModel.from_config(config).eval()

    def encode(width: int) -> np.ndarray[Any, Any]:
        """The last state of eight tokens, padded on the right to this width."""
        ids, mask = torch.zeros(1, width, dtype=torch.long), torch.zeros(1, width, dtype=torch.long)
        ids[0, :8], mask[0, :8] = torch.arange(8), 1
        with torch.inference_mode():
            state = decoder(input_ids=ids, attention_mask=mask).last_hidden_state[0, 7]
        return np.asarray(state)

    alone = encode(8)
    assert np.abs(encode(limit) - alone).max() < 1e-5
    assert np.abs(encode(limit + 1) - alone).max() > 1e-4


@pytest.mark.parametrize(
    ("family", "changes", "layers", "said"),
    [
        ("mistral", {"sliding_window": 47}, 0, "in 2 of 2 layers attention reaches 47 tokens"),
        ("mistral", {"sliding_window": 48}, 0, ""),
        ("mistral", {"sliding_window": None}, 0, ""),
        ("phi3", {"sliding_window": 16}, 1, "in 1 of 1 layers attention reaches 16 tokens"),
        ("gemma2", {"sliding_window": 16}, 0, "in 1 of 2 layers attention reaches 16 tokens"),
        ("gemma2", {"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}, 1, ""),
        ("qwen3", {"sliding_window": 16}, 0, ""),  # it is switched off
        ("qwen3", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1, "layer_types": None}, 0,
         "in 1 of 2 layers attention reaches 16 tokens"),
        ("llama", {}, 0, ""),
    ],
)  # fmt: skip
def test_layers_that_do_not_reach_the_whole_of_a_text_are_told_of(
    family: str, changes: dict[str, Any], layers: int, said: str
) -> None:
    settings = settings_of(family, **changes)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    found = describe_window(config, pico_params(layers=layers))
    assert bool(found) == bool(said)
    assert found.startswith(said)


def test_the_stage_says_once_that_a_window_is_shorter_than_a_text_and_builds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = pico_decoder("mistral")
    decoder.config.sliding_window = 16
    decoder.save_pretrained(tmp_path / "source")
    pico_tokenizer().save_pretrained(tmp_path / "source")
    build_backbone(params_for(tmp_path / "source"), tmp_path / "built")
    line = (
        "backbone: in 2 of 2 layers attention reaches 16 tokens to either side only (sliding window); "
        "backbone.max_tokens is 48\n"
    )
    assert capsys.readouterr().err.count(line) == 1
    shutil.rmtree(tmp_path / "built")
    build_backbone(params_for(tmp_path / "source", max_tokens=16), tmp_path / "built")
    assert "attention reaches" not in capsys.readouterr().err


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_embeddings_of_a_language_model_survive_tied_or_not(tmp_path: Path, family: str, is_tied: bool) -> None:
    config = pico_decoder(family).config
    config.tie_word_embeddings = is_tied
    language_model = AutoModelForCausalLM.from_config(config)
    language_model.save_pretrained(tmp_path / "source")
    pico_tokenizer().save_pretrained(tmp_path / "source")
    source = {"kind": "folder", "path": str(tmp_path / "source")}
    build_backbone(pico_params(source=source), tmp_path / "out")
    before = language_model.get_input_embeddings().weight
    assert torch.equal(load_model(tmp_path / "out")[0].model.get_input_embeddings().weight, before)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.get_output_embeddings().weight, before) == is_tied
