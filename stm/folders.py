"""What a saved model folder holds beside its weights: where the model comes from, its notices, and keys that only
other programs read.

sentence-transformers keeps none of the last two when it saves a model anew. Does not load any model.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from stm.files import read_json, write_json

CONFIG, POOLING, TEXTS = "config.json", "1_Pooling/config.json", "sentence_bert_config.json"
TOKENIZER = "tokenizer_config.json"
NOTICE = re.compile(r"licen[cs]e|notice", re.IGNORECASE)  # how the names of such files begin
# Under which key sentence-transformers before 5.4 said of each way of pooling whether it is the one.
OLD_POOLING = {
    "cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens", "lasttoken": "pooling_mode_lasttoken",
}  # fmt: skip


def complete_folder(folder: Path, source: Path) -> None:
    """Add to a model folder that sentence-transformers has just saved what the folder `source` has, of which the model
    was made, and saving has dropped.
    """
    add_served_keys(folder)
    copy_notices(source, folder)


def add_served_keys(folder: Path) -> None:
    """Add the keys that Text Embeddings Inference reads, beside those of sentence-transformers 5.4 and newer, which
    reads both alike.

    Its older versions refuse a folder without the old keys of pooling or without `max_seq_length`; the newer ones take
    the new key of pooling, but without `max_seq_length` they read longer texts than sentence-transformers does. The
    older ones also refuse llama, mistral and qwen3 without a `rope_theta` of its own, which transformers 5 keeps in
    `rope_parameters`. It is added for a plain rotation only: of another they would read no more, and turn all wrongly.
    """
    config = _read(folder / CONFIG)
    rope = config.get("rope_parameters") or {}
    if "rope_theta" not in config and rope == {"rope_type": "default", "rope_theta": rope.get("rope_theta")}:
        write_json(folder / CONFIG, config | {"rope_theta": rope["rope_theta"]})
    pooling = _read(folder / POOLING)
    mode = pooling.get("pooling_mode")
    if isinstance(mode, str) and mode in OLD_POOLING:
        write_json(folder / POOLING, pooling | {key: name == mode for name, key in OLD_POOLING.items()})
    if (folder / TEXTS).exists() and (limit := _max_tokens(folder)):
        write_json(folder / TEXTS, read_json(folder / TEXTS) | {"max_seq_length": limit})


def copy_notices(source: Path, folder: Path) -> None:
    """Copy the LICENSE and NOTICE files of a model folder, which its licence as a rule asks to pass on."""
    for path in sorted(source.glob("*")):
        if NOTICE.match(path.name) and path.is_file():
            shutil.copyfile(path, folder / path.name)


def describe_folder(folder: Path) -> dict[str, Any]:
    """What a model folder says of its model: what it is made from (`made_from`), how many tokens of a text it reads
    (`max_tokens`) and how many numbers a vector has (`dimension`); without what it does not say.
    """
    pooling, origin = _read(folder / POOLING), _read(folder / CONFIG).get("made_from")
    found = {
        "made_from": origin if isinstance(origin, dict) else None,
        "max_tokens": _max_tokens(folder),
        "dimension": pooling.get("embedding_dimension") or pooling.get("word_embedding_dimension"),
    }
    return {key: value for key, value in found.items() if value}


def _max_tokens(folder: Path) -> int | None:
    """The limit that sentence-transformers takes from the tokenizer and the decoder, whichever is lower."""
    limits = (_read(folder / TOKENIZER).get("model_max_length"), _read(folder / CONFIG).get("max_position_embeddings"))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}
