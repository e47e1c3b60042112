"""DDPM++: published sizes, rows that never meet, every parameter in use."""

from __future__ import annotations

import pytest
import torch

from sfumato.nets.ddpmpp import DDPMpp, DDPMppShape


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (DDPMppShape(1, 28, 10), 1_485_217),  # DPImageBench, Fashion-MNIST
        (DDPMppShape(1, 28, 1000), 1_516_897),  # the same while it learns from ImageNet
        (DDPMppShape(3, 32, 1000, 32, (2, 4), (16,)), 3_867_299),  # DPImageBench, 32x32
        (DDPMppShape(3, 32, 10, 32, (1, 2, 2), (16,)), 1_754_499),  # PrivImage, CIFAR-10
        (DDPMppShape(3, 32, 0, 32, (1, 2, 2), (8, 16)), 1_804_451),  # PrivImage, CelebA 32
        (DDPMppShape(3, 64, 0, 32, (1, 1, 2, 2), (8, 16)), 1_999_907),  # PrivImage, CelebA 64
    ],
)
def test_published_sizes(shape: DDPMppShape, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in DDPMpp(shape).parameters()) == parameters


def network(shape: DDPMppShape) -> DDPMpp:
    torch.manual_seed(0)
    model = DDPMpp(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


SHAPE = DDPMppShape(2, 16, 3, 8, (1, 2, 2), (8,), 1)


def test_rows_never_meet() -> None:
    model, x = network(SHAPE), torch.randn(4, 2, 16, 16)
    level, labels = torch.randn(4), torch.tensor([0, 1, 2, -1])
    whole = model(x, level, labels)
    assert whole.shape == x.shape
    for row in range(4):
        alone = model(x[row : row + 1], level[row : row + 1], labels[row : row + 1])
        assert torch.allclose(alone, whole[row : row + 1], atol=1e-5)


def test_an_untrained_network_says_nothing() -> None:
    with torch.no_grad():
        out = DDPMpp(SHAPE)(torch.randn(2, 2, 16, 16), torch.zeros(2), torch.zeros(2).long())
    assert float(out.abs().max()) == 0


def test_everything_is_in_use() -> None:
    model = network(SHAPE)
    out = model(torch.randn(4, 2, 16, 16), torch.randn(4), torch.tensor([0, 1, 2, -1]))
    out.square().sum().backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A softmax does not see what is added to all keys' scores of one query.
    assert all(name.endswith("attention.key.bias") for name in unused), unused


def test_level_and_label_matter() -> None:
    model, x = network(SHAPE), torch.randn(1, 2, 16, 16)
    base = model(x, torch.tensor([0.1]), torch.tensor([0]))
    assert not torch.allclose(base, model(x, torch.tensor([0.6]), torch.tensor([0])), atol=1e-4)
    assert not torch.allclose(base, model(x, torch.tensor([0.1]), torch.tensor([1])), atol=1e-4)
    assert not torch.allclose(base, model(x, torch.tensor([0.1]), torch.tensor([-1])), atol=1e-4)
