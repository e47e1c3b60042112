"""Measuring and adding, by either way: equal where it matters, and never below what is added."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.privacy.gradients import contributions
from sfumato.privacy.gradients.contributions import Ghost, Instantiated, choose
from sfumato.privacy.gradients.layers import Workspace
from sfumato.privacy.gradients.tape import Reading
from tests.privacy.gradients.reference import gradients, place, restored

WAYS = ("ghost", "instantiate")


def contribution(way: str, module: nn.Module, reading: Reading, rows: int) -> tuple[Ghost | Instantiated, int]:
    """One layer's part, and the length of its gradient."""
    layer, places = place(module)
    if way == "ghost":
        return Ghost(layer, reading, rows, places, Workspace()), places.whole.stop
    return Instantiated(layer, reading, rows, places, Workspace()), places.whole.stop


def check(way: str, module: nn.Module, x: Tensor, rows: int) -> None:
    """Squares and a weighted sum, against autograd record by record."""
    reading = Reading(x, torch.randn_like(module(x)).detach())
    part, length = contribution(way, module, reading, rows)
    expected = gradients(module, reading, rows)
    trained = place(module)[0].trained
    squares = torch.stack([expected[key].flatten(1).square().sum(1) for key in trained]).sum(0)
    sizes = [value.double().view(len(x) // rows, -1).norm(dim=1) for value in (x, reading.gradient)]
    assert ((part.squares() - squares).abs() <= 1e-5 * squares + 1e-7 * (1 + sizes[0] ** 2) * sizes[1] ** 2).all()
    weights = torch.rand(len(x) // rows, dtype=torch.float64)
    weights[0] = 0
    start = torch.randn(length, dtype=torch.float64)
    total = start.clone()
    part.add(weights, total)
    sums = restored(module, place(module)[1], total - start)
    for key in trained:
        right = torch.tensordot(weights, expected[key], 1)
        terms = float((weights * (1 + sizes[0]) * sizes[1]).sum())
        assert (sums[key] - right).norm() <= 1e-5 * right.norm() + 1e-6 * terms


small, rows_ = st.integers(1, 5), st.integers(1, 3)
many = settings(max_examples=20, deadline=None)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_which_a_cache_holds_few(way: str) -> None:
    """They are measured and added one after the other; five records, so that parts differ."""
    check(way, nn.Linear(300, 300), torch.randn(5, 300), 1)
    check(way, nn.Linear(150, 150), torch.randn(10, 150), 2)


@pytest.mark.parametrize("way", WAYS)
@many
@given(records=small, rows=rows_, inputs=small, outputs=small, between=st.lists(small, max_size=2), bias=st.booleans())
def test_linear(way: str, records: int, rows: int, inputs: int, outputs: int, between: list[int], bias: bool) -> None:
    check(way, nn.Linear(inputs, outputs, bias=bias), torch.randn(records * rows, *between, inputs), rows)


@pytest.mark.parametrize("way", WAYS)
@many
@given(records=small, rows=rows_, stride=rows_, padding=st.integers(0, 2), size=st.integers(3, 5), bias=st.booleans())
def test_convolution(way: str, records: int, rows: int, stride: int, padding: int, size: int, bias: bool) -> None:
    module = nn.Conv2d(2, 3, (3, 2), stride, padding, bias=bias)
    check(way, module, torch.randn(records * rows, 2, size, size), rows)


@pytest.mark.parametrize("way", WAYS)
@many
@given(records=small, rows=rows_, tokens=small, width=small, length=st.lists(small, max_size=2))
def test_embedding(way: str, records: int, rows: int, tokens: int, width: int, length: list[int]) -> None:
    check(way, nn.Embedding(tokens, width), torch.randint(tokens, (records * rows, *length)), rows)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_half_trained_layers(way: str, frozen: str) -> None:
    for module, x in ((nn.Linear(3, 4), torch.randn(4, 5, 3)), (nn.Conv2d(2, 3, 2), torch.randn(4, 2, 3, 3))):
        module.get_parameter(frozen).requires_grad_(False)
        reading = Reading(x, torch.randn_like(module(x)).detach())
        part, length = contribution(way, module, reading, 2)
        assert length == module.get_parameter("bias" if frozen == "weight" else "weight").numel()
        total = torch.zeros(length, dtype=torch.float64)
        measured = float(part.squares()[0])
        part.add(torch.tensor([1.0, 0.0], dtype=torch.float64), total)
        added = float(total.square().sum())
        inputs, outputs = (float(value[:2].double().square().sum()) for value in reading)
        # Never measured as less than is added; as more only by the ghost's floor, which shows where positions cancel.
        assert added <= measured * (1 + 1e-12)
        assert measured <= added * (1 + 1e-6) + 1e-7 * (1 + inputs) * outputs


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("keep", [0, 2**28])
def test_weight_zero_is_not_read(way: str, bad: float, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contributions, "KEEP", keep)
    torch.manual_seed(0)
    for module, x in (
        (nn.Linear(3, 4), torch.randn(5, 6, 3)),
        (nn.Conv2d(2, 3, 2), torch.randn(5, 2, 3, 3)),
        (nn.Embedding(3, 4), torch.randint(3, (5, 6))),
    ):
        g = torch.randn_like(module(x)).detach()
        totals = []
        for value in (0.0, bad):
            if x.is_floating_point():
                x[3] = value
            g[3] = value
            part, length = contribution(way, module, Reading(x, g), 1)
            total, squares = torch.zeros(length, dtype=torch.float64), part.squares()
            assert not value or not squares[3] < 1e70
            part.add((torch.arange(5) != 3).double(), total)
            totals.append((total, squares[torch.arange(5) != 3]))
        for one, other in zip(*totals, strict=True):
            assert one.isfinite().all()
            assert torch.equal(one, other)


def attacks(positions: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and output gradients whose products cancel, `(1, positions, width)` each."""
    signs = torch.where(torch.arange(positions) % 2 == 0, 1.0, -1.0)[None, :, None]
    token = torch.randn(1, 1, width)
    near = token * (1 + 2.0**-23 * torch.randint(0, 3, (1, positions, width)))
    back = torch.randn(1, 1, width)
    wide = torch.randn(1, positions, width)
    return [
        (near, signs * back),
        (token.expand(1, positions, width), signs * back),
        (wide - wide.flip(1), torch.ones(1, positions, width)),
        (near * signs, back * (1 + 2.0**-22 * torch.randn(1, positions, width))),
    ]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e8, 1e15, 1e30])
@pytest.mark.parametrize("way", WAYS)
def test_no_norm_is_below_what_is_added(way: str, scale: float) -> None:
    """Double precision alone would not do: a squared norm 2^-53 of its terms is rounding, and may come out as zero."""
    torch.manual_seed(0)
    for positions in (2, 4, 64, 256):
        for a, g in attacks(positions, 8):
            for module in (nn.Linear(8, 8), nn.Linear(8, 8, bias=False)):
                part, length = contribution(way, module, Reading(a, g * scale), 1)
                norm = float(part.squares()[0].sqrt()) * (1 + 1e-9)
                total = torch.zeros(length, dtype=torch.float64)
                part.add(torch.ones(1, dtype=torch.float64), total)
                assert float(total.norm()) <= norm
    tokens, g = torch.zeros(1, 64, dtype=torch.long), attacks(64, 8)[0][1] * scale
    part, length = contribution(way, nn.Embedding(3, 8), Reading(tokens, g * (1 + 1e-7 * torch.randn(1, 64, 8))), 1)
    total, norm = torch.zeros(length, dtype=torch.float64), float(part.squares()[0].sqrt()) * (1 + 1e-9)
    part.add(torch.ones(1, dtype=torch.float64), total)
    assert float(total.norm()) <= norm


def test_the_floor_of_a_ghost_costs_nothing_on_ordinary_inputs() -> None:
    torch.manual_seed(0)
    reading = Reading(torch.randn(4, 256, 32), torch.randn(4, 256, 32))
    ghost, formed = (contribution(way, nn.Linear(32, 32), reading, 1)[0].squares() for way in WAYS)
    assert torch.allclose(ghost, formed, rtol=1e-5)


def test_what_is_kept_is_bounded_for_all_layers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contributions, "KEEP", 3 * 4 * 20 * 2)
    workspace, module = Workspace(), nn.Linear(4, 5, bias=False)
    layer, places = place(module)
    reading = Reading(torch.randn(3, 4), torch.randn(3, 5))
    parts = [Instantiated(layer, reading, 1, places, workspace) for _ in range(4)]
    squares = [part.squares() for part in parts]
    assert [part._held is not None for part in parts] == [True, True, False, False]
    totals = [torch.zeros(20, dtype=torch.float64) for _ in parts]
    for part, total in zip(parts, totals, strict=True):
        part.add(torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64), total)
    assert all(torch.equal(total, totals[0]) for total in totals)
    assert all(torch.equal(square, squares[0]) for square in squares)


@pytest.mark.parametrize(
    ("module", "shape", "before", "after"),
    [
        # ghost: T^2 (d + p); instantiate: (T + 8) d p
        (nn.Linear(64, 64), lambda t: (1, t, 64), 38, 39),
        (nn.Linear(16, 512), lambda t: (1, t, 16), 21, 22),
        (nn.Conv2d(32, 64, (1, 1)), lambda t: (1, 32, 1, t), 27, 28),
        (nn.Conv2d(8, 8, (1, 3), padding=(0, 1)), lambda t: (1, 8, 1, t), 10, 11),
        # ghost: T^2 d; instantiate: 8 V d
        (nn.Embedding(200, 8), lambda t: (1, t), 39, 40),
    ],
)
def test_the_choice_turns_where_the_costs_cross(module: nn.Module, shape: object, before: int, after: int) -> None:
    for positions, way in ((before, "ghost"), (after, "instantiate")):
        for rows in (1, 2):
            size = shape(positions)  # type: ignore[operator]
            x = torch.zeros(size, dtype=torch.long) if isinstance(module, nn.Embedding) else torch.zeros(size)
            choice = choose(module, Reading(x, module(x)), rows)
            if rows == 1:
                assert choice.way == way
            assert (choice.way == "ghost") == (choice.ghost < choice.instantiate)
    assert choice.way == "instantiate"  # two rows have twice the positions


def test_layers_that_have_no_ghost_are_instantiated() -> None:
    for module, x in (
        (nn.LayerNorm(4), torch.zeros(1, 2, 4)),
        (nn.Conv2d(4, 4, 1, groups=2), torch.zeros(1, 4, 1, 1)),
        (nn.Conv1d(4, 4, 1), torch.zeros(1, 4, 1)),
    ):
        assert choose(module, Reading(x, module(x)), 1).way == "instantiate"
