"""Levels and kinds of the compiled kernels, layers to try them on, and memory that shows where they wrote."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from sfumato.privacy.gradients import kernels
from sfumato.privacy.gradients.kernels import Convolution, Linear

LEVELS = range(1, kernels.level() + 1)
levels = pytest.mark.parametrize("level", LEVELS, ids=lambda level: ("avx512", "amx")[level - 1])
GUARD = 1024


class Kind(NamedTuple):
    """Of the operands of a linear layer, and the level of its kernels."""

    dtype: torch.dtype
    level: int

    def __str__(self) -> str:
        half = self.dtype == torch.bfloat16
        return ("bf16-avx512", "bf16-amx")[self.level - 1] if half else ("fp32-avx2", "fp32-avx512")[self.level - 1]


KINDS = [
    *(Kind(torch.bfloat16, level) for level in LEVELS),
    *(Kind(torch.float32, level) for level in range(1, kernels.level("fp32") + 1)),
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


class Guarded(kernels.Scratch):
    """Scratch memory full of NaN, as a broken record leaves it, between two fences."""

    def pointer(self, floats: int) -> int:
        self._held = torch.full((floats + 2 * GUARD + 16,), math.nan)
        first = -(-self._held.data_ptr() // 64) * 64 + 4 * GUARD
        self.start = (first - self._held.data_ptr()) // 4
        self.end = self.start + floats
        for fence in (self._held[: self.start], self._held[self.end :]):
            fence.fill_(1234.5)
        return first

    def intact(self) -> bool:
        return bool((self._held[: self.start] == 1234.5).all() and (self._held[self.end :] == 1234.5).all())


pairs = st.tuples
odd = st.integers(1, 40)


def line(activation: Tensor, gradient: Tensor, bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> Linear:
    size = activation.shape[2] * gradient.shape[2]
    return Linear(activation.contiguous(), gradient.to(dtype).contiguous(), 1, 1 + size if bias else -1)


def added(layer: Linear, weights: Tensor, level: int, grouped: bool = False, room: bool = True) -> Tensor:
    """What `add` adds, bias and all, or puts in the place of what is there; nothing else is touched."""
    inputs, outputs = layer.activation.shape[2], layer.gradient.shape[2]
    mine = slice(1, 1 + inputs * outputs + (outputs if layer.bias_at >= 0 else 0))
    start, scratch = torch.randn(mine.stop + 3, dtype=torch.float64), Guarded()
    found = []
    for overwrite in (False, True):
        total = start.clone()
        total[mine] = math.nan if overwrite else 0.0
        layer.add(weights, total, scratch, level, grouped, room, overwrite)
        assert scratch.intact()
        assert total[0] == start[0]
        assert torch.equal(total[-3:], start[-3:])
        found.append(total[mine])
    assert torch.equal(*found)
    return found[0]


def flat(layer: Linear) -> Tensor:
    """`(R, p d + p)`, or without a bias `(R, p d)`, in double precision."""
    a, g = layer.activation.to(layer.gradient.dtype).double(), layer.gradient.double()
    weight = (g.transpose(1, 2) @ a).flatten(1)
    return torch.cat((weight, g.sum(1)), 1) if layer.bias_at >= 0 else weight


def squares_of(layer: Linear, gram: bool, level: int) -> Tensor:
    scratch = Guarded()
    found = layer.squares(gram, scratch, level)
    assert scratch.intact()
    return found


def a_pair_of_layers(records: int, dtype: torch.dtype) -> tuple[list[Convolution], int]:
    torch.manual_seed(0)
    first = Convolution(
        torch.randn(2 * records, 5, 6, 7), torch.randn(2 * records, 5, 6, 9).to(dtype), 0, 567, (3, 3), (1, 1), (1, 1)
    )
    second = Convolution(
        torch.randn(2 * records, 1, 3, 20).to(dtype), torch.randn(2 * records, 1, 3, 33).to(dtype), 576, -1
    )
    return [first, second], 576 + 660 + 4


def attacks(positions: int, width: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs `(1, positions, width)` and output gradients whose products cancel, or that rounding cannot see."""
    shape = (1, positions, width)
    signs = torch.where(torch.arange(positions) % 2 == 0, 1.0, -1.0)[None, :, None]
    token, wide = torch.randn(1, 1, width), torch.randn(shape)
    near = token * (1 + 2.0**-8 * torch.randint(0, 2, shape))
    one, first = torch.zeros(2, *shape)
    one[0, 0], first[..., 0] = 1, 1
    return {
        "ordinary": (wide, torch.randn(shape)),
        "alternating": (torch.ones(shape) + 1e-3 * torch.randn(shape), signs * torch.ones(shape)),
        "near duplicates": (near, signs * torch.randn(1, 1, width) * (1 + 2.0**-8 * torch.randint(0, 2, shape))),
        "cancelling": (wide - wide.flip(1), torch.ones(shape)),
        "duplicates": (token.expand(shape), torch.randn(1, 1, width).expand(shape)),
        "duplicates of alternating sign": (token.expand(shape), (signs * torch.randn(1, 1, width)).expand(shape)),
        "one position": (one, wide),
        "one large": (1e6 * one + wide, 1e6 * one.flip(1) + wide),
        "large against small": (
            wide * 10.0 ** torch.randint(-6, 7, shape),
            wide.flip(1) * 10.0 ** torch.randint(-6, 7, shape),
        ),
        "overflowing": (1.8e19 * first, 1.8e19 * first),  # no Gram matrix does
        "nothing": (torch.zeros(shape), wide),
        "subnormal": (wide * 1e-39, wide),
        "both subnormal": (wide * 1e-39, wide.flip(1) * 1e-39),
        "at the edge": (wide * 2.0**-63, wide.flip(1) * 2.0**-63),
    }
