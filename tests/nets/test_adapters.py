"""Trained sets: what moves and what does not, adapters that begin as nothing, and private gradients of them."""

from __future__ import annotations

import copy
import warnings
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor, nn

from sfumato.hardware import choose_hardware
from sfumato.nets.adapters import LowRank, Shifted, Trained, merge, select, trained_parameters
from sfumato.nets.autoregressive import Condition, ScaleGPT
from sfumato.nets.transformer import TransformerShape
from sfumato.privacy.gradients.engine import ClippedGradients, Clipping

SHAPE = TransformerShape(width=16, layers=2, heads=4)
SETS: tuple[Trained, ...] = get_args(Trained)
LABELS = torch.tensor([0, 1, 2, -1, 1])


def model(trained: Trained, condition: Condition = Condition("class", 3)) -> ScaleGPT:  # noqa: B008
    torch.manual_seed(0)
    made = ScaleGPT(12, 1, 8, SHAPE, condition)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    select(made, trained, 4)
    return made


def moved(made: nn.Module) -> nn.Module:
    """With trained parameters that are not at their start."""
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def test_sizes_and_names() -> None:
    names = {kind: {name for name, value in model(kind).named_parameters() if value.requires_grad} for kind in SETS}
    block = 12 * 16**2 + 13 * 16
    everything = 4 * 16 + 12 * 16 + 8 * 16 + 2 * block + 2 * 16 + 16 * 12 + 12
    assert trained_parameters(model("full")) == everything
    assert trained_parameters(model("lora")) == 4 * 16 + 2 * 4 * (16 + 48 + 2 * 16 + 2 * (16 + 64))
    assert trained_parameters(model("norms")) == 4 * 16 + 2 * (4 * 16 + 9 * 16) + 2 * 16
    assert trained_parameters(model("head")) == 4 * 16 + 2 * 16 + 16 * 12 + 12
    assert names["head"] == {"start.weight", "norm.weight", "norm.bias", "heads.0.weight", "heads.0.bias"}
    assert all("up" in name or "down" in name for name in names["lora"] - {"start.weight"})
    assert all("norm" in name or name.endswith("shift.constant.weight") for name in names["norms"] - {"start.weight"})
    text = model("lora", Condition("text", 5))
    assert not any(value.requires_grad for value in text.start.parameters())


@pytest.mark.parametrize("trained", ["lora", "norms"])
def test_adapters_begin_as_nothing_and_merge_exactly(trained: Trained) -> None:
    tokens = torch.randint(12, (5, 8))
    before = model("full").losses(tokens, LABELS)
    adapted = model(trained)
    assert torch.allclose(adapted.losses(tokens, LABELS), before, atol=1e-6)
    moved(adapted)
    changed = adapted.losses(tokens, LABELS)
    assert (changed - before).abs().min() > 1e-4
    merge(adapted)
    assert not any(isinstance(module, LowRank | Shifted) for module in adapted.modules())
    assert torch.allclose(adapted.losses(tokens, LABELS), changed, atol=1e-5)
    plain = ScaleGPT(12, 1, 8, SHAPE, Condition("class", 3))
    plain.load_state_dict(adapted.state_dict())  # an ordinary model again
    assert torch.allclose(plain.losses(tokens, LABELS), changed, atol=1e-5)


def test_unknown_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="some"):
        select(model("full"), "some", 4)  # type: ignore[arg-type]


PRECISIONS = ["fp32", "bf16"] if choose_hardware("cpu").precision == "bf16" else ["fp32"]


def one_by_one(made: ScaleGPT, tokens: Tensor, clip: float) -> Tensor:
    """The sum of clipped gradients, each from a pass of its own, in double precision."""
    made = copy.deepcopy(made).double()
    total: Tensor | float = 0.0
    for row, label in zip(tokens, LABELS, strict=True):
        made.zero_grad()
        made.losses(row[None], label[None]).sum().backward()  # type: ignore[no-untyped-call]
        parts = [value.grad.flatten() for value in made.parameters() if value.grad is not None]
        gradient = torch.cat(parts)
        total = total + gradient * min(1.0, clip / float(gradient.norm()))
    assert isinstance(total, Tensor)
    return total


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("trained", SETS)
def test_private_gradients_of_every_set(trained: Trained, precision: Literal["fp32", "bf16"]) -> None:
    """The engine's sum is that of gradients formed and clipped one by one, and only trained parameters are in it."""
    made, tokens = moved(model(trained)), torch.randint(12, (5, 8))
    assert isinstance(made, ScaleGPT)
    wanted, clip = [name for name, value in made.named_parameters() if value.requires_grad], 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every layer has a rule
        engine = ClippedGradients(made, Clipping(clip, "flat"), rows=1, precision=precision)
    engine.add(lambda: made.losses(tokens, LABELS), torch.ones(5, dtype=torch.bool))
    shaped = engine.shaped(engine.total)
    assert set(shaped) == set(wanted)
    found = torch.cat([shaped[name].flatten() for name in wanted])
    expected = one_by_one(made, tokens, clip)
    error = float((found - expected).norm() / expected.norm())
    assert error < (1e-4 if precision == "fp32" else 0.1)
    for row in range(5):  # nobody adds more than the bound
        engine.reset()
        engine.add(lambda: made.losses(tokens, LABELS), torch.arange(5) == row)
        assert float(engine.total.norm()) <= clip * (1 + 1e-6)
