"""The convolutional classifier that measures how useful images are: a public tool, trained without privacy."""

from __future__ import annotations

import math

from torch import nn

WIDTHS = (32, 64)
HIDDEN = 128
DROPOUT = 0.3
BASE_SIDE = 28  # pixels of the longer side; each doubling of it gets one more halving stage


class ConvNet(nn.Sequential):
    """A plain network in the manner of VGG (Simonyan and Zisserman 2015).

    Images `(N, channels, H, W)` become logits `(N, classes)`. At 28 x 28: 3x3 convolutions of 32, 32 | 64, 64 |
    channels with max pooling where a bar stands, then a hidden layer of 128 between dropouts; 0.5 M parameters, 19 M
    multiply-adds an image. There is no batch norm: its statistics would be those of the synthetic images it is trained
    on and not of the real ones it is tested on.

    Args:
        shape: (channels, height, width) of the images, 4 pixels a side or more.
        classes: number of classes.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        channels, height, width = shape
        lower, upper = WIDTHS
        longest, shortest = max(height, width), min(height, width)
        extra = max(0, min(round(math.log2(longest / BASE_SIDE)), int(math.log2(shortest / 4))))
        layers: list[nn.Module] = []
        for _ in range(extra):
            layers += [*_conv(channels, lower), nn.MaxPool2d(2)]
            channels, height, width = lower, height // 2, width // 2
        layers += [*_conv(channels, lower), *_conv(lower, lower), nn.MaxPool2d(2)]
        layers += [*_conv(lower, upper), *_conv(upper, upper), nn.MaxPool2d(2), nn.Flatten()]
        layers += [nn.Dropout(DROPOUT), nn.Linear(upper * (height // 4) * (width // 4), HIDDEN), nn.ReLU()]
        super().__init__(*layers, nn.Dropout(DROPOUT), nn.Linear(HIDDEN, classes))


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
