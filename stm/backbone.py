"""A decoder-only language model in, a bidirectional sentence-transformers folder with last-token pooling out.

The attention is declared bidirectional in the config, BOS and EOS come from the saved tokenizer itself, and only
safetensors are written, so that every consumer gets the same vectors without code of ours. Knows nothing of training or
data.
"""

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors, snapshot_download
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stm.errors import ModelError, brief
from stm.files import atomic_directory
from stm.folders import add_served_keys, copy_notices
from stm.models import check_whole
from stm.packages import package_file, package_version
from stm.params.backbone import BackboneParams, FolderSource, HubSource, PackageSource
from stm.progress import say
from stm.prompts import render, write_prompts

# Families whose bidirectional attention is proven by a test on a pico model of that architecture.
FAMILIES = ("llama", "qwen3", "gemma", "gemma2", "phi3", "mistral")
# How transformers 5.23 names the architecture of a GGUF file that it cannot read.
UNREAD_GGUF = re.compile(r"GGUF model with architecture (\S+) is not supported")
# Of a model of the hub, which loading it does not fetch: in any case of letters, as `stm.folders` copies them.
NOTICES = ["[Ll][Ii][Cc][Ee][Nn][CcSs][Ee]*", "[Nn][Oo][Tt][Ii][Cc][Ee]*"]


def load_source(params: BackboneParams) -> tuple[PreTrainedModel, Any]:
    """Load the decoder (without its language-model head) and its tokenizer, in float32.

    What its config tells is checked before any weights are sought (`read_config`, `check_config`).
    """
    source = params.source
    extra: dict[str, Any] = {"trust_remote_code": False}
    if isinstance(source, PackageSource):
        path = package_file(source.package, source.file)
        location, extra["gguf_file"] = str(path.parent), path.name
    elif isinstance(source, FolderSource):
        location = source.path
        if not (Path(location) / "config.json").exists():
            raise ModelError(f"backbone.source.path {location!r} is no transformers folder: it has no config.json")
    else:
        location, extra["revision"] = source.id, source.revision
    config = read_config(location, extra)
    check_config(config, params)
    # Or transformers would take weights from a pickle where it finds no safetensors.
    weights = {} if isinstance(source, PackageSource) else {"use_safetensors": True}
    try:
        # AutoTokenizer would parse a GGUF file, which takes transformers some seconds, once more.
        loader = PreTrainedTokenizerFast if "gguf_file" in extra else AutoTokenizer
        tokenizer = loader.from_pretrained(location, **extra)
        model = AutoModel.from_pretrained(location, config=config, dtype=torch.float32, **weights, **extra)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load the backbone {location!r}: {brief(error)}") from error
    check_whole(model, f"the backbone {location!r}")
    return model, tokenizer


def read_config(location: str, extra: dict[str, Any]) -> PreTrainedConfig:
    """The config of a folder, a model of the hub or a GGUF file; `ModelError` for a family without a proven test."""
    try:
        config = AutoConfig.from_pretrained(location, **extra)
    except (OSError, ValueError, KeyError, RuntimeError, errors.StrictDataclassError) as error:
        # After an `OSError` there is no config to read, and looking for it at a hub anew would take its time.
        if not isinstance(error, OSError) and (family := _find_family(location, extra, error)):
            _check_family(family)
        raise ModelError(f"cannot load the backbone {location!r}: {brief(error)}") from error
    _check_family(config.model_type)
    return config


def _check_family(family: str) -> None:
    if family not in FAMILIES:
        raise ModelError(f"unknown backbone family {family!r}; known: {', '.join(FAMILIES)}")


def _find_family(location: str, extra: dict[str, Any], error: Exception) -> str | None:
    """The family of a model that transformers has no config for, or only by code of the model's own, which is not run:
    its errors tell the user to upgrade, or to trust that code.
    """
    if "gguf_file" in extra:
        return found[1] if (found := UNREAD_GGUF.search(str(error))) else None
    try:
        settings: dict[str, Any] = PreTrainedConfig.get_config_dict(location, **extra)[0]
    except (OSError, ValueError):
        return None
    return settings.get("model_type")


def check_config(config: PreTrainedConfig, params: BackboneParams) -> None:
    """`ModelError` if the params ask for more layers or for longer texts than the model can take.

    Two kinds of rotation turn a text's tokens by other angles where any text of its batch, padding included, is beyond
    a limit: `longrope` then takes its long factors, `dynamic` stretches to the longest.
    """
    if params.layers > config.num_hidden_layers:
        has = f"but the model has {config.num_hidden_layers} layers"
        raise ModelError(f"backbone.layers is {params.layers}, {has}; 0 takes all of them")
    positions, asked = config.max_position_embeddings, f"backbone.max_tokens is {params.max_tokens}"
    rope = config.rope_parameters
    for rotation in [rope] if "rope_type" in rope else filter(None, rope.values()):  # one for all layers, or by type
        kind = rotation["rope_type"]
        steady = {"longrope": rotation.get("original_max_position_embeddings"), "dynamic": positions}.get(kind)
        if steady and params.max_tokens > steady:
            raise ModelError(
                f"{asked}, but beyond {steady} tokens the model's rotation ({kind}) depends on the longest text of a "
                f"batch, and so would the vectors; set it to {steady} or less"
            )
    if params.max_tokens > positions:
        raise ModelError(f"{asked}, but the model has positions for {positions} tokens; set it to {positions} or less")


def describe_window(config: PreTrainedConfig, params: BackboneParams) -> str:
    """One sentence on the layers kept whose attention does not reach the whole of a text; empty if there are none."""
    window = getattr(config, "sliding_window", None)  # None where it is there but switched off, too
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    kinds = kinds[: params.layers or None]
    sliding = kinds.count("sliding_attention")
    if not window or window >= params.max_tokens or not sliding:
        return ""
    return (
        f"in {sliding} of {len(kinds)} layers attention reaches {window} tokens to either side only (sliding window); "
        f"backbone.max_tokens is {params.max_tokens}"
    )


def make_bidirectional(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Keep the first `layers` layers (0: all) and declare bidirectional attention; both config keys are set.

    `is_causal` is what transformers >= 5.2 reads, `use_bidirectional_attention` what Text Embeddings Inference reads of
    the families that it has (llama, qwen3, mistral); what else that reads is added where the folder is written.
    """
    config = model.config
    if layers:
        model.layers = model.layers[:layers]
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    config.is_causal = False
    config.use_bidirectional_attention = True
    config.use_cache = False
    # The GGUF reader leaves the first, although the weights are plain by now, and saving refuses while it is there. The
    # second names code of the source, which is neither copied nor run.
    for name in ("quantization_config", "auto_map"):
        if hasattr(config, name):
            delattr(config, name)
    model.hf_quantizer = None
    return model


def add_bos_and_eos(tokenizer: Any, bos_token: str | None, max_tokens: int) -> PreTrainedTokenizerFast:
    """Return a generic fast tokenizer whose own post-processor puts BOS before a text and EOS after it, after
    truncation too.

    Without `bos_token` a BOS is kept where the given tokenizer adds one. Padding is on the right; EOS stands in for a
    missing pad token. A decoder heaps attention on a token that tells nothing, the first one where attention is causal
    (arXiv 2309.17453, 2402.17762). Where attention is bidirectional nothing marks the first token but itself, and
    without a BOS the massive activations fall on any token, on the pooled EOS of some texts too (docs/training.md).
    """
    if not tokenizer.is_fast:
        raise ModelError("the backbone's tokenizer has no tokenizer.json; a fast tokenizer is needed to append EOS")
    if tokenizer.eos_token is None:
        raise ModelError("the backbone's tokenizer has no EOS token; last-token pooling needs one")
    first = tokenizer("a")["input_ids"][:1]
    own = tokenizer.bos_token if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else None
    bos, vocabulary = bos_token or own, tokenizer.get_vocab()
    if bos and bos not in vocabulary:
        known = ", ".join(tokenizer.all_special_tokens)
        raise ModelError(
            f"backbone.bos_token {bos!r} is no token of this backbone; set one of its special tokens ({known}), or null"
        )
    tokens = [(token, vocabulary[token]) for token in dict.fromkeys([bos, tokenizer.eos_token]) if token]
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{bos + ':0 ' if bos else ''}$A:0 {tokenizer.eos_token}:0", pair=None, special_tokens=tokens
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos or tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token or tokenizer.eos_token,
        padding_side="right",
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )


def describe_source(params: BackboneParams) -> dict[str, Any]:
    """What the model is made from, as its config.json keeps it under `made_from`, through every saving and merging.

    Of an absolute path only the name: the rest tells of a machine, and the model may be passed on.
    """
    found, source = params.source.model_dump(), params.source
    if isinstance(source, PackageSource):
        found["version"] = package_version(source.package)
    elif isinstance(source, FolderSource) and Path(source.path).is_absolute():
        found["path"] = Path(source.path).name
    return {**found, "layers": params.layers}


def find_notices(params: BackboneParams) -> Path | None:
    """The folder with the LICENSE and NOTICE files that the source came with, where it is a model's own."""
    source = params.source
    if isinstance(source, FolderSource):
        return Path(source.path)
    if not isinstance(source, HubSource):
        return None
    try:
        return Path(snapshot_download(source.id, revision=source.revision, allow_patterns=NOTICES))
    except (OSError, errors.HTTPError) as error:  # type: ignore[attr-defined]  # a proxy that refuses is no OSError
        raise ModelError(
            f"cannot fetch the notices of the backbone {source.id!r}: {brief(error)}; run again"
        ) from error


def assemble(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, params: BackboneParams, folder: Path) -> None:
    """Write the sentence-transformers folder: decoder, last-token pooling, normalisation, prompts, origin."""
    model.config.made_from = describe_source(params)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Said, for else the tokenizer's file says whether HF_HUB_OFFLINE was set.
    local = {"local_files_only": True}
    transformer = Transformer(str(folder), max_seq_length=params.max_tokens, processor_kwargs=local)
    pooling = Pooling(model.config.hidden_size, pooling_mode="lasttoken")
    prompts = render(params.query_template, params.instruction, params.passage_prompt)
    encoder = SentenceTransformer(
        modules=[transformer, pooling, Normalize()], prompts=prompts.as_model_prompts(), device="cpu"
    )
    encoder.save(str(folder), create_model_card=False)
    add_served_keys(folder)
    write_prompts(prompts, folder)


def build_backbone(params: BackboneParams, folder: Path | str) -> None:
    """Load, cut, declare and save the backbone at `folder`, whole or not at all."""
    say(f"backbone: loading {params.source.kind} source")
    model, tokenizer = load_source(params)
    if window := describe_window(model.config, params):
        say(f"backbone: {window}")
    notices = find_notices(params)
    model = make_bidirectional(model, params.layers).to(getattr(torch, params.dtype))
    with atomic_directory(folder) as scratch:
        assemble(model, add_bos_and_eos(tokenizer, params.bos_token, params.max_tokens), params, scratch)
        if notices:
            copy_notices(notices, scratch)
    config = model.config
    say(f"backbone: {config.model_type}, {config.num_hidden_layers} layers, {model.num_parameters():,} parameters")
