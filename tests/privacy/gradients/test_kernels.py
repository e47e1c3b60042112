"""The compiled kernels against double-precision products of the same bfloat16 values, on inputs made to break them."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
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


def test_the_library_is_there_where_the_processor_can_run_it() -> None:
    """A stale or missing library would be silent: the package is complete without it, and several times slower."""
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    can = 2 if "amx_bf16" in flags else int("avx512_bf16" in flags)
    assert kernels.level() == can, "rebuild: pip install --no-deps -e ."
    wide = {"avx512f", "avx512vl", "avx512dq"} <= set(flags)
    assert kernels.level("fp32") == (1 + wide if {"avx2", "fma"} <= set(flags) else 0)


@pytest.mark.parametrize(("value", "expected"), [("off", 0), ("avx2", 0), ("avx512", 1), ("amx", 2), ("nonsense", 0)])
def test_the_level_can_be_lowered(value: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    best, single = kernels.level(), kernels.level("fp32")
    monkeypatch.setenv("SFUMATO_KERNELS", value)
    assert kernels.level() == min(best, expected)
    assert kernels.level("fp32") == min(single, {"avx2": 1, "avx512": 2, "amx": 2}.get(value, 0))


def exact(layer: Convolution, rows: int) -> tuple[Tensor, Tensor]:
    """Gradients `(R, P, kh, kw, C)` and `(R, P)` in double precision, of the values that the kernels multiply."""
    a = layer.activation.to(layer.gradient.dtype).double().permute(0, 3, 1, 2)
    g = layer.gradient.double().permute(0, 3, 1, 2)
    found = []
    for record in range(len(a) // rows):
        part = slice(record * rows, (record + 1) * rows)
        weight = torch.zeros(g.shape[1], a.shape[1], *layer.kernel, dtype=torch.float64, requires_grad=True)
        (F.conv2d(a[part], weight, stride=layer.stride, padding=layer.padding) * g[part]).sum().backward()
        assert weight.grad is not None
        found.append(weight.grad.permute(0, 2, 3, 1))
    return torch.stack(found), g.view(len(found), rows, g.shape[1], -1).sum((1, 3))


def clipped(layers: list[Convolution], usable: Tensor, total: Tensor, level: int, rows: int, **kw: object) -> Tensor:
    scratch, options = Guarded(), {"clip_norm": 1e30, "gamma": -1.0, "squares": torch.zeros(len(usable)).double()} | kw
    weights = kernels.add_clipped(layers, usable, total, scratch, at_level=level, rows=rows, **options)  # type: ignore[arg-type]
    assert scratch.intact()
    return weights


pairs = st.tuples
odd = st.integers(1, 40)


@kinds
@settings(max_examples=60, deadline=None)
@given(
    records=st.integers(1, 3),
    rows=st.integers(1, 3),
    channels=pairs(odd, odd),
    kernel=pairs(st.integers(1, 4), st.integers(1, 4)),
    stride=pairs(st.integers(1, 3), st.integers(1, 3)),
    padding=pairs(st.integers(0, 2), st.integers(0, 2)),
    extra=pairs(st.integers(0, 9), st.integers(0, 9)),
    single=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(2, 2, (16, 16), (3, 3), (1, 1), (1, 1), (4, 4), False, True, 0)
@example(2, 1, (32, 64), (2, 2), (2, 2), (0, 0), (12, 12), True, True, 0)
@example(1, 1, (33, 17), (1, 3), (3, 2), (2, 0), (7, 6), False, False, 0)
@example(3, 2, (1, 1), (1, 1), (3, 3), (1, 0), (5, 5), False, False, 7494292)  # a sum that cancels
def test_convolutions(
    kind: Kind,
    records: int,
    rows: int,
    channels: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    extra: tuple[int, int],
    single: bool,
    bias: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    inputs, outputs = channels
    height, width = (size + more for size, more in zip(kernel, extra, strict=True))
    out = [(size + 2 * p - k) // s + 1 for size, p, k, s in zip((height, width), padding, kernel, stride, strict=True)]
    activation = torch.randn(records * rows, height, width, inputs)
    gradient = torch.randn(records * rows, *out, outputs).to(kind.dtype)
    size = outputs * inputs * kernel[0] * kernel[1]
    weight_at, bias_at = 3, 3 + size + 2 if bias else -1
    layer = Convolution(
        activation if single else activation.to(kind.dtype), gradient, weight_at, bias_at, kernel, stride, padding
    )
    weight, sums = exact(layer, rows)
    terms, _ = exact(layer._replace(activation=layer.activation.abs(), gradient=gradient.abs()), rows)
    start = torch.randn(weight_at + size + 2 + outputs + 5, dtype=torch.float64)
    for record in range(records):
        total = start.clone()
        usable = torch.arange(records) == record
        assert torch.equal(clipped([layer], usable, total, kind.level, rows), usable.double())
        added = total - start
        error = (added[3 : 3 + size].view_as(weight[record]) - weight[record]).norm()
        assert error <= 1e-5 * weight[record].norm() + 2e-7 * terms[record].norm()  # the latter where terms cancel
        if bias:
            error = (added[bias_at : bias_at + outputs] - sums[record]).norm()
            assert error <= 1e-5 * gradient.double().norm() * math.sqrt(gradient[0].numel() / outputs)
        mine = torch.zeros(len(start), dtype=torch.bool)
        mine[weight_at : weight_at + size] = True
        if bias:
            mine[bias_at : bias_at + outputs] = True
        assert torch.equal(total[~mine], start[~mine])  # nothing beside its own place


def a_pair_of_layers(records: int, dtype: torch.dtype) -> tuple[list[Convolution], int]:
    torch.manual_seed(0)
    first = Convolution(
        torch.randn(2 * records, 5, 6, 7), torch.randn(2 * records, 5, 6, 9).to(dtype), 0, 567, (3, 3), (1, 1), (1, 1)
    )
    second = Convolution(
        torch.randn(2 * records, 1, 3, 20).to(dtype), torch.randn(2 * records, 1, 3, 33).to(dtype), 576, -1
    )
    return [first, second], 576 + 660 + 4


@kinds
@pytest.mark.parametrize("gamma", [-1.0, 0.01])
def test_clipping_takes_all_layers_together(kind: Kind, gamma: float) -> None:
    layers, length = a_pair_of_layers(3, kind.dtype)
    parts = [exact(layer, 2) for layer in layers]
    apart = torch.tensor([0.0, 1e4, 2.5e3], dtype=torch.float64)
    norms = (
        parts[0][0].flatten(1).square().sum(1)
        + parts[0][1].square().sum(1)
        + parts[1][0].flatten(1).square().sum(1)
        + apart
    ).sqrt()
    for clip in (0.5, 1e3):
        total = torch.zeros(length, dtype=torch.float64)
        weights = clipped(layers, torch.ones(3) > 0, total, kind.level, 2, clip_norm=clip, gamma=gamma, squares=apart)
        expected = clip / (norms + gamma) if gamma > 0 else clip / norms.clamp(min=clip)
        assert torch.allclose(weights, expected, rtol=1e-6)
        assert (weights * norms <= clip * (1 + 1e-7)).all()
        right = torch.tensordot(weights, parts[0][0].flatten(1), 1)
        assert torch.allclose(total[:567], right, rtol=1e-5, atol=1e-5 * float(right.abs().max()))


@kinds
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("where", ["activation", "gradient", "squares"])
def test_a_broken_record_is_skipped(kind: Kind, bad: float, where: str) -> None:
    layers, length = a_pair_of_layers(4, kind.dtype)
    squares = torch.zeros(4, dtype=torch.float64)
    kept = torch.tensor([True, True, False, True])
    expected, total = torch.zeros(2, length, dtype=torch.float64)
    clipped(layers, kept, expected, kind.level, 2, clip_norm=1.0, squares=squares)
    if where == "squares":
        squares[2] = bad if bad != 3e38 else math.inf
    else:
        for layer in layers:
            getattr(layer, where)[5] = bad
    weights = clipped(layers, torch.ones(4) > 0, total, kind.level, 2, clip_norm=1.0, squares=squares)
    assert weights[2] == 0 or bad == 3e38
    if weights[2] == 0:
        assert torch.equal(total, expected)
    assert total.isfinite().all()
    assert float((total - expected).norm()) <= 1


@kinds
def test_scratch_may_hold_anything(kind: Kind) -> None:
    """The same memory serves one chunk after another; a broken record must leave nothing in it."""
    layers, length = a_pair_of_layers(2, kind.dtype)
    broken = [layer._replace(gradient=torch.full_like(layer.gradient, math.nan)) for layer in layers]
    scratch, totals = kernels.Scratch(), torch.zeros(2, length, dtype=torch.float64)
    options = {"at_level": kind.level, "rows": 2, "clip_norm": 1.0, "gamma": -1.0, "squares": torch.zeros(2).double()}
    for total in totals:
        kernels.add_clipped(layers, torch.ones(2) > 0, total, scratch, **options)  # type: ignore[arg-type]
        kernels.add_clipped(broken, torch.ones(2) > 0, torch.zeros(length).double(), scratch, **options)  # type: ignore[arg-type]
    assert torch.equal(*totals)
    assert totals.isfinite().all()
    lines = line(torch.randn(3, 21, 20), torch.randn(3, 21, 33), dtype=kind.dtype)
    nothing = lines._replace(gradient=torch.full_like(lines.gradient, math.nan))
    found = []
    for _ in range(2):
        for gram in (True, False):
            total, weights = torch.zeros(694, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
            squares = lines.squares(gram, scratch, kind.level)
            lines.add(weights, total, scratch, kind.level)
            found.append(torch.cat((total, squares)) if gram else total)
            assert nothing.squares(gram, scratch, kind.level).isnan().all()
            nothing.add(weights, torch.zeros_like(total), scratch, kind.level)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


@kinds
def test_no_records(kind: Kind) -> None:
    layers, length = a_pair_of_layers(0, kind.dtype)
    total = torch.zeros(length, dtype=torch.float64)
    assert len(clipped(layers, torch.zeros(0) > 0, total, kind.level, 2)) == 0
    empty = line(torch.randn(0, 4, 3), torch.randn(0, 4, 5), dtype=kind.dtype)
    assert len(empty.squares(True, Guarded(), kind.level)) == 0
    assert not total.any()


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


@kinds
@settings(max_examples=60, deadline=None)
@given(
    records=st.integers(1, 11),
    positions=st.integers(1, 70),
    widths=pairs(st.integers(1, 70), st.integers(1, 70)),
    single=st.booleans(),
    bias=st.booleans(),
    gram=st.booleans(),
    grouped=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(9, 16, (32, 64), True, True, True, True, 0)
@example(9, 1, (64, 32), False, True, True, True, 0)
@example(2, 17, (48, 16), False, True, True, True, 0)
def test_linear_layers(
    kind: Kind,
    records: int,
    positions: int,
    widths: tuple[int, int],
    single: bool,
    bias: bool,
    gram: bool,
    grouped: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    a = torch.randn(records, positions, widths[0])
    a = a if single or kind.dtype == torch.float32 else a.bfloat16()
    layer = line(a, torch.randn(records, positions, widths[1]), bias, kind.dtype)
    expected, squares = flat(layer), squares_of(layer, gram, kind.level)
    norms = expected.norm(dim=1)
    sizes = (layer.activation.to(kind.dtype).double().norm(dim=2) * layer.gradient.double().norm(dim=2)).sum(1)
    assert (squares.sqrt() >= norms * (1 - 1e-5 * sizes / norms)).all()
    assert (squares.sqrt() <= 1.01 * norms + 1e-5 * sizes).all()
    weights = torch.rand(records, dtype=torch.float64) + 0.1
    found, right = added(layer, weights, kind.level, grouped), weights @ expected
    if not grouped:
        assert (found - right).norm() <= 1e-5 * (weights * sizes).sum()
        return
    assert (found - right).norm() <= 2**-6 * (weights * sizes).sum()
    assert found.norm() <= (weights * squares.sqrt()).sum() * (1 + 1e-5)
    eight = torch.ones(records, dtype=torch.float64) - 2.0**-7  # as 8 bits hold it, rounding down is none
    sizes = sizes + layer.gradient.double().norm(dim=2).sum(1)  # the bias is added with the weights as they are
    assert (added(layer, eight * (1 + 2.0**-20), kind.level, True) - eight @ expected).norm() <= 1e-5 * sizes.sum()


@kinds
@pytest.mark.parametrize("grouped", [False, True])
def test_sums_are_added_to_what_is_there(kind: Kind, grouped: bool) -> None:
    torch.manual_seed(0)
    layer = line(torch.randn(11, 9, 50), torch.randn(11, 9, 35), dtype=kind.dtype)
    start, weights = torch.randn(1 + 50 * 35 + 35, dtype=torch.float64), torch.rand(11, dtype=torch.float64)
    total = start.clone()
    layer.add(weights, total, Guarded(), kind.level, grouped)
    assert torch.allclose(total[1:] - start[1:], added(layer, weights, kind.level, grouped), rtol=0, atol=1e-12)
    nobody = added(layer, torch.zeros(11, dtype=torch.float64), kind.level, grouped)
    assert not nobody.any()


@kinds
def test_half_trained_linear_layers(kind: Kind) -> None:
    torch.manual_seed(0)
    layer = line(torch.randn(3, 5, 20), torch.randn(3, 5, 33), dtype=kind.dtype)
    expected = flat(layer)
    only_bias = layer._replace(weight_at=-1, bias_at=0)
    total = torch.zeros(33, dtype=torch.float64)
    only_bias.add(torch.ones(3, dtype=torch.float64), total, Guarded(), kind.level)
    assert total.any()
    assert torch.allclose(total, expected[:, 660:].sum(0), rtol=1e-5, atol=1e-5)
    assert torch.allclose(squares_of(only_bias, True, kind.level), expected[:, 660:].square().sum(1), rtol=1e-5)


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


@kinds
@pytest.mark.parametrize("positions", [1, 2, 7, 15, 16, 17, 64, 256])
def test_no_norm_is_below_what_is_added(kind: Kind, positions: int) -> None:
    torch.manual_seed(positions)
    one = torch.ones(1, dtype=torch.float64)
    charged = 8 * 2.0**-24  # a record of a group, for rounding
    inside = kind == (torch.bfloat16, 2) and positions <= 16
    room = 0.0 if inside or kind.dtype == torch.float32 else charged
    for name, (a, g) in attacks(positions, 40).items():
        for scale, back in (
            (1.0, 1.0),
            (1e-30, 1.0),
            (1.0, 1e-30),
            (1e-18, 1e-18),
            (1e15, 1e15),
            (1e30, 1e-30),
            (1e-30, 1e30),
            (1.0, 1e30),
        ):
            for bias in (False, True):
                layer = line((a * scale).to(kind.dtype), g * back, bias, kind.dtype)
                for gram in (True, False):
                    norm = float(squares_of(layer, gram, kind.level).sqrt()) * (1 + 1e-9)
                    if math.isinf(norm) or math.isnan(norm):
                        continue  # not added
                    where = f"{name}, {scale}, {back}, {gram}"
                    assert float(added(layer, one, kind.level).norm()) <= norm, where
                    for weight in (1.0, 0.7, 1 / norm if norm > 1e-30 else 1.0):
                        found = float(added(layer, one * weight, kind.level, grouped=True).norm())
                        assert found <= weight * norm * (1 + room), where + f", weight {weight}"
                if name == "ordinary" and scale == back == 1:
                    assert norm <= 1.01 * float(flat(layer).norm())


@kinds
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("positions", [3, 40])
def test_weight_zero_is_not_read(kind: Kind, grouped: bool, bad: float, positions: int) -> None:
    torch.manual_seed(0)
    a, g = torch.randn(11, positions, 50), torch.randn(11, positions, 35)
    weights = torch.rand(11, dtype=torch.float64)
    weights[4] = 0
    expected = added(line(a, g, dtype=kind.dtype), weights, kind.level, grouped)
    clean = squares_of(line(a, g, dtype=kind.dtype), True, kind.level)
    a[4], g[4] = bad, bad
    assert torch.equal(added(line(a, g, dtype=kind.dtype), weights, kind.level, grouped), expected)
    others = torch.arange(11) != 4
    for gram in (True, False):
        squares = squares_of(line(a, g, dtype=kind.dtype), gram, kind.level)
        assert not squares[4] < 1e70
        assert not gram or torch.equal(squares[others], clean[others])


@kinds
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("widths", [(160, 128), (96, 200), (320, 288)])
def test_more_records_than_a_cache_holds(kind: Kind, grouped: bool, widths: tuple[int, int]) -> None:
    """They are added in spans, the last of them shorter, and some records of each are left out."""
    torch.manual_seed(0)
    layer = line(torch.randn(43, 256, widths[0]), torch.randn(43, 256, widths[1]), dtype=kind.dtype)
    weights = torch.randint(1, 8, (43,)).double() / 8
    weights[::7] = 0
    found, right = added(layer, weights, kind.level, grouped), weights @ flat(layer)
    assert (found - right).norm() <= 1e-5 * right.norm()


@kinds
@pytest.mark.parametrize("grouped", [False, True])
def test_a_record_does_not_move_another(kind: Kind, grouped: bool) -> None:
    """Weights that single out one record: the others' values do not reach a bit of it."""
    torch.manual_seed(0)
    a, g = torch.randn(11, 9, 50), torch.randn(11, 9, 35)
    for record in (0, 5, 10):
        weights = (torch.arange(11) == record).double()
        before = added(line(a, g, dtype=kind.dtype), weights, kind.level, grouped)
        others = torch.arange(11) != record
        changed, back = a.clone(), g.clone()
        changed[others], back[others] = 1e3 * torch.randn(10, 9, 50), torch.randn(10, 9, 35)
        assert torch.equal(added(line(changed, back, dtype=kind.dtype), weights, kind.level, grouped), before)


@levels
@pytest.mark.parametrize("positions", [5, 16, 17, 40])
def test_groups_err_by_no_more_than_they_are_charged(level: int, positions: int) -> None:
    """At most eight records a group, each of norm 1: less than 8 units of roundoff a record."""
    torch.manual_seed(0)
    records = 64
    layer = line(torch.randn(records, positions, 48), torch.randn(records, positions, 40), bias=False)
    weights = (1 / squares_of(layer, True, level).sqrt()).float().double()
    bits = (weights * (1 - 2.0**-23)).float().view(torch.int32) & -65536
    rounded = bits.view(torch.float32).double() if level == 2 and positions <= 16 else weights
    assert (rounded <= weights).all()
    assert (rounded > 0.99 * weights).all()
    error = (added(layer, weights, level, grouped=True) - rounded @ flat(layer)).norm()
    assert float(error) < records * 8 * 2.0**-24
    # records that are alike add up worst: the sum of a group has the norm of all its records
    alike = layer._replace(
        activation=layer.activation[:1].repeat(records, 1, 1), gradient=layer.gradient[:1].repeat(records, 1, 1)
    )
    first = weights[:1].repeat(records)
    error = (added(alike, first, level, grouped=True) - rounded[0] / weights[0] * added(alike, first, level)).norm()
    assert float(error) < records * 8 * 2.0**-24


@levels
@pytest.mark.parametrize("nearness", [1.0, 0.05, 0.01])
@pytest.mark.parametrize("positions", [6, 16, 18, 40])
def test_a_share_is_formed_alike_in_a_group_and_without_room_for_one(
    level: int, positions: int, nearness: float
) -> None:
    """Also where positions cancel, and rounding is most of what is left of a gradient."""
    torch.manual_seed(0)
    records = 20
    activation = 1 + nearness * torch.randn(records, positions, 48)
    signs = torch.where(torch.arange(positions) % 2 == 0, 1.0, -1.0)[None, :, None]
    layer = line(activation, signs * (1 + nearness * torch.randn(records, positions, 40)), bias=False)
    weights = 1 / squares_of(layer, True, level).clamp(min=1e-12).sqrt()
    alone = torch.stack([
        added(Linear(layer.activation[n : n + 1], layer.gradient[n : n + 1], 1, -1), weights[n : n + 1], level, True)
        for n in range(records)
    ])  # fmt: skip
    assert float((added(layer, weights, level, True, room=False) - alone.sum(0)).norm()) < records * 2.0**-22
    assert float((added(layer, weights, level, True) - alone.sum(0)).norm()) < records * 9 * 2.0**-24


@levels
@settings(max_examples=30, deadline=None)
@given(
    records=st.integers(1, 4),
    positions=st.integers(1, 9),
    eights=st.integers(1, 20),
    offset=st.sampled_from([0.0, 100.0]),
    half=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_norm_gradients(
    level: int, records: int, positions: int, eights: int, offset: float, half: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    width = 8 * eights
    x, g = torch.randn(records, positions, width) + offset, torch.randn(records, positions, width)
    x, g = (value.bfloat16() if half else value for value in (x, g))
    found, squares = kernels.norm_gradients(x, g, 1e-5, level)
    normal = F.layer_norm(x.double(), (width,), eps=1e-5)
    expected = torch.cat(((g.double() * normal).sum(1), g.double().sum(1)), 1)
    assert (found - expected).norm() <= (1e-6 + 1e-6 * offset) * math.sqrt(positions) * expected.norm() + 1e-6
    assert torch.allclose(squares.sqrt(), found.double().norm(dim=1), rtol=1e-12)
    weights, start = torch.rand(records, dtype=torch.float64), torch.randn(2 * width + 1, dtype=torch.float64)
    weights[0] = 0
    totals = []
    for _ in range(2):
        total = start.clone()
        kernels.rows_add(found, weights, total[1:], level)
        totals.append(total)
        g[0], x[0] = math.nan, math.inf
        others = found[1:].clone()
        found, squares = kernels.norm_gradients(x, g, 1e-5, level)
        assert not squares[0].isfinite()
        assert torch.equal(found[1:], others)
    assert torch.equal(*totals)
    assert totals[0][0] == start[0]
    assert torch.allclose(totals[0][1:], start[1:] + weights[1:] @ found[1:].double(), rtol=1e-12)


@levels
@settings(max_examples=40, deadline=None)
@given(
    records=st.integers(1, 4),
    positions=st.integers(1, 12),
    vocabulary=st.integers(1, 5),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_embeddings(level: int, records: int, positions: int, vocabulary: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    tokens, g = torch.randint(vocabulary, (records, positions)), torch.randn(records, positions, width)
    exact = torch.zeros(records, vocabulary, width, dtype=torch.float64)
    exact.scatter_add_(1, tokens[:, :, None].expand_as(g), g.double())
    squares, sizes = kernels.embedding_squares(tokens, g, level), g.double().norm(dim=2).sum(1)
    assert ((squares.sqrt() - exact.flatten(1).norm(dim=1)).abs() <= 1e-6 * sizes).all()
    weights = torch.rand(records, dtype=torch.float64)
    weights[0] = 0
    start = torch.randn(1 + vocabulary * width + 1, dtype=torch.float64)
    totals = []
    for bad in (1.0, math.nan):
        total = start.clone()
        g[0] *= bad
        kernels.embedding_add(tokens, g, weights, total[1:-1], level)
        totals.append(total)
    assert torch.equal(*totals)
    assert torch.equal(totals[0][[0, -1]], start[[0, -1]])
    error = (totals[0] - start)[1:-1].view(vocabulary, width) - torch.tensordot(weights, exact, 1)
    assert error.norm() <= 1e-6 * (1 + sizes[1:].sum())
    assert torch.equal(kernels.embedding_squares(tokens, g, level)[1:], squares[1:])


@levels
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_no_norm_of_an_embedding_is_below_what_is_added(level: int, scale: float) -> None:
    """One token throughout, and output gradients that cancel."""
    torch.manual_seed(0)
    for positions in (2, 17, 256):
        g = attacks(positions, 24)["near duplicates"][1] * scale
        tokens, total = torch.zeros(1, positions, dtype=torch.long), torch.zeros(3 * 24, dtype=torch.float64)
        kernels.embedding_add(tokens, g, torch.ones(1, dtype=torch.float64), total, level)
        norm = float(kernels.embedding_squares(tokens, g, level).sqrt())
        assert 0 < float(total.norm()) <= norm * (1 + 1e-12)


@levels
def test_norm_gradients_of_constant_inputs_are_finite(level: int) -> None:
    x, g = torch.full((2, 3, 8), 1e4), torch.randn(2, 3, 8)
    found, squares = kernels.norm_gradients(x, g, 1e-5, level)
    assert found.isfinite().all()
    assert squares.isfinite().all()
    assert found[:, :8].abs().max() < 1e-2 * g.abs().max() * 3


def test_a_level_that_the_kernels_do_not_know_is_an_error() -> None:
    if not LEVELS:
        return
    with pytest.raises(RuntimeError, match="processor"):
        kernels.norm_gradients(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8), 1e-5, 0)
    with pytest.raises(RuntimeError, match="processor"):
        kernels.norm_gradients(torch.zeros(1, 1, 9), torch.zeros(1, 1, 9), 1e-5, LEVELS[-1])


@kinds
def test_threads_do_not_meet(kind: Kind) -> None:
    layers, length = a_pair_of_layers(6, kind.dtype)
    lines = line(torch.randn(6, 30, 64), torch.randn(6, 30, 96), dtype=kind.dtype)

    def work(scratch: kernels.Scratch) -> Tensor:
        total = torch.zeros(length + 64 * 96 + 97, dtype=torch.float64)
        options = {
            "at_level": kind.level,
            "rows": 2,
            "clip_norm": 1.0,
            "gamma": 0.01,
            "squares": torch.zeros(6).double(),
        }
        kernels.add_clipped(layers, torch.ones(6) > 0, total[:length], scratch, **options)  # type: ignore[arg-type]
        weights = 1 / lines.squares(True, scratch, kind.level).sqrt()
        lines.add(weights, total[length:], scratch, kind.level)
        return total

    expected, found, barrier = work(kernels.Scratch()), [], threading.Barrier(2)

    def loop() -> None:
        scratch = kernels.Scratch()
        barrier.wait()
        found.extend(work(scratch) for _ in range(40))

    threads = [threading.Thread(target=loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(torch.equal(total, expected) for total in found)


@levels
def test_tiles_are_left_as_they_were(level: int) -> None:
    """PyTorch's own products remember how they had set the processor's tiles, and must find them so."""
    torch.manual_seed(0)
    one, other = torch.randn(96, 200).bfloat16(), torch.randn(200, 72).bfloat16()
    short = line(torch.randn(3, 5, 40), torch.randn(3, 5, 40))
    before = one @ other
    assert torch.allclose(before.double(), one.double() @ other.double(), rtol=0.02, atol=0.2)
    for _ in range(3):
        squares_of(short, False, level)
        assert torch.equal(one @ other, before)
        added(short, torch.ones(3, dtype=torch.float64), level)
        assert torch.equal(one @ other, before)
