"""What lies between the U-Net's convolutions: normalisation, scale and shift (FiLM, Perez et al. 2018), and SiLU.

In PyTorch these are a dozen passes over memory, in float32 under autocast, and a good part of a private step. Compiled
(film.cpp), an image stays in a core's cache, forward and backward; results agree up to rounding.
"""

from __future__ import annotations

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato._compiled import load, wanted

_EPSILON = 1e-5
_HERE = Path(__file__).parent
_TOGETHER = 16  # channels come in multiples of this


def film_silu(x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """`silu(shift + normal(x) (1 + scale))`; normal(x) has mean 0 and variance 1 over each image (one group).

    No image's result depends on another's, nor on its place in the batch.

    Args:
        x: `(N, C, h, w)`, float32 or bfloat16; quickest channels-last.
        scale, shift: `(N, C)`, both or neither.

    Returns:
        Like `x`, channels-last.
    """
    if _fits(x):
        result: Tensor = _Compiled.apply(x, scale, shift)  # type: ignore[no-untyped-call]
        return result
    flat = x.permute(0, 2, 3, 1).flatten(1)
    normal = F.layer_norm(flat, flat.shape[1:], eps=_EPSILON).view(len(x), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
    if scale is not None and shift is not None:
        normal = torch.addcmul(shift[:, :, None, None], normal, 1 + scale[:, :, None, None])
    return F.silu(normal).to(x.dtype)


def level() -> int:
    """What compiled code can use here: 0 nothing, 1 AVX2, 2 AVX512."""
    found = load(_HERE)
    return min(int(found.film_level()), wanted()) if found is not None else 0


def _fits(x: Tensor) -> bool:
    """Whether compiled code is for `x`."""
    known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.shape[1] % _TOGETHER == 0
    transformed: bool = torch._C._are_functorch_transforms_active()  # vmap hands out tensors without memory
    return known and not transformed and x.numel() > 0 and level() > 0


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        film = [None if value is None else value.float().contiguous() for value in (scale, shift)]
        y = torch.empty_like(x, memory_format=torch.channels_last)
        moments = torch.empty(len(x), 2)
        _by_images("film_forward", x, [x, *film], [ctypes.c_double(_EPSILON), y, moments])
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
        _by_images("film_backward", x, [x, scale, shift, moments, gradient], [by_x, by_scale, by_shift])
        if scale is None:
            return by_x, None, None
        return by_x, by_scale.to(ctx.film_type), by_shift.to(ctx.film_type)


def _by_images(function: str, x: Tensor, before: list[Any], after: list[Any]) -> None:
    """Calls a kernel, on each of PyTorch's threads for a share of the images; tensors go as addresses of their rows."""
    found, threads = load(_HERE), min(torch.get_num_threads(), len(x))
    assert found is not None
    at_level, (_, channels, height, width) = level(), x.shape

    def address(value: Any, first: int) -> Any:
        return ctypes.c_void_p((value[first:] if first else value).data_ptr()) if isinstance(value, Tensor) else value

    def work(number: int) -> None:
        first, end = (len(x) * n // threads for n in (number, number + 1))
        sizes = (ctypes.c_int64(size) for size in (end - first, height * width, channels))
        arguments = (*(address(value, first) for value in before), *sizes, *(address(value, first) for value in after))
        if getattr(found, function)(at_level, int(x.dtype == torch.bfloat16), *arguments):
            raise RuntimeError("the kernels were called on a processor that they do not support")

    if threads == 1:
        work(0)
    else:
        list(_pool(threads).map(work, range(threads)))


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has no threads but one
