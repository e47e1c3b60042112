"""What lies between the U-Net's convolutions: normalisation, scale and shift (FiLM, Perez et al. 2018), and SiLU.

In PyTorch these are a dozen passes over memory, in float32 under autocast, and a good part of a private step. Compiled
(film.cpp), an image stays in a core's cache, forward and backward; results agree up to rounding.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.nets.compiled import by_rows, fits, level

_EPSILON = 1e-5


def film_silu(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """`silu(shift + normal(x) (1 + scale))`; normal(x) has mean 0 and variance 1 over each image (one group).

    No image's result depends on another's, nor on its place in the batch.

    Args:
        x: `(N, C, h, w)`, float32 or bfloat16; quickest channels-last.
        scale, shift: `(N, C)`, both or neither.

    Returns:
        Like `x`, channels-last.
    """
    if fits(x, x.shape[1]):
        result: Tensor = _Compiled.apply(x, scale, shift)  # type: ignore[no-untyped-call]
        return result
    flat = x.permute(0, 2, 3, 1).flatten(1)
    normal = F.layer_norm(flat, flat.shape[1:], eps=_EPSILON).view(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
    if scale is not None and shift is not None:
        normal = torch.addcmul(shift[:, :, None, None], normal, 1 + scale[:, :, None, None])
    return F.silu(normal).to(x.dtype)


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        film = [None if value is None else value.float().contiguous() for value in (scale, shift)]
        y = torch.empty_like(x, memory_format=torch.channels_last)
        moments = torch.empty(len(x), 2)
        by_rows("film_forward", level(), x, [x, *film], _sizes(x), [ctypes.c_double(_EPSILON), y, moments])
        ctx.save_for_backward(x, *film, moments)
        ctx.film_type = None if scale is None else scale.dtype
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, scale, shift, moments = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        by_x = torch.empty_like(x, memory_format=torch.channels_last)
        by_scale, by_shift = torch.empty(2, len(x), x.shape[1])
        by_rows(
            "film_backward", level(), x, [x, scale, shift, moments, gradient], _sizes(x), [by_x, by_scale, by_shift]
        )
        if scale is None:
            return by_x, None, None
        return by_x, by_scale.to(ctx.film_type), by_shift.to(ctx.film_type)


def _sizes(x: Tensor) -> tuple[int, int]:
    """Pixels and channels of an image."""
    return x.shape[2] * x.shape[3], x.shape[1]
