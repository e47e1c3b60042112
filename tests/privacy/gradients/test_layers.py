"""Every rule gives the gradients that autograd gives for one record at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.privacy.gradients.layers import FALLBACK, Workspace, rule_of
from sfumato.privacy.gradients.tape import Reading
from tests.privacy.gradients.reference import gradients, place, restored


class Positions(nn.Module):
    """Adds a learned vector to each position, and scales by another."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(positions, width))
        self.scale = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x + self.places) * self.scale)


class Around(nn.Module):
    """Has a parameter of its own and a layer inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inside(x)) + self.scale


def check(module: nn.Module, x: Tensor, rows: int, workspace: Workspace | None = None) -> None:
    """The rule's gradients of a random output gradient, against autograd's."""
    g = torch.randn_like(module(x))
    layer, places = place(module)
    rule = rule_of(module)
    with torch.no_grad():
        found = rule.gradients(module, x, g, rows, workspace or Workspace())
    expected = gradients(module, Reading(x, g), rows)
    for key in layer.trained:
        assert found[key].shape == (len(x) // rows, places.slices[key].stop - places.slices[key].start)
        for record, vector in enumerate(found[key]):
            error = (rule.restore(module, key, vector) - expected[key][record]).norm()
            terms = (
                x[record * rows : (record + 1) * rows].double().norm() * g[record * rows : (record + 1) * rows].norm()
            )
            assert error <= 1e-5 * expected[key][record].norm() + 1e-6 * terms, key


many = settings(max_examples=25, deadline=None)
small, rows_ = st.integers(1, 5), st.integers(1, 3)


@many
@given(records=small, rows=rows_, inputs=small, outputs=small, between=st.lists(small, max_size=2), bias=st.booleans())
def test_linear(records: int, rows: int, inputs: int, outputs: int, between: list[int], bias: bool) -> None:
    check(nn.Linear(inputs, outputs, bias=bias), torch.randn(records * rows, *between, inputs), rows)


@many
@given(
    records=small,
    rows=rows_,
    channels=st.tuples(small, small),
    groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    extra=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    bias=st.booleans(),
    last=st.booleans(),
)
def test_convolution(
    records: int,
    rows: int,
    channels: tuple[int, int],
    groups: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    extra: tuple[int, int],
    bias: bool,
    last: bool,
) -> None:
    inputs, outputs = (groups * count for count in channels)
    module = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=bias)
    x = torch.randn(records * rows, inputs, kernel[0] + extra[0], kernel[1] + extra[1])
    check(module, x.contiguous(memory_format=torch.channels_last) if last else x, rows)


@pytest.mark.parametrize(("inputs", "size"), [(1, (1, 1)), (1, (5, 1)), (3, (1, 5)), (3, (5, 1)), (1, (4, 4))])
def test_convolution_where_strides_say_nothing(inputs: int, size: tuple[int, int]) -> None:
    """Dimensions of length 1 have strides of any value, which a view by strides must not trust."""
    module = nn.Conv2d(inputs, 2, (min(size[0], 2), min(size[1], 2)))
    for x in (torch.randn(3, inputs, *size), torch.randn(3, *size, inputs).permute(0, 3, 1, 2)):
        check(module, x, 1)
        check(module, x[:1], 1)


@many
@given(records=small, rows=rows_, tokens=st.integers(1, 3), width=small, length=st.lists(small, max_size=2))
def test_embedding_with_repeated_tokens(records: int, rows: int, tokens: int, width: int, length: list[int]) -> None:
    check(nn.Embedding(tokens, width), torch.randint(tokens, (records * rows, *length)), rows)


@many
@given(
    records=small,
    rows=rows_,
    between=st.lists(small, max_size=2),
    shape=st.lists(st.integers(2, 4), min_size=1, max_size=2),
)
def test_norms_of_the_last_dimensions(records: int, rows: int, between: list[int], shape: list[int]) -> None:
    torch.manual_seed(0)  # norms of two numbers can be ill-conditioned
    x = torch.randn(records * rows, *between, *shape)
    for module in (nn.LayerNorm(shape), nn.LayerNorm(shape, bias=False), nn.RMSNorm(shape), nn.RMSNorm(shape, eps=0.1)):
        nn.init.normal_(module.weight)
        check(module, x, rows)


@many
@given(
    records=small,
    rows=rows_,
    groups=st.integers(1, 3),
    each=st.integers(1, 3),
    size=st.lists(st.integers(2, 4), max_size=2),
)
def test_group_norm(records: int, rows: int, groups: int, each: int, size: list[int]) -> None:
    if each == 1 and not size:
        return  # one value a group: PyTorch refuses
    torch.manual_seed(0)
    module = nn.GroupNorm(groups, groups * each)
    nn.init.normal_(module.weight)
    check(module, torch.randn(records * rows, groups * each, *size), rows)


@settings(max_examples=8, deadline=None)
@given(records=small, rows=rows_)
def test_layers_without_a_rule(records: int, rows: int) -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 2

    x = torch.randn(records * rows, 4, 3)
    for module in (Positions(4, 3), Around(3), nn.Conv1d(4, 2, 2), Own(3, 2), nn.PReLU()):
        assert rule_of(module) is FALLBACK
        check(module, x, rows)


def test_a_layer_without_a_rule_takes_half_precision() -> None:
    """Autocast is over when its gradient is formed, and its inner layers are float32 still."""
    module, x = Around(3), torch.randn(4, 3).bfloat16()
    found = FALLBACK.gradients(module, x, torch.ones(4, 3).bfloat16(), 1, Workspace())
    assert torch.equal(found["scale"], torch.full((4, 1), 3.0))


def test_a_workspace_serves_many_shapes() -> None:
    workspace = Workspace()
    for _ in range(2):
        for size in (4, 6, 4):
            check(nn.Conv2d(2, 3, 3), torch.randn(2, 2, size, size), 1, workspace)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Linear(3, 4), (5, 2, 3)),
        (nn.Conv2d(4, 6, 3, padding=1), (5, 4, 5, 5)),
        (nn.Conv2d(4, 6, 3, groups=2), (5, 4, 5, 5)),
        (nn.Embedding(3, 4), (5, 6)),
        (nn.LayerNorm(4), (5, 3, 4)),
        (nn.RMSNorm(4), (5, 3, 4)),
        (nn.GroupNorm(2, 4), (5, 4, 3)),
        (Positions(4, 3), (5, 4, 3)),
        (nn.Conv1d(4, 6, 3), (5, 4, 7)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_broken_record_moves_no_bit_of_another(module: nn.Module, shape: tuple[int, ...], bad: float) -> None:
    torch.manual_seed(0)
    x = torch.randint(3, shape) if isinstance(module, nn.Embedding) else torch.randn(shape)
    g = torch.randn_like(module(x)).detach()
    before = rule_of(module).gradients(module, x, g, 1, Workspace())
    x, g = x.clone(), g.clone()
    if x.is_floating_point():
        x[3] = bad
    g[3] = bad
    after = rule_of(module).gradients(module, x, g, 1, Workspace())
    others = torch.arange(5) != 3
    for key, value in before.items():
        assert torch.equal(value[others], after[key][others])
        assert not torch.equal(value[3], after[key][3])


def test_tensors_of_any_layout() -> None:
    """Transposed inputs and output gradients, as attention and PyTorch's own layouts leave them."""
    for module, x in (
        (nn.Linear(3, 4), torch.randn(3, 5, 4).transpose(0, 2)),
        (nn.LayerNorm(3), torch.randn(3, 5, 4).transpose(0, 2)),
        (nn.GroupNorm(2, 4), torch.randn(3, 5, 4, 2).permute(3, 2, 1, 0)),
        (nn.Embedding(5, 3), torch.randint(5, (6, 4)).T),
    ):
        check(module, x, 2)
    module = nn.Linear(3, 4)
    layer, places = place(module)
    x, g = torch.randn(4, 5, 3), torch.randn(1, 1, 4).expand(4, 5, 4)
    found = rule_of(module).gradients(module, x, g, 1, Workspace())
    vector = torch.cat([found[key] for key in layer.trained], 1)[2]
    for key, value in restored(module, places, vector).items():
        assert torch.allclose(value.double(), gradients(module, Reading(x, g), 1)[key][2], rtol=1e-5, atol=1e-6)
