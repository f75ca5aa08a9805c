"""Decoders of known shapes with random weights: what speed and memory depend on, without any hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "architecture": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "dtype": "float32",
    },
    "qwen3-0.6b": {
        "architecture": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "dtype": "bfloat16",
    },
    "tiny": {
        "architecture": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "dtype": "float32",
    },
}  # fmt: skip


def build_shape(shape: Mapping[str, Any], tokenizer: Any, max_tokens: int, folder: Path) -> Path:
    """Write a random bidirectional sentence-transformers folder of the shape, with that tokenizer, and return it."""
    import torch
    from transformers import AutoConfig, AutoModel

    from stm.backbone import add_bos_and_eos, assemble, make_bidirectional
    from stm.files import atomic_directory
    from tests.pico import pico_params

    settings = dict(shape)
    dtype = settings.pop("dtype")
    config = AutoConfig.for_model(
        settings.pop("architecture"), **settings, pad_token_id=0, bos_token_id=None, eos_token_id=1
    )
    torch.manual_seed(0)
    model = make_bidirectional(AutoModel.from_config(config, dtype=getattr(torch, dtype)), 0)
    params = pico_params(dtype=dtype, max_tokens=max_tokens)
    with atomic_directory(folder) as scratch:
        assemble(model, add_bos_and_eos(tokenizer, None, max_tokens), params, scratch)
    return folder
