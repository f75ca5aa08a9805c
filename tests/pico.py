"""Pico models for the tests: real architectures with two layers of width 32 and a byte-level tokenizer, made in memory
in well under a second.
"""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from stm.backbone import add_bos_and_eos, assemble, make_bidirectional
from stm.params.backbone import BackboneParams
from stm.prompts import read_prompts, write_prompts

MAX_TOKENS = 48
LINEAR = {"phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]}
DEFAULT_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def pico_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 258 tokens without merges; it appends nothing by itself."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")


def pico_decoder(architecture: str = "llama", seed: int = 0, layers: int = 2) -> PreTrainedModel:
    """A random decoder of the architecture: `layers` layers, hidden size 32, four heads."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture, vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=None, eos_token_id=1, tie_word_embeddings=True,
    )  # fmt: skip
    return AutoModel.from_config(config)


def pico_params(**changes: object) -> BackboneParams:
    """Backbone params of a pico model."""
    values: dict[str, object] = {
        "source": {"kind": "folder", "path": "unused"}, "layers": 0, "dtype": "float32", "bos_token": None,
        "max_tokens": MAX_TOKENS,
        "query_template": "{instruction}\nQuery: ", "passage_prompt": "", "instruction": "Find it",
    }  # fmt: skip
    return BackboneParams.model_validate({**values, **changes})


def pico_backbone(
    folder: Path, architecture: str = "llama", seed: int = 0, layers: int = 2, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a random bidirectional sentence-transformers folder, saved in that type, and return it."""
    model = make_bidirectional(pico_decoder(architecture, seed, layers), 0).to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    params = pico_params()
    assemble(model, add_bos_and_eos(pico_tokenizer(), params.bos_token, params.max_tokens), params, folder)
    return folder


def break_weights(folder: Path, name: str = "norm.weight", value: float = torch.nan) -> Path:
    """Write NaN (or `value`) into one tensor of a model's folder, as an overflow in training does; the folder."""
    (path,) = folder.rglob("model.safetensors")
    tensors = load_file(path)
    save_file({**tensors, name: torch.full_like(tensors[name], value)}, path, {"format": "pt"})
    return folder


def pico_adapter(base: Path, folder: Path, rank: int = 4, seed: int = 0, scale: float = 0.05) -> Path:
    """Write a random, non-zero LoRA adapter for a pico backbone and return its folder."""
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    targets = LINEAR.get(model.config.model_type, DEFAULT_LINEAR)
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(str(folder))
    write_prompts(read_prompts(base), folder)
    return folder
