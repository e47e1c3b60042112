from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.nets.classifier import ConvNet, Perceptron, WideResNet


@pytest.mark.parametrize("side", [8, 12, 28, 64, 130])
@pytest.mark.parametrize("kind", [ConvNet, Perceptron, WideResNet])
def test_the_networks_take_images_of_any_size(kind: type[nn.Module], side: int) -> None:
    shape = 3, side, side // 2 if side > 12 else side
    network = kind(shape, 7)
    assert network(torch.zeros(2, *shape)).shape == (2, 7)
    if kind is not Perceptron:
        assert sum(parameter.numel() for parameter in network.parameters()) < 700_000


@pytest.mark.parametrize("kind", [ConvNet, WideResNet])
def test_the_networks_take_narrow_images(kind: type[nn.Module]) -> None:
    assert kind((1, 4, 1024), 2)(torch.zeros(1, 1, 4, 1024)).shape == (1, 2)


@pytest.mark.parametrize("kind", [ConvNet, Perceptron, WideResNet])
def test_no_image_depends_on_the_others_and_training_leaves_no_statistics(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind((1, 12, 12), 3)
    assert not list(network.buffers())
    images = torch.randn(4, 1, 12, 12)
    for _ in range(3):
        network(100 + 9 * torch.randn(8, 1, 12, 12))
    network.eval()
    alone = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(network(images), alone, atol=1e-5)
    assert (alone[0] - alone[1]).abs().max() > 1e-4


def multiply_adds(network: nn.Module, shape: tuple[int, int, int]) -> int:
    total = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        total += module.weight[0].numel() * output[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    network(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return total


def test_the_documented_sizes_are_right_and_larger_images_cost_little_more() -> None:
    assert round(multiply_adds(ConvNet((1, 28, 28), 10), (1, 28, 28)) / 1e6) == 19
    wide = WideResNet((1, 28, 28), 10)
    assert round(multiply_adds(wide, (1, 28, 28)) / 1e6) == 77
    assert round(sum(parameter.numel() for parameter in wide.parameters()) / 1e6, 1) == 0.7
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in wide.modules()) == 13
    assert multiply_adds(WideResNet((3, 64, 64), 10), (3, 64, 64)) < 1.5 * 77e6
