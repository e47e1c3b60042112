"""The compiled kernels (the C++ sources here), loaded where they were built and the processor can run them.

Sfumato is complete without them: `layers.py` computes the same sums in PyTorch, several times slower.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sfumato._compiled import load, wanted

_HERE = Path(__file__).parent


class _Layer(ctypes.Structure):
    _fields_ = (
        ("activation", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("weight_at", ctypes.c_int64),
        ("bias_at", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("activation_is_float", "height", "width", "channels")),
        *((name, ctypes.c_int32) for name in ("out_height", "out_width", "out_channels")),
        *((name, ctypes.c_int32) for name in ("kernel_h", "kernel_w", "stride_h", "stride_w", "pad_h", "pad_w")),
    )


class _Task(ctypes.Structure):
    _fields_ = (
        ("records", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("squares", ctypes.c_void_p),
        ("usable", ctypes.c_void_p),
        ("clip_norm", ctypes.c_double),
        ("gamma", ctypes.c_double),
        ("weights", ctypes.c_void_p),
        ("total", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
    )


class Convolution(NamedTuple):
    """What the kernels need of one layer; a linear layer is a 1x1 convolution on one line of positions.

    Attributes:
        activation: `(R rows, H, W, C)`, contiguous, float32, or with a bfloat16 gradient bfloat16.
        gradient: `(R rows, h, w, P)`, contiguous; its precision, the same for all layers, decides which kernels and
            levels are meant.
        weight_at: place of the weight's gradient in a record's, in the order P, kernel, C.
        bias_at: place of the bias's gradient, or -1.
        kernel, stride, padding: (vertical, horizontal).
    """

    activation: Tensor
    gradient: Tensor
    weight_at: int
    bias_at: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def _packed(self) -> _Layer:
        _, height, width, channels = self.activation.shape
        _, out_height, out_width, out_channels = self.gradient.shape
        return _Layer(
            self.activation.data_ptr(),
            self.gradient.data_ptr(),
            self.weight_at,
            self.bias_at,
            self.activation.dtype == torch.float32,
            *(height, width, channels, out_height, out_width, out_channels),
            *(*self.kernel, *self.stride, *self.padding),
        )


@functools.cache
def _library() -> ctypes.CDLL | None:
    found = load(_HERE)
    if found is None:
        return None
    for kind in ("", "linear_", "single_", "single_sum_"):
        getattr(found, f"{kind}scratch_floats").restype = ctypes.c_int64
    return found


def level(precision: Literal["fp32", "bf16"] = "bf16") -> int:
    """What can be used here: 0 nothing; in bfloat16 1 AVX512-BF16, 2 AMX; in float32 1 AVX2, 2 AVX512."""
    found = _library()
    if found is None:
        return 0
    if precision == "fp32":
        return min(int(found.single_level()), wanted())
    return min(int(found.processor_level()), max(0, wanted() - 1))


class Scratch:
    """Memory that one thread's kernels keep between calls."""

    def __init__(self) -> None:
        self._held = torch.zeros(0, dtype=torch.float32)

    def pointer(self, floats: int) -> int:
        """Address of at least `floats` floats, 64-byte aligned."""
        if self._held.numel() < floats + 16:
            self._held = torch.zeros(floats + 16, dtype=torch.float32)
        return -(-self._held.data_ptr() // 64) * 64


def add_clipped(
    layers: Sequence[Convolution],
    usable: Tensor,
    total: Tensor,
    scratch: Scratch,
    *,
    at_level: int,
    rows: int,
    clip_norm: float,
    gamma: float,
    squares: Tensor,
) -> Tensor:
    """Adds the clipped gradients of the usable records to `total`; returns each record's factor, 0 if it was skipped.

    A record whose gradient is not finite is skipped like an unusable one.

    Args:
        layers: what is formed here; other layers' places in `total` are left alone.
        usable: `(R,)` booleans.
        total: `(n,)` float64, on the CPU.
        scratch: of the calling thread.
        at_level: as `level()` gave it.
        rows: rows of the batch that belong to one record.
        clip_norm: radius C.
        gamma: the factor is C / (norm + gamma); below 0 it is C / max(norm, C).
        squares: `(R,)` float64, squared norms of parts that are added elsewhere with the factors returned.
    """
    library = _library()
    assert library is not None
    assert total.dtype == torch.float64
    weights = torch.empty(len(usable), dtype=torch.float64)
    mask = usable.to(torch.uint8)
    task = _Task(
        *(len(usable), rows, total.numel()),
        squares.data_ptr(),
        mask.data_ptr(),
        *(clip_norm, gamma, weights.data_ptr(), total.data_ptr(), None),
    )
    packed = (_Layer * len(layers))(*(layer._packed() for layer in layers))
    single = layers[0].gradient.dtype == torch.float32
    size = library.single_sum_scratch_floats if single else library.scratch_floats
    task.scratch = scratch.pointer(size(packed, len(layers), ctypes.byref(task)))
    work = library.single_clipped_sum if single else library.clipped_sum
    if work(at_level, packed, len(layers), ctypes.byref(task)):
        raise RuntimeError("the kernels were called on a processor that they do not support")
    return weights


class Linear(NamedTuple):
    """One linear layer of a chunk of R records, for `squares` and `add`.

    Attributes:
        activation: `(R, positions, d)`, contiguous, float32, or with a bfloat16 gradient bfloat16.
        gradient: `(R, positions, p)`, contiguous; its precision decides which kernels and levels are meant.
        weight_at, bias_at: places in a record's gradient, or -1.
    """

    activation: Tensor
    gradient: Tensor
    weight_at: int
    bias_at: int

    @property
    def _single(self) -> bool:
        return self.gradient.dtype == torch.float32

    def _call(self, function: str, scratch: Scratch, at_level: int, *arguments: object) -> None:
        library = _library()
        assert library is not None
        records, positions, _ = self.activation.shape
        flat = Convolution(self.activation[:, None], self.gradient[:, None], self.weight_at, self.bias_at)
        layer, sizes = flat._packed(), (ctypes.c_int64(records), ctypes.c_int64(positions))
        kind = "single" if self._single else "linear"
        memory = scratch.pointer(getattr(library, f"{kind}_scratch_floats")(ctypes.byref(layer), *sizes))
        _call(f"{kind}_{function}", at_level, ctypes.byref(layer), *sizes, *arguments, ctypes.c_void_p(memory))

    def squares(self, gram: bool, scratch: Scratch, at_level: int) -> Tensor:
        """Squared norms of the gradients or upper bounds on them, `(R,)` float64.

        By Gram matrices where `gram`, and in float32 always; where inputs cancel from the gradient itself.
        """
        found = torch.zeros(len(self.activation), dtype=torch.float64)
        self._call("squares", scratch, at_level, *(() if self._single else (int(gram),)), found)
        return found

    def add(
        self,
        weights: Tensor,
        total: Tensor,
        scratch: Scratch,
        at_level: int,
        grouped: bool = False,
        room: bool = True,
        overwrite: bool = False,
    ) -> None:
        """Adds the gradients times `weights`, `(R,)` float64, to `total` float64; weight 0 is not read.

        `grouped` allows to add up at most eight records of bfloat16 in float32 before they join the total, with weights
        rounded down to float32, or with AMX to 8 bits where there are at most 16 positions. Without `room` each joins
        the total alone, formed as it would be in a group. `overwrite` takes what is in `total` for zero.
        """
        weights = weights.contiguous()
        options = (int(overwrite),) if self._single else (int(grouped) * (1 if room else 2), int(overwrite))
        self._call("add", scratch, at_level, *options, weights, total)


def norm_gradients(x: Tensor, gradient: Tensor, epsilon: float, at_level: int) -> tuple[Tensor, Tensor]:
    """Gradients of a layer norm's scale and shift, and their squared norms.

    Args:
        x: inputs `(R, positions, d)`, float32 or bfloat16, contiguous, d in eights.
        gradient: by the outputs, of the same kind.
        epsilon: of the norm.
        at_level: as `level()` gave it.

    Returns:
        `(R, 2 d)` float32 and `(R,)` float64.
    """
    records, positions, width = x.shape
    out = torch.empty(records, 2 * width, dtype=torch.float32)
    squares = torch.zeros(records, dtype=torch.float64)
    sizes = (ctypes.c_int64(records), ctypes.c_int64(positions), ctypes.c_int64(width))
    half = int(x.dtype == torch.bfloat16)
    _call("norm_gradients", at_level, half, x, gradient, *sizes, ctypes.c_double(epsilon), out, squares)
    return out, squares


def rows_add(rows: Tensor, weights: Tensor, total: Tensor, at_level: int) -> None:
    """Adds `(R, n)` float32 rows times `weights` `(R,)` float64 to `total` `(n,)` float64; weight 0 is not read."""
    sizes = (ctypes.c_int64(size) for size in rows.shape)
    _call("rows_add", at_level, rows, *sizes, weights.contiguous(), total)


def embedding_squares(tokens: Tensor, gradient: Tensor, at_level: int) -> Tensor:
    """Squared norms of the gradients, `(R,)` float64, from tokens `(R, T)` int64 and gradients `(R, T, d)` float32."""
    found = torch.zeros(len(tokens), dtype=torch.float64)
    _embedding("embedding_squares", tokens, gradient, at_level, found)
    return found


def embedding_add(tokens: Tensor, gradient: Tensor, weights: Tensor, total: Tensor, at_level: int) -> None:
    """Adds the gradients times `weights` `(R,)` float64 to `total` `(vocabulary d,)` float64; weight 0 is not read."""
    _embedding("embedding_add", tokens, gradient, at_level, weights.contiguous(), total)


def _embedding(function: str, tokens: Tensor, gradient: Tensor, at_level: int, *rest: Tensor) -> None:
    sizes = (ctypes.c_int64(size) for size in gradient.shape)
    _call(function, at_level, tokens, gradient, *sizes, *rest)


def _call(function: str, at_level: int, *arguments: object) -> None:
    """Calls a kernel with tensors as their addresses."""
    library = _library()
    assert library is not None
    pointers = (ctypes.c_void_p(value.data_ptr()) if isinstance(value, Tensor) else value for value in arguments)
    if getattr(library, function)(at_level, *pointers):
        raise RuntimeError("the kernels were called on a processor that they do not support")
