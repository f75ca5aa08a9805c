"""Sums of a weight and a delta that is far below the weight's resolution, rounded by chance to what bfloat16 holds.

Knows nothing of models; the noise comes from torch's generators.
"""

import zlib

import torch
from torch import Tensor


def draw_noise(shape: torch.Size, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Uniform int32 in [0, 2^16) in that shape, four of each number drawn: a CPU draws one after the other."""
    count = shape.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(1 << 63), None, generator=generator)
    return drawn.view(torch.int16)[:count].to(torch.int32).bitwise_and_((1 << 16) - 1).view(shape)


def round_by_chance(exact: Tensor, noise: Tensor) -> None:
    """Round float32 in place to what bfloat16 holds, up or down in proportion to the distances, by noise of the same
    shape from `draw_noise`.

    The result's expectation over the noise is the exact value, so that a delta far below the weight's resolution is not
    lost, as it is in rounding to nearest (stochastic rounding, arXiv 1502.02551, section 4).
    """
    exact.view(torch.int32).add_(noise).bitwise_and_(-(1 << 16))


def add_delta(weight: Tensor, delta: Tensor, kind: torch.dtype, name: str) -> Tensor:
    """`weight + delta` in float32, of the numbers that a model holds whose weights are saved as `kind`.

    Weights that were published in bfloat16 lie on its grid, and most of what a training adds is less than half a step:
    to the nearest, the sum would be the weight again. So it is rounded by chance there, by noise that follows from
    `name`, the weight and the device alone. A warm-up and a merge into its result so have noise of their own: with the
    same noise their errors would lean to the same side.
    """
    exact = weight.float() + delta
    if kind == torch.bfloat16:
        numbers = int(weight.float().view(torch.int32).sum())  # of whole numbers, so the same in any order
        generator = torch.Generator(exact.device).manual_seed(zlib.crc32(f"{name} {numbers}".encode()))
        round_by_chance(exact, draw_noise(exact.shape, exact.device, generator))
    return exact.to(kind).float()
