"""Clipped gradient sums: equal to a loop over single records, bounded for every record, blind to broken ones."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sfumato.errors import InternalError, PrivacyRefusal, UserError
from sfumato.nets.diffusion import Denoiser
from sfumato.nets.unet import UNet, UNetShape
from sfumato.privacy.gradients.engine import ClippedGradients, Clipping, rounding_slack

FLAT = Clipping(0.3, "flat")
SLACK = rounding_slack(64)


def summed(engine: ClippedGradients, losses: Callable[[], Tensor], present: Tensor) -> dict[str, Tensor]:
    engine.reset()
    engine.add(losses, present)
    return engine.shaped(engine.total)


def loop(model: nn.Module, losses: Callable[[slice], Tensor], records: int, rows: int, clipping: Clipping) -> dict:  # type: ignore[type-arg]
    """The definition: one backward pass per record, clipped, added in double precision."""
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters() if p.requires_grad}
    for record in range(records):
        model.zero_grad()
        losses(slice(record * rows, (record + 1) * rows)).mean().backward()
        grads = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
        norm = torch.sqrt(sum(g.square().sum() for g in grads.values()))  # type: ignore[arg-type]
        for name, gradient in grads.items():
            total[name] += gradient * clipping.weights(norm)
    model.zero_grad()
    return total


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    difference = math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in other))
    return difference / math.sqrt(sum(float(value.square().sum()) for value in other.values()))


def norm_of(vectors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(vector.square().sum()) for vector in vectors.values()))


class Small(nn.Module):
    """Every rule in one model: convolutions with stride, padding and 1x1 kernels, linear layers on tokens and rows."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(5, 4, (2, 3), stride=(2, 1), padding=(0, 1))
        self.third = nn.Conv2d(4, 3, 1)
        self.token = nn.Linear(3, 6, bias=bias)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = self.third(torch.tanh(self.second(h)))
        h = torch.tanh(self.token(h.flatten(2).transpose(1, 2)))
        return self.last(h.mean(1)).square().sum(1)


@settings(max_examples=25, deadline=None)
@given(
    records=st.integers(1, 5),
    rows=st.integers(1, 4),
    size=st.integers(2, 6),
    bias=st.booleans(),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("clipping", [FLAT, Clipping(2.0, "automatic")])
def test_matches_a_loop(records: int, rows: int, size: int, bias: bool, seed: int, clipping: Clipping) -> None:
    torch.manual_seed(seed)
    model, x = Small(bias), torch.randn(records * rows, 2, 2 * size, size + 2)
    engine = ClippedGradients(model, clipping, rows=rows)
    found = summed(engine, lambda: model(x), torch.ones(records, dtype=torch.bool))
    assert distance(found, loop(model, lambda part: model(x[part]), records, rows, clipping)) < 1e-5


@pytest.fixture(scope="module")
def unet() -> tuple[UNet, Callable[[slice], Tensor]]:
    torch.manual_seed(0)
    model = UNet(UNetShape(4, 4, 10, (16, 24), (2, 2))).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.08)
    clean, normal, guide = torch.randn(3, 24, 4, 14, 14)
    level, labels = torch.rand(24) + 0.1, torch.arange(24) % 10
    denoiser = Denoiser(model, 0.5)

    def losses(part: slice) -> Tensor:
        return denoiser.loss(clean[part], normal[part], level[part], labels[part], guide[part])

    return model, losses


@pytest.mark.parametrize("rows", [1, 4])
def test_matches_a_loop_on_the_whole_unet(unet: tuple[UNet, Callable[[slice], Tensor]], rows: int) -> None:
    model, losses = unet
    engine = ClippedGradients(model, FLAT, rows=rows)
    found = summed(engine, lambda: losses(slice(24)), torch.ones(24 // rows, dtype=torch.bool))
    assert distance(found, loop(model, losses, 24 // rows, rows, FLAT)) < 1e-5


def test_bf16_stays_near_and_inside_the_ball(unet: tuple[UNet, Callable[[slice], Tensor]]) -> None:
    model, losses = unet
    engine = ClippedGradients(model, FLAT, rows=1, precision="bf16")
    found = summed(engine, lambda: losses(slice(24)), torch.ones(24, dtype=torch.bool))
    assert distance(found, loop(model, losses, 24, 1, FLAT)) < 0.05
    for record in range(24):
        only = torch.arange(24) == record
        assert norm_of(summed(engine, lambda: losses(slice(24)), only)) <= FLAT.clip_norm


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["flat", "automatic"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6, 1e18])
def test_no_record_passes_the_clip_norm(precision: str, kind: str, scale: float) -> None:
    """Alternating signs and near-duplicate tokens, on which low-precision Gram matrices lose the norm."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    tokens = torch.ones(1, 64, 8) + 1e-3 * torch.randn(1, 64, 8)
    signs = torch.where(torch.arange(64) % 2 == 0, 1.0, -1.0)[None, :, None]
    engine = ClippedGradients(model, Clipping(1.0, kind), rows=1, precision=precision)  # type: ignore[arg-type]
    for weight in (signs, torch.ones_like(signs), signs + 1e-3 * torch.randn(1, 64, 8)):
        found = summed(engine, lambda weight=weight: (model(tokens) * weight * scale).sum((1, 2)), torch.tensor([True]))
        assert norm_of(found) <= 1
        if 1 <= scale < 1e18 and kind == "flat" and bool((weight == 1).all()):
            assert norm_of(found) > 0.999  # the bound is met, not merely kept


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_broken_record_adds_nothing_and_changes_no_other(bad: float, precision: str) -> None:
    torch.manual_seed(3)
    model, x = Small(), torch.randn(6, 2, 8, 6)
    engine = ClippedGradients(model, FLAT, rows=1, precision=precision)  # type: ignore[arg-type]
    everyone = torch.ones(6, dtype=torch.bool)
    without = summed(engine, lambda: model(x), everyone & (torch.arange(6) != 2))
    broken = x.clone()
    broken[2, 1, 3, 3] = bad
    found = summed(engine, lambda: model(broken) if abs(bad) != 1e38 else model(broken) * 1e38, everyone)
    if abs(bad) == 1e38:
        without = summed(engine, lambda: model(x) * 1e38, everyone & (torch.arange(6) != 2))
        found = summed(engine, lambda: model(x) * torch.where(torch.arange(6) == 2, math.inf, 1e38), everyone)
    assert all(torch.equal(found[name], without[name]) for name in found)
    spoilt = summed(engine, lambda: model(x) + torch.where(torch.arange(6) == 2, bad * 1e300, 0.0), everyone)
    kept = summed(engine, lambda: model(x), everyone & (torch.arange(6) != 2))
    assert all(torch.equal(spoilt[name], kept[name]) for name in kept)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_record_does_not_move_another(unet: tuple[UNet, Callable[[slice], Tensor]], precision: str) -> None:
    model, _ = unet
    torch.manual_seed(1)
    clean, normal, guide = torch.randn(3, 16, 4, 14, 14)
    level, labels = torch.rand(16) + 0.1, torch.arange(16) % 10
    denoiser = Denoiser(model, 0.5)
    engine = ClippedGradients(model, FLAT, rows=1, precision=precision)  # type: ignore[arg-type]

    def of_record_five(order: Tensor) -> dict[str, Tensor]:
        only = order == 5
        return summed(
            engine,
            lambda: denoiser.loss(clean[order], normal[order], level[order], labels[order], guide[order]),
            only,
        )

    first = of_record_five(torch.arange(16))
    clean[9] *= 50
    labels[3] = 7
    assert all(torch.equal(value, first[name]) for name, value in of_record_five(torch.arange(16)).items())
    moved = of_record_five(torch.arange(16).roll(3))
    assert distance(moved, first) < 1e-6


def test_fillers_and_empty_chunks_add_nothing() -> None:
    torch.manual_seed(0)
    model, x = Small(), torch.randn(4, 2, 8, 6)
    engine = ClippedGradients(model, FLAT, rows=2)
    assert norm_of(summed(engine, lambda: model(x), torch.zeros(2, dtype=torch.bool))) == 0
    half = summed(engine, lambda: model(x), torch.tensor([True, False]))
    assert distance(half, loop(model, lambda part: model(x[part]), 1, 2, FLAT)) < 1e-5


def test_frozen_layers_are_left_out_and_parameters_come_back_trainable() -> None:
    model, x = Small(), torch.randn(4, 2, 8, 6)
    model.first.requires_grad_(False)
    engine = ClippedGradients(model, FLAT, rows=1)
    found = summed(engine, lambda: model(x), torch.ones(4, dtype=torch.bool))
    assert "first.weight" not in found
    assert distance(found, loop(model, lambda part: model(x[part]), 4, 1, FLAT)) < 1e-5
    assert model.last.weight.requires_grad
    assert model.last.weight.grad is None


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x)).sum(1)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.lerp_(x.mean(), 0.1)
        return (self.layer(x) - self.mean)[:, 0]


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), PrivacyRefusal, "over the batch"),
        (nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1)), PrivacyRefusal, "over the batch"),
        (tied(), PrivacyRefusal, "share"),
        (nn.Sequential(nn.Embedding(4, 3)), UserError, "no per-record gradient rule"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), UserError, "groups"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding="same")), UserError, "padding"),
        (nn.Sequential(nn.ReLU()), UserError, "no trained parameter"),
    ],
)
def test_models_that_would_break_the_bound_are_refused(model: nn.Module, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        ClippedGradients(model, FLAT, rows=1)


@pytest.mark.parametrize(("model", "message"), [(Twice(), "twice"), (Counting(), "changed in forward")])
def test_faults_that_only_a_pass_shows_are_refused(model: nn.Module, message: str) -> None:
    engine = ClippedGradients(model, FLAT, rows=1)
    with pytest.raises(PrivacyRefusal, match=message):
        engine.add(lambda: model(torch.randn(4, 3)), torch.ones(4, dtype=torch.bool))


def test_a_mean_loss_is_refused() -> None:
    model = Small()
    engine = ClippedGradients(model, FLAT, rows=1)
    with pytest.raises(InternalError, match="per row"):
        engine.add(lambda: model(torch.randn(4, 2, 8, 6)).mean(), torch.ones(4, dtype=torch.bool))


def test_clipping_weights() -> None:
    norms = torch.tensor([0.0, 1e-30, 0.3, 5.0, 1e300], dtype=torch.float64)
    for clipping in (FLAT, Clipping(0.3, "automatic")):
        assert (clipping.weights(norms) * norms <= 0.3 * (1 + 1e-15)).all()
    assert FLAT.weights(norms)[:3].tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(UserError):
        ClippedGradients(Small(), Clipping(0.0), rows=1)


@pytest.mark.parametrize("slack", [0.0, SLACK, 1.0])
def test_single_and_double_precision_sums_agree_within_the_slack(slack: float) -> None:
    torch.manual_seed(0)
    model, x = Small(), torch.randn(64, 2, 8, 6)
    engine = ClippedGradients(model, FLAT, rows=1, slack=slack)
    found = summed(engine, lambda: model(x), torch.ones(64, dtype=torch.bool))
    exact = loop(model, lambda part: model(x[part]), 64, 1, FLAT)
    difference = {name: found[name] - exact[name] for name in exact}
    assert norm_of(difference) <= FLAT.clip_norm * max(SLACK, 64 * 1e-5)


def test_beyond_the_slack_sums_are_double() -> None:
    """Records that cancel: in float32 the small third is lost, in float64 it is not."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    x = torch.tensor([[1.0], [-1.0], [1e-9], [0.0]])
    results = []
    for slack in (0.0, SLACK):
        engine = ClippedGradients(model, Clipping(1.0, "flat"), rows=1, slack=slack)
        results.append(float(summed(engine, lambda: model(x)[:, 0], torch.ones(4, dtype=torch.bool))["0.weight"]))
    assert results[0] == pytest.approx(1e-9, rel=1e-3)
    assert rounding_slack(64) < rounding_slack(4096) < 3e-3


def test_reduced_matrix_precision_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    with pytest.raises(UserError, match="highest"):
        ClippedGradients(Small(), FLAT, rows=1)
