"""The compiled kernels against double-precision products of the same bfloat16 values, on inputs made to break them."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfumato.privacy.gradients import kernels
from sfumato.privacy.gradients.kernels import Convolution
from tests.privacy.gradients.kernel_cases import (
    LEVELS,
    Guarded,
    Kind,
    a_pair_of_layers,
    added,
    kinds,
    levels,
    line,
    odd,
    pairs,
    squares_of,
)


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
