"""The flow transformer: items never meet, every part of the condition matters, and it can follow a neighbour."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.nets.flow import RELATIONS, Condition, FlowShape, FlowTransformer

SHAPE = FlowShape(channels=4, grid=4, text=6, colours=3, styles=2, width=32, layers=2, heads=2, context=2)
ROWS = 6


def network() -> FlowTransformer:
    torch.manual_seed(0)
    model = FlowTransformer(SHAPE)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False)


def inputs() -> tuple[Tensor, Tensor, Condition]:
    random = torch.Generator().manual_seed(1)
    condition = Condition(
        torch.randn(ROWS, 6, generator=random),
        torch.tensor([0, 1, 2, 3, 0, 1]),
        torch.tensor([0, 1, 2, 0, 1, 2]),
        torch.arange(ROWS) % len(RELATIONS),
        torch.randn(ROWS, 4, 4, 4, generator=random),
    )
    return torch.randn(ROWS, 4, 4, 4, generator=random), torch.linspace(0, 1, ROWS), condition


@pytest.mark.parametrize("part", ["x", "time", *Condition._fields])
def test_each_input_changes_its_own_row_and_no_other(part: str) -> None:
    model, (x, time, condition) = network(), inputs()
    before = model(x, time, condition)
    assert before.shape == x.shape
    given = {
        "x": x.clone(),
        "time": time.clone(),
        **{name: value.clone() for name, value in condition._asdict().items()},
    }
    row = given[part][3]
    given[part][3] = (row + 1) % 3 if row.dtype == torch.int64 else row * 0.5 + 0.45
    after = model(given["x"], given["time"], Condition(*(given[name] for name in Condition._fields)))
    assert (before == after).flatten(1).all(1).tolist() == [i != 3 for i in range(ROWS)]


def test_it_starts_as_the_zero_function() -> None:
    assert not FlowTransformer(SHAPE)(*inputs()).any()


def test_places_are_told_apart() -> None:
    """The velocity at a place follows the neighbour's vector at that place more than another one's."""
    model, (x, time, condition) = network(), inputs()
    before = model(x, time, condition)
    neighbour = condition.neighbour.clone()
    neighbour[:, :, 1, 2] += 3
    change = (model(x, time, condition._replace(neighbour=neighbour)) - before).abs().mean((0, 1))
    assert change[1, 2] > 1.5 * change.mean()


def test_half_precision_gives_about_the_same() -> None:
    model, (x, time, condition) = network(), inputs()
    full = model(x, time, condition)
    half = model.bfloat16()(
        x.bfloat16(),
        time,
        condition._replace(text=condition.text.bfloat16(), neighbour=condition.neighbour.bfloat16()),
    )
    assert half.dtype == torch.bfloat16
    assert ((half.float() - full) ** 2).mean() < 0.01 * (full**2).mean()


def test_it_learns_to_bring_noise_to_the_neighbour() -> None:
    torch.manual_seed(3)
    model = FlowTransformer(SHAPE)
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(90):
        latents, noise, time = torch.randn(32, 4, 4, 4), torch.randn(32, 4, 4, 4), torch.rand(32)
        zeros = torch.zeros(32, dtype=torch.long)
        condition = Condition(torch.zeros(32, 6), zeros, zeros, zeros + RELATIONS.index("variant"), latents)
        mixed = torch.lerp(noise, latents, time[:, None, None, None])
        loss = ((model(mixed, time, condition) - (latents - noise)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 1.8
    assert sum(losses[-10:]) / 10 < 0.6
