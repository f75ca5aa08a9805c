"""A decoder's layers as compiled code: what stands between the products is one pass over memory instead of many.

Worth it where the work takes many times the minute that compiling takes. Does not know what is computed with it.
"""

import os
from pathlib import Path

import torch
from torch._dynamo import config as tracing
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.fx.experimental import _config as shapes

from stm.errors import ModelError
from stm.progress import say

CACHE, CACHE_VARIABLE = Path(".stm/compiled"), "TORCHINDUCTOR_CACHE_DIR"
# A layer is compiled anew for what comes with and without a mask, with and without gradients, as a single text.
VARIANTS = 32


def compile_layers(decoder: torch.nn.Module) -> None:
    """Have torch compile the decoder's layers but the last, in place, at their first use; `ModelError` if it cannot.

    All layers share their code, which holds for any number and length of texts and is kept under `CACHE`. The last
    layer is another function wherever `skip_unpooled` narrowed it, and little work.
    """
    if os.environ.get(CACHE_VARIABLE) in (None, default_cache_dir()):  # which torch writes there when it is imported
        os.environ[CACHE_VARIABLE] = str(CACHE.resolve())
    # Or sizes that are equal in the first batch, such as a length and a head's width, would get code for that alone,
    # and a resumed training, whose first batch is another one, other code than the whole one.
    shapes.use_duck_shape = False
    tracing.recompile_limit, tracing.fail_on_recompile_limit_hit = VARIANTS, True
    device = next(decoder.parameters()).device
    try:
        torch.compile(torch.sin)(torch.ones(8, device=device))
    except Exception as error:  # compilers fail in many ways, and each of them means this
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"torch cannot compile for the {device.type} here ({reason}); install a C++ compiler (g++ or clang++) and "
            "Python's headers, or set `compile: false`"
        ) from error
    say("compiling the layers: about a minute the first time, in the first steps")
    for layer in decoder.layers[:-1]:  # type: ignore[index]
        layer.compile(dynamic=True)
