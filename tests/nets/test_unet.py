"""The denoising network: rows never meet, labels and guides matter, it is as small as it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.nets.unet import UNet, UNetShape


def network(shape: UNetShape) -> UNet:
    torch.manual_seed(0)
    model = UNet(shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        (UNetShape(4, 4, 10), (14, 14)),
        (UNetShape(12, 0, 0, (8, 8), (3, 1)), (16, 20)),
        (UNetShape(12, 12, 2), (32, 32)),
    ],
)
def test_shapes(shape: UNetShape, size: tuple[int, int]) -> None:
    x = torch.randn(3, shape.bands, *size)
    labels = torch.tensor([0, 1, -1]) if shape.classes else None
    guide = torch.randn(3, shape.guide, *size) if shape.guide else None
    assert network(shape)(x, torch.zeros(3), labels, guide).shape == x.shape


def test_rows_are_independent_and_every_input_matters() -> None:
    model = network(UNetShape(4, 4, 10))
    x, level = torch.randn(8, 4, 14, 14), torch.linspace(-1, 1, 8)
    labels, guide = torch.arange(8), torch.randn(8, 4, 14, 14)
    before = model(x, level, labels, guide)
    changes = {
        "x": (x.clone().index_fill_(0, torch.tensor([3]), 9.0), level, labels, guide),
        "level": (x, level.clone().index_fill_(0, torch.tensor([3]), 0.9), labels, guide),
        "label": (x, level, labels.clone().index_fill_(0, torch.tensor([3]), 9), guide),
        "guide": (x, level, labels, guide.clone().index_fill_(0, torch.tensor([3]), 9.0)),
    }
    for name, inputs in changes.items():
        after = model(*inputs)
        same = (after == before).flatten(1).all(1)
        assert same.tolist() == [row != 3 for row in range(8)], name


def test_it_starts_as_the_zero_function_and_keeps_no_state() -> None:
    model = UNet(UNetShape(4, 4, 10))
    assert not model(torch.randn(2, 4, 14, 14), torch.zeros(2), torch.zeros(2).long(), torch.randn(2, 4, 14, 14)).any()
    assert not list(model.buffers())


def test_the_laptop_network_is_small() -> None:
    parameters = sum(p.numel() for p in UNet(UNetShape(4, 4, 10, (32, 32), (2, 2))).parameters())
    assert 90_000 < parameters < 100_000
