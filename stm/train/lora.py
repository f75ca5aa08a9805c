"""LoRA factors on all linear layers of a model, in PEFT's form, with a faster forward pass where that is exact.

Attaches, reads and saves the factors through peft. Does not know what is trained or on which data.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from sentence_transformers import SentenceTransformer
from torch import Tensor

from stm.files import write_json
from stm.params.train import TrainParams
from stm.pooled import skip_unpooled


class FoldedLinear(torch.autograd.Function):
    """`y = x @ F.T + bias` with F = W + s * B @ A as one product, with gradients for x, A and B but never for W.

    Two products per layer and step instead of the six of the unfolded form, and no extra pass over the activations. The
    same function as `peft.tuners.lora.Linear` 0.21.2 up to rounding, which a test bounds.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, folded: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Return `y` [..., out] for x [..., in], folded [out, in], a [rank, in], b [out, rank]."""
        ctx.save_for_backward(x, folded, a, b)
        ctx.scale = scale
        return torch.nn.functional.linear(x, folded, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        """Return the gradients of x, a and b."""
        x, folded, a, b = ctx.saved_tensors
        grad_x = grad @ folded if ctx.needs_input_grad[0] else None
        flat_grad, flat_x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_a = (flat_grad @ b).T @ flat_x * ctx.scale
        grad_b = flat_grad.T @ (flat_x @ a.T) * ctx.scale
        return grad_x, None, None, grad_a, grad_b, None


class Fold:
    """The folded weight of one layer, computed once per optimizer step and not once per chunk of it."""

    def __init__(self, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
        self.weight, self.a, self.b, self.scale = weight, a, b, scale
        self.versions: tuple[int, int] | None = None
        self.folded = weight

    def __call__(self) -> Tensor:
        """Return W + s * B @ A [out, in] for the factors as they are now."""
        versions = (self.a._version, self.b._version)  # counted up by every write in place, so by every optimizer step
        if versions != self.versions:
            with torch.no_grad():
                self.folded = torch.addmm(self.weight, self.b, self.a, alpha=self.scale)
            self.versions = versions
        return self.folded


def _fold(layer: LoraLinear) -> None:
    base, name = layer.base_layer, "default"
    a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name])
    fold = Fold(base.weight, a, b, scale)

    def forward(x: Tensor) -> Tensor:
        out: Tensor = FoldedLinear.apply(x, fold(), base.bias, a, b, scale)  # type: ignore[no-untyped-call]
        return out

    layer.forward = forward


def attach(model: SentenceTransformer, params: TrainParams, dtype: torch.dtype) -> PeftModel:
    """Inject fresh float32 factors (A random by the seed, B zero) into the model's decoder; only they are trainable.

    `dtype` is what products are computed in. In float32 they are folded; under mixed precision, where a folded weight
    would round small deltas away, the frozen weights are held in that type instead of being converted in every pass.
    """
    torch.manual_seed(params.seed)
    config = LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules="all-linear", lora_dropout=0.0)
    adapted = get_peft_model(model[0].model, config)
    for module in adapted.modules():
        if isinstance(module, LoraLinear) and dtype == torch.float32:
            _fold(module)
        elif isinstance(module, LoraLinear):
            module.base_layer.to(dtype)
    skip_unpooled(model)  # after the factors are in place, for it wraps the layers that hold them
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
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    write_json(path, config)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
