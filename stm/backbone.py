"""A decoder-only language model in, a bidirectional sentence-transformers folder with last-token pooling out.

The attention is declared bidirectional in the config, BOS and EOS come from the saved tokenizer itself, and only
safetensors are written, so that every consumer gets the same vectors without code of ours. Knows nothing of training or
data.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from stm.errors import ModelError, brief
from stm.files import atomic_directory
from stm.models import check_whole
from stm.packages import package_file
from stm.params.backbone import BackboneParams, FolderSource, HubSource, PackageSource
from stm.progress import say
from stm.prompts import render, write_prompts

# Families whose bidirectional attention is proven by a test on a pico model of that architecture.
FAMILIES = ("llama", "qwen3", "gemma", "gemma2", "phi3", "mistral")


def load_source(source: PackageSource | FolderSource | HubSource) -> tuple[PreTrainedModel, Any]:
    """Load the decoder (without its language-model head) and its tokenizer, in float32."""
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
    # Or transformers would take weights from a pickle where it finds no safetensors.
    weights = {} if isinstance(source, PackageSource) else {"use_safetensors": True}
    try:
        config = AutoConfig.from_pretrained(location, **extra)
        # AutoTokenizer would parse a GGUF file, which takes transformers some seconds, once more.
        loader = PreTrainedTokenizerFast if "gguf_file" in extra else AutoTokenizer
        tokenizer = loader.from_pretrained(location, **extra)
        model = AutoModel.from_pretrained(location, config=config, dtype=torch.float32, **weights, **extra)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load the backbone {location!r}: {brief(error)}") from error
    check_whole(model, f"the backbone {location!r}")
    return model, tokenizer


def make_bidirectional(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Keep the first `layers` layers (0: all) and declare bidirectional attention; both config keys are set.

    `is_causal` is what transformers >= 5.2 reads, `use_bidirectional_attention` what Text Embeddings Inference reads.
    """
    config = model.config
    if config.model_type not in FAMILIES:
        raise ModelError(f"unknown backbone family {config.model_type!r}; known: {', '.join(FAMILIES)}")
    if layers > config.num_hidden_layers:
        raise ModelError(f"backbone.layers is {layers}, but the model has {config.num_hidden_layers} layers")
    if layers:
        model.layers = model.layers[:layers]
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    config.is_causal = False
    config.use_bidirectional_attention = True
    config.use_cache = False
    # Left by the GGUF reader, although the weights are plain by now; saving refuses while it is there.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
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


def assemble(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, params: BackboneParams, folder: Path) -> None:
    """Write the sentence-transformers folder: decoder, last-token pooling, normalisation, prompts."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=params.max_tokens)
    pooling = Pooling(model.config.hidden_size, pooling_mode="lasttoken")
    prompts = render(params.query_template, params.instruction, params.passage_prompt)
    encoder = SentenceTransformer(
        modules=[transformer, pooling, Normalize()], prompts=prompts.as_model_prompts(), device="cpu"
    )
    encoder.save(str(folder), create_model_card=False)
    write_prompts(prompts, folder)


def build_backbone(params: BackboneParams, folder: Path | str) -> None:
    """Load, cut, declare and save the backbone at `folder`, whole or not at all."""
    say(f"backbone: loading {params.source.kind} source")
    model, tokenizer = load_source(params.source)
    model = make_bidirectional(model, params.layers).to(getattr(torch, params.dtype))
    with atomic_directory(folder) as scratch:
        assemble(model, add_bos_and_eos(tokenizer, params.bos_token, params.max_tokens), params, scratch)
    config = model.config
    say(f"backbone: {config.model_type}, {config.num_hidden_layers} layers, {model.num_parameters():,} parameters")
