"""LoRA factors on all linear layers of a model, in PEFT's form, with a faster forward pass of the same function.

Attaches, reads and saves the factors through peft. Does not know what is trained or on which data.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from sentence_transformers import SentenceTransformer
from torch import Tensor

from stm.compiled import compile_layers
from stm.files import read_json, write_json
from stm.model_hash import ADAPTER_CONFIG
from stm.models import compute_in
from stm.params.train import TrainParams
from stm.pooled import skip_unpooled
from stm.rounding import draw_noise, round_by_chance

# Up to this many tokens per text plain products are the faster attention on a CPU in bfloat16: going back through the
# fused one takes a fifth of a step (torch 2.13). Beyond, their matrices of tokens by tokens take memory.
PLAIN_ATTENTION = 512
# A GPU folds layers of one shape together, up to so many weights: one by one, it waits for the processor that launches
# ten kernels a layer. A CPU folds one after the other, in its caches.
TOGETHER = 1 << 26


class FoldedLinear(torch.autograd.Function):
    """`y = x @ F.T + bias` with F = W + s * B @ A as one product, with gradients for x, A and B but never for W.

    Two products per layer and step instead of the six of the unfolded form, and no extra pass over the activations. The
    same function as `peft.tuners.lora.Linear` 0.21.2 up to rounding, which a test bounds.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, folded: Tensor, bias: Tensor | None, _a: Tensor, _b: Tensor, scaled_a: Tensor,
        scaled_b: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return `y` [..., out] for x [..., in], folded [out, in], a [rank, in], b [out, rank], s * a, s * b.

        The gradients go to `a` and `b`; what is computed is of the others alone.
        """
        ctx.save_for_backward(x, folded, scaled_a, scaled_b)
        return torch.nn.functional.linear(x, folded, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None, None]:
        """Return the gradients of x, a and b, the last two in float32."""
        x, folded, scaled_a, scaled_b = ctx.saved_tensors
        grad_x = grad @ folded if ctx.needs_input_grad[0] else None
        flat_grad, flat_x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_a = (flat_grad @ scaled_b).T @ flat_x
        grad_b = flat_grad.T @ (flat_x @ scaled_a.T)
        return grad_x, None, None, grad_a.float(), grad_b.float(), None, None


class FoldedLora(LoraLinear):  # type: ignore[misc]
    """PEFT's layer with one adapter, its folded weight [out, in] and its factors times their scale, in the type of the
    products; `Folds` brings these up to date.
    """

    folded: Tensor
    scaled_a: Tensor
    scaled_b: Tensor

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return `y` [..., out] for x [..., in]."""
        a, b = self.factors()[:2]
        x = x.to(self.folded.dtype)
        out: Tensor = FoldedLinear.apply(  # type: ignore[no-untyped-call]
            x, self.folded, self.base_layer.bias, a, b, self.scaled_a, self.scaled_b
        )
        return out

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """A [rank, in], B [out, rank] and their scale s."""
        return self.lora_A["default"].weight, self.lora_B["default"].weight, float(self.scaling["default"])


def become_folded(layer: LoraLinear) -> None:
    """Turn PEFT's layer into a folded one, whose folded weight and scaled factors are still to be computed."""
    layer.__class__ = FoldedLora
    a, b, _ = layer.factors()
    for name, like in (("folded", layer.base_layer.weight), ("scaled_a", a), ("scaled_b", b)):
        buffer = torch.empty_like(like, dtype=layer.base_layer.weight.dtype, requires_grad=False)
        layer.register_buffer(name, buffer, persistent=False)


def fold(layers: Sequence[FoldedLora]) -> None:
    """Bring the folded weights W + s * B @ A of layers of one shape and scale up to date, and their scaled factors."""
    weights, factors = [layer.base_layer.weight for layer in layers], [layer.factors() for layer in layers]
    a, b = torch.stack([a for a, _, _ in factors]), torch.stack([b for _, b, _ in factors])
    scale = factors[0][2]
    exact = torch.stack(weights).float().baddbmm_(b, a, alpha=scale)
    if weights[0].dtype == torch.bfloat16:
        round_by_chance(exact, draw_noise(exact.shape, exact.device))
    to = [tensor for layer in layers for tensor in (layer.folded, layer.scaled_a, layer.scaled_b)]
    found = [tensor for triple in zip(exact, a * scale, b * scale, strict=True) for tensor in triple]
    torch._foreach_copy_(to, found)  # on a GPU few kernels for all; there is no public name for it


def group_alike(layers: Sequence[FoldedLora]) -> list[list[FoldedLora]]:
    """The layers in groups of one shape and scale, of at most `TOGETHER` weights, but one layer at least."""
    alike: dict[Any, list[FoldedLora]] = {}
    for layer in layers:
        alike.setdefault((layer.folded.shape, layer.factors()[2]), []).append(layer)
    groups = []
    for same in alike.values():
        size = max(1, TOGETHER // same[0].folded.numel())
        groups += [same[start : start + size] for start in range(0, len(same), size)]
    return groups


class Folds:
    """The folded weights of a model's layers, computed once per optimizer step and not once per chunk of it."""

    def __init__(self, layers: Sequence[FoldedLora]) -> None:
        self.layers = layers
        self.groups = group_alike(layers) if layers[0].folded.is_cuda else [[layer] for layer in layers]
        self.versions: list[int] = []

    @torch.no_grad()
    def refresh(self, *_: Any) -> None:
        """Fold the factors as they are now, unless that is done."""
        factors = [layer.factors() for layer in self.layers]
        versions = [tensor._version for a, b, _ in factors for tensor in (a, b)]  # counted up by writes in place
        if versions == self.versions:
            return
        for group in self.groups:
            fold(group)
        self.versions = versions


def attach(model: SentenceTransformer, params: TrainParams, dtype: torch.dtype) -> PeftModel:
    """Inject fresh float32 factors (A random by the seed, B zero) into the model's decoder; only they are trainable.

    `dtype` is what products are computed in, and the type of the frozen parameters.
    """
    torch.manual_seed(params.seed)
    compute_in(model, dtype)
    # Gradients of the factors add up over all tokens of a pass, and a GPU may add in parts: not in bfloat16.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    config = LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules="all-linear", lora_dropout=0.0)
    decoder = model[0].model
    if (
        decoder.device.type == "cpu"
        and dtype == torch.bfloat16
        and (model.max_seq_length or math.inf) <= PLAIN_ATTENTION
    ):
        decoder.set_attn_implementation("eager")
    adapted = get_peft_model(decoder, config)
    layers = [module for module in adapted.modules() if isinstance(module, LoraLinear)]
    for layer in layers:
        become_folded(layer)
    folds = Folds(layers)
    for module in (model[0], decoder):  # the first calls the second's `forward`, without hooks; packed texts skip it
        module.register_forward_pre_hook(folds.refresh)
    skip_unpooled(model)  # after the factors are in place, for it wraps the layers that hold them
    if params.compile:
        compile_layers(decoder)
    assert isinstance(adapted, PeftModel)  # for the type checker: peft declares a wider return type
    return adapted


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters by name, in name order."""
    return {name: p for name, p in sorted(model.named_parameters()) if p.requires_grad}


def save_adapter(adapted: PeftModel, base: str, folder: Path) -> None:
    """Write a PEFT adapter folder that names `base`.

    The config is sorted, so that the same factors give the same bytes.
    """
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(str(folder))
    path = folder / ADAPTER_CONFIG
    config = read_json(path)
    write_json(path, config | {"target_modules": sorted(config["target_modules"])})
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
