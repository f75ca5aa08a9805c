"""The one place that decides on which device and in which precision models run."""

from functools import lru_cache

import torch


@lru_cache(maxsize=1)
def device() -> torch.device:
    """The first GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=1)
def compute_dtype() -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32.

    A CPU without AVX512-BF16 or AMX emulates bfloat16 at a fraction of the float32 rate.
    """
    if device().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
