"""The convolutional classifier that measures how useful images are: a public tool, trained without privacy."""

from __future__ import annotations

import math

from torch import nn

WIDTHS = (32, 64, 128)
GRID = 3
BASE_SIDE = 28  # pixels; each doubling of it gets one more halving stage


class ConvNet(nn.Sequential):
    """A plain network in the manner of VGG (Simonyan and Zisserman 2015) with batch norm (Ioffe and Szegedy 2015).

    Images `(N, channels, H, W)` of 8 pixels a side or more become logits `(N, classes)`. At 28 x 28: 3x3 convolutions
    of 32 | 64, 64 | 128, 128 channels with max pooling where a bar stands, then the maxima of a 3 x 3 grid and one
    linear layer; 0.29 M parameters, 22 M multiply-adds an image. The grid tells the last layer where in the image
    something is: for synthetic images, whose shapes are better than their textures, that serves better than one mean
    over all places.

    Args:
        channels: of the images.
        classes: number of classes.
        side: the longer side of the images in pixels.
    """

    def __init__(self, channels: int, classes: int, side: int) -> None:
        stem, middle, top = WIDTHS
        halvings = 1 + max(0, round(math.log2(side / BASE_SIDE)))
        layers: list[nn.Module] = []
        for inputs in [channels] + [stem] * (halvings - 1):
            layers += [*_conv(inputs, stem), nn.MaxPool2d(2)]
        layers += [*_conv(stem, middle), *_conv(middle, middle), nn.MaxPool2d(2)]
        layers += [*_conv(middle, top), *_conv(top, top), nn.AdaptiveMaxPool2d(GRID), nn.Flatten()]
        super().__init__(*layers, nn.Linear(top * GRID**2, classes))


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
