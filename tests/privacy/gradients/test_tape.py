"""Which models are refused, and when: structure first, then what a pass shows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import PrivacyRefusal, UserError
from sfumato.nets.diffusion import Denoiser
from sfumato.nets.transformer import GPT, PatchTransformer, TransformerShape
from sfumato.nets.unet import UNet, UNetShape
from sfumato.privacy.gradients.engine import ClippedGradients, Clipping
from sfumato.privacy.gradients.tape import Reading, taped, trained_layers

FLAT = Clipping(0.3, "flat")


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), PrivacyRefusal, "over the batch"),
        (nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1)), PrivacyRefusal, "over the batch"),
        (nn.Sequential(nn.Linear(3, 1), nn.BatchNorm1d(1).requires_grad_(False)), PrivacyRefusal, "over the batch"),
        (tied(), PrivacyRefusal, "share"),
        (nn.Sequential(nn.Embedding(4, 3, max_norm=1.0)), UserError, "norm limit"),
        (nn.Sequential(nn.Embedding(4, 3, padding_idx=0)), UserError, "padding index"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2)), UserError, "dilation"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding="same")), UserError, "padding"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), UserError, "padding"),
        (old_weight_norm(), UserError, "besides weight and bias"),
        (nn.Sequential(nn.LazyLinear(3)), UserError, "no shape yet"),
        (nn.Sequential(nn.ReLU()), UserError, "no trained parameter"),
        (nn.Sequential(nn.Linear(3, 3).requires_grad_(False)), UserError, "no trained parameter"),
    ],
)
def test_structures_that_are_refused(model: nn.Module, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        trained_layers(model)


class Trial(nn.Module):
    """Two linear layers around `between`, on rows of three numbers."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x))).square().sum(1)


class Twice(Trial):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.first(x)).sum(1)


class InPlace(Trial):
    def __init__(self) -> None:
        super().__init__(torch.tanh)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.lerp_(x.mean(0), 0.1)
        return super().forward(x - self.mean)


class Replaced(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return Trial.forward(self, x - self.mean)


class Registered(InPlace):
    def forward(self, x: Tensor) -> Tensor:
        self.register_buffer("seen", x.mean(0))
        return Trial.forward(self, x)


class Parameter(Trial):
    """Keeps its running mean in a frozen parameter."""

    def __init__(self) -> None:
        super().__init__(torch.tanh)
        self.mean = nn.Parameter(torch.zeros(3), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean += x.mean(0)
        return super().forward(x)


class Unused(Trial):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(x).sum(1)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * self.scale + y


class TwoInputs(Trial):
    def __init__(self, by_name: bool = False) -> None:
        super().__init__(torch.tanh)
        self.inner, self.by_name = Inner(), by_name

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.inner(x, y=x) if self.by_name else self.inner(x, x))


class TwoOutputs(Trial):
    def __init__(self) -> None:
        super().__init__(torch.tanh)
        self.memory = nn.GRU(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.memory(x)[0])


class Positions(nn.Module):
    """Looks positions up once for all rows, as most transformers do."""

    def __init__(self, positions: int, leading: bool = False) -> None:
        super().__init__()
        self.places, self.last = nn.Embedding(positions, 3), nn.Linear(3, 2)
        self.leading = leading

    def forward(self, x: Tensor) -> Tensor:
        numbers = torch.arange(x.shape[1])
        return self.last(x + self.places(numbers[None] if self.leading else numbers)).square().sum((1, 2))


class Constant(Trial):
    """Maps a constant by a trained layer, and shows the result to every row."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.last(torch.tanh(self.first(torch.ones(1, 3)))) * x[:, :2]).sum(1)


class Overwriting(Trial):
    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) * 1
        result = self.last(h)
        h += 1
        return result.sum(1) + h.sum(1)


rows = 8


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (Twice(torch.tanh), PrivacyRefusal, "twice"),
        (InPlace(), PrivacyRefusal, "'mean' changed in forward"),
        (Replaced(), PrivacyRefusal, "'mean' changed in forward"),
        (Registered(), PrivacyRefusal, "'seen' changed in forward"),
        (Parameter(), PrivacyRefusal, "'mean' changed in forward"),
        (Unused(torch.tanh), UserError, "'last' took no part"),
        (TwoInputs(), UserError, "'inner'.*one tensor to one tensor"),
        (TwoInputs(by_name=True), UserError, "'inner'.*one tensor to one tensor"),
        (TwoOutputs(), UserError, "'memory'.*one tensor to one tensor"),
        (Overwriting(torch.tanh), UserError, "input of layer 'last' was overwritten"),
        (Constant(torch.tanh), UserError, "something for each row"),
        (Trial(torch.relu_), UserError, "first trained layer is overwritten in place"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_faults_that_a_pass_shows(model: nn.Module, error: type, message: str) -> None:
    engine = ClippedGradients(model, FLAT, rows=1)
    with pytest.raises(error, match=message):
        engine.add(lambda: model(torch.randn(rows, 3)), torch.ones(rows, dtype=torch.bool))
    assert all(value.requires_grad for name, value in model.named_parameters() if name != "mean")
    assert not any(module._forward_hooks for module in model.modules())
    assert float(engine.total.norm()) == 0


def test_parameters_of_a_caller_are_refused_where_they_have_no_layer() -> None:
    """A layer whose weight is used around it, as in heads tied by a product."""

    class Around(Trial):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.tanh(self.first(x)), self.last.weight).sum(1)

    model = Around(torch.tanh)
    with pytest.raises(PrivacyRefusal, match="'last' is used outside"):
        ClippedGradients(model, FLAT, rows=1).add(lambda: model(torch.randn(rows, 3)), torch.ones(rows) > 0)


class Tied(nn.Module):
    """A head by the embedding's weight, which is called as a layer too; or a penalty on it."""

    def __init__(self, penalty: bool) -> None:
        super().__init__()
        self.words, self.penalty = nn.Embedding(5, 3), penalty

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.words(tokens)
        if self.penalty:
            return h.sum((1, 2)) + self.words.weight.square().sum()
        return F.linear(h, self.words.weight).square().sum((1, 2))


@pytest.mark.parametrize("penalty", [False, True])
def test_a_weight_that_is_used_outside_its_layer_is_refused(penalty: bool) -> None:
    model, tokens = Tied(penalty), torch.randint(5, (rows, 4))
    with pytest.raises(PrivacyRefusal, match="'weight' of layer 'words' is used outside"):
        ClippedGradients(model, FLAT, rows=1).add(lambda: model(tokens), torch.ones(rows) > 0)
    assert not model.words._forward_hooks


def test_outputs_that_are_overwritten_are_no_reason_to_refuse() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2), nn.ReLU(inplace=True))
    ClippedGradients(model, FLAT, rows=1).add(lambda: model(torch.randn(rows, 3)).sum(1), torch.ones(rows) > 0)


def test_dropout_at_work_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    with pytest.raises(PrivacyRefusal, match="one generator for all records"):
        trained_layers(model)
    assert len(trained_layers(model.eval())) == 1
    model[1].p = 0.0
    assert len(trained_layers(model.train())) == 1


def test_state_that_is_written_past_autograd_is_seen() -> None:
    class Past(Trial):
        def __init__(self) -> None:
            super().__init__(torch.tanh)
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("seen").data.lerp_(x.detach().mean(0), 0.1)
            return super().forward(x)

    model = Past()
    with pytest.raises(PrivacyRefusal, match="'seen' changed in forward"):
        ClippedGradients(model, FLAT, rows=1).add(lambda: model(torch.randn(rows, 3)), torch.ones(rows) > 0)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (Positions(5), 5),
        (Positions(5, leading=True), 5),
        (Positions(rows), rows),  # as many positions as rows: nothing but a gradient tells them apart
    ],
)
def test_positions_looked_up_for_all_rows_at_once(model: nn.Module, size: int) -> None:
    engine = ClippedGradients(model, FLAT, rows=1)
    with pytest.raises((UserError, PrivacyRefusal), match=r"each row|Records meet"):
        engine.add(lambda: model(torch.randn(rows, size, 3)), torch.ones(rows, dtype=torch.bool))


def partner(distance: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x + 0.1 * x.roll(distance, 0)


def in_pairs(x: Tensor) -> Tensor:
    return torch.cat((x[0::2] + x[1::2], x[1::2]), 1).reshape(-1, 3)


@pytest.mark.parametrize("records", [2, 4, 8, 12])
@pytest.mark.parametrize(
    "between",
    [
        lambda x: x - x.mean(0),
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: (x @ x.T).softmax(1) @ x,
        lambda x: x / x.norm(),
        lambda x: x.cumsum(0),
        lambda x: x.flip(0).cumsum(0),
        partner(1),
        partner(2),
        partner(-1),
        partner(4),
        in_pairs,
    ],
)
def test_records_that_meet_are_refused(between: Callable[[Tensor], Tensor], records: int) -> None:
    if records == 4 and torch.equal(between(torch.eye(4)[:, :3]), partner(4)(torch.eye(4)[:, :3])):
        records = 8  # a roll by all four is none
    if records == 2 and torch.allclose(between(torch.eye(3)[:2]), 1.1 * torch.eye(3)[:2]):
        records = 8
    model = Trial(between)
    engine = ClippedGradients(model, FLAT, rows=1)
    with pytest.raises(PrivacyRefusal, match="Records meet"):
        engine.add(lambda: model(torch.randn(records, 3)), torch.ones(records, dtype=torch.bool))


def test_meetings_are_seen_behind_weights_that_are_still_zero() -> None:
    model = Trial(lambda x: x - x.mean(0))
    nn.init.zeros_(model.last.weight)
    with pytest.raises(PrivacyRefusal, match="Records meet"):
        ClippedGradients(model, FLAT, rows=2).add(lambda: model(torch.randn(8, 3)), torch.ones(4) > 0)


def test_a_loss_over_the_batch_is_refused() -> None:
    model = Trial(torch.tanh)
    with pytest.raises(PrivacyRefusal, match="Records meet"):
        ClippedGradients(model, FLAT, rows=1).add(lambda: model(torch.randn(8, 3)).softmax(0), torch.ones(8) > 0)


def test_rows_of_one_record_may_meet() -> None:
    """A record is clipped as a whole, whatever its rows do with each other."""
    model = Trial(lambda x: (x.view(4, 2, 3) - x.view(4, 2, 3).mean(1, keepdim=True)).flatten(0, 1))
    ClippedGradients(model, FLAT, rows=2).add(lambda: model(torch.randn(8, 3)), torch.ones(4) > 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
def test_broken_records_are_no_reason_to_refuse(bad: float) -> None:
    """A refusal that hangs on one record would tell about it."""
    model, x = Trial(torch.tanh), torch.randn(8, 3)
    x[5] = bad
    ClippedGradients(model, FLAT, rows=1).add(lambda: model(x) * x.sum(1), torch.ones(8) > 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_networks_of_this_package_are_accepted(precision: str) -> None:
    x, labels = torch.randn(8, 4, 8, 8), torch.arange(8) % 3
    unet = UNet(UNetShape(4, 0, 3, (8, 8), (2, 2)))
    patches = PatchTransformer(4, 2, TransformerShape(16, 1, 2, 16))
    gpt, tokens = GPT(9, TransformerShape(16, 2, 2, 8)), torch.randint(9, (8, 9))
    level = torch.rand(8) + 0.1
    cases: list[tuple[nn.Module, Callable[[], Tensor]]] = [
        (unet, lambda: Denoiser(unet, 0.5).loss(x, x, level, labels, None)),
        (patches, lambda: patches(x).square().mean((1, 2, 3))),
        (gpt, lambda: gpt.losses(tokens)),
    ]
    for model, losses in cases:
        ClippedGradients(model, FLAT, rows=2, precision=precision).add(losses, torch.ones(4) > 0)  # type: ignore[arg-type]


def test_what_is_read() -> None:
    """Activations as they were, output gradients of the sum; nothing by the parameters themselves."""
    model, x = Trial(torch.tanh), torch.randn(rows, 3)
    layers = trained_layers(model)
    with taped(model, layers, rows) as readings:
        model(x).sum().backward()
    assert readings.keys() == {"first", "last"}
    assert torch.equal(readings["first"].activation, x)
    h = model.first(x).detach().requires_grad_()
    model.last(torch.tanh(h)).square().sum().backward()
    assert isinstance(readings["last"], Reading)
    assert torch.allclose(readings["first"].gradient, h.grad)  # type: ignore[arg-type]
    assert all(parameter.grad is None for parameter in [model.first.weight, model.first.bias])
