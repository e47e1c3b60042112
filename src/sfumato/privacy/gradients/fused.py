"""Linear layers in bfloat16 whose product adds the bias as it writes.

PyTorch copies the bias to every row of the output first and lets the product add to that, so the output goes to memory
and back once more. While the tape runs no parameter needs a gradient, and a layer is this product and its gradient by
the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_ALIGNED = 32
"""Features come in multiples of this; then results have the same bits as PyTorch's own."""

_NARROWED = (torch.float32, torch.bfloat16)


class FusedLinear:
    """Runs a linear layer in this way, under autocast to bfloat16, until it is removed."""

    def __init__(self, module: nn.Linear) -> None:
        self._module = module
        vars(module)["forward"] = self._forward

    @staticmethod
    def fits(module: nn.Linear) -> bool:
        """Whether a layer can be run so."""
        if type(module) is not nn.Linear or module.bias is None or "forward" in vars(module):
            return False
        aligned = module.in_features % _ALIGNED == 0 and module.out_features % _ALIGNED == 0
        return aligned and module.weight.device.type == "cpu" and _available()

    def remove(self) -> None:
        """Leaves the layer as it was."""
        del vars(self._module)["forward"]

    def _forward(self, x: Tensor) -> Tensor:
        weight, bias = self._module.weight, self._module.bias
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if not half or x.dtype not in _NARROWED or weight.requires_grad or bias.requires_grad:
            return nn.functional.linear(x, weight, bias)
        given = (value.bfloat16() for value in (x, weight, bias))
        result: Tensor = _Product.apply(*given)  # type: ignore[no-untyped-call]
        return result


def _available() -> bool:
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return (gradient.flatten(0, -2) @ weight).view(*gradient.shape[:-1], -1), None, None
