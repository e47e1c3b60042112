"""The classifiers that measure how useful images are: public tools, trained without privacy.

None of them has batch norm: its statistics would be those of the synthetic images a network is trained on, and not of
the real ones it is tested on. Group norm, where a deep network needs a norm, treats every image by itself.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

WIDTHS = (32, 64)
HIDDEN = 128
DROPOUT = 0.3
BASE_SIDE = 28  # pixels of the longer side; each doubling of it gets one more halving stage
PERCEPTRON_WIDTH = 512
RESIDUAL_STEM, RESIDUAL_WIDTHS, RESIDUAL_BLOCKS = 16, (32, 64, 128), 2  # WRN-16-2
GROUP = 8  # channels that are normalised together


class ConvNet(nn.Sequential):
    """A plain network in the manner of VGG (Simonyan and Zisserman 2015).

    Images `(N, channels, H, W)` become logits `(N, classes)`. At 28 x 28: 3x3 convolutions of 32, 32 | 64, 64 |
    channels with max pooling where a bar stands, then a hidden layer of 128 between dropouts; 0.5 M parameters, 19 M
    multiply-adds an image.

    Args:
        shape: (channels, height, width) of the images, 4 pixels a side or more.
        classes: number of classes.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        channels, height, width = shape
        lower, upper = WIDTHS
        layers: list[nn.Module] = []
        for _ in range(_halvings(height, width)):
            layers += [*_conv(channels, lower), nn.MaxPool2d(2)]
            channels, height, width = lower, height // 2, width // 2
        layers += [*_conv(channels, lower), *_conv(lower, lower), nn.MaxPool2d(2)]
        layers += [*_conv(lower, upper), *_conv(upper, upper), nn.MaxPool2d(2), nn.Flatten()]
        layers += [nn.Dropout(DROPOUT), nn.Linear(upper * (height // 4) * (width // 4), HIDDEN), nn.ReLU()]
        super().__init__(*layers, nn.Dropout(DROPOUT), nn.Linear(HIDDEN, classes))


class Perceptron(nn.Sequential):
    """Two hidden layers of 512 on pixels: what can be learnt without knowing that pixels have neighbours.

    Args:
        shape: (channels, height, width) of the images.
        classes: number of classes.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = math.prod(shape)
        for _ in range(2):
            layers += [nn.Linear(inputs, PERCEPTRON_WIDTH), nn.ReLU(), nn.Dropout(DROPOUT)]
            inputs = PERCEPTRON_WIDTH
        super().__init__(*layers, nn.Linear(inputs, classes))


class WideResNet(nn.Sequential):
    """WRN-16-2 (Zagoruyko and Komodakis 2016, table 1) with group norm: 0.7 M parameters.

    Images `(N, channels, H, W)` become logits `(N, classes)`; at 28 x 28, 77 M multiply-adds an image. Larger images
    are first halved by convolutions of stride 2, as often as makes their longer side about 28 pixels.

    Args:
        shape: (channels, height, width) of the images.
        classes: number of classes.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        inputs, height, width = shape
        layers: list[nn.Module] = []
        for _ in range(_halvings(height, width)):
            layers += [nn.Conv2d(inputs, RESIDUAL_STEM, 3, stride=2, padding=1), nn.ReLU()]
            inputs = RESIDUAL_STEM
        layers.append(nn.Conv2d(inputs, RESIDUAL_STEM, 3, padding=1, bias=False))
        inputs = RESIDUAL_STEM
        for stage, outputs in enumerate(RESIDUAL_WIDTHS):
            for block in range(RESIDUAL_BLOCKS):
                layers.append(_Residual(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        layers += [_norm(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers, nn.Linear(inputs, classes))


class _Residual(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice, beside a path that is straight where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.before, self.between = _norm(inputs), _norm(outputs)
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.straight = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, images: Tensor) -> Tensor:
        active = self.before(images).relu()
        straight = images if self.straight is None else self.straight(active)
        change: Tensor = self.second(self.between(self.first(active)).relu())
        return straight + change


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // GROUP, channels)


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]


def _halvings(height: int, width: int) -> int:
    """How often images are halved to bring their longer side to about BASE_SIDE, as far as the shorter allows."""
    longest, shortest = max(height, width), min(height, width)
    return max(0, min(round(math.log2(longest / BASE_SIDE)), int(math.log2(shortest / 4))))
