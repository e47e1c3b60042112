"""Inception-v3, fine-tuned as a content filter: a second image embedder, independent of the first.

Szegedy, Vanhoucke, Ioffe, Shlens and Wojna 2015, "Rethinking the Inception architecture for computer vision", as built
by Keras. The first 51 of its 94 convolutions are as ImageNet left them; the others learned to tell drawings, neutral
and indecent pictures. Weights were rounded to 8 bits. It is not the network of published FID values, and distances in
its features compare only with each other.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from sfumato.pretrained._networks import IMAGE_BATCH, Weights, folded, in_batches, resized
from sfumato.pretrained.interfaces import Embeddings, Identity, Images

SIDE = 299
DIMENSIONS = 2048
CONVOLUTIONS = 94
SHARDS = 6
EPS = 1e-3
KINDS = ("drawing", "hentai", "neutral", "porn", "sexy")
PARAMETERS = 22_360_869


class Inception:
    """An `ImageEmbedder` of 2,048 dimensions that also judges how decent a picture is.

    Args:
        folder: of the pulled model.
        identity: which model it is.
    """

    dimensions = DIMENSIONS

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.identity = identity
        # Channels last: 1.4 times as fast on a processor.
        self._weights: Weights = {
            name: value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
            for name, value in load_file(folder / "weights.safetensors").items()
        }

    def embed_images(self, images: Images) -> Embeddings:
        """Embeds uint8 images `(N, 1 or 3, H, W)` of any one size as `(N, 2048)`; they are resized to 299 x 299.

        Raises:
            UserError: not such images.
        """
        return in_batches(self._features, resized(images, SIDE), IMAGE_BATCH, (DIMENSIONS,))

    def judge(self, images: Images) -> list[dict[str, float]]:
        """Probabilities of `KINDS` for each image.

        Raises:
            UserError: not images.
        """
        chances = in_batches(self._kinds, self.embed_images(images), IMAGE_BATCH, (len(KINDS),))
        return [dict(zip(KINDS, map(float, row), strict=True)) for row in chances]

    def _kinds(self, x: Tensor) -> Tensor:
        weights = self._weights
        for layer in (1, 2, 3):
            x = F.linear(x, weights[f"dense_{layer}.weight"], weights[f"dense_{layer}.bias"])
            x = F.relu(x) if layer < 3 else F.softmax(x, 1)
        return x

    def _features(self, pixels: Tensor) -> Tensor:
        """Uint8 `(N, 3, 299, 299)` to `(N, 2048)`; the convolutions are used up in the order of their numbers."""
        numbers: Iterator[int] = iter(range(1, CONVOLUTIONS + 1))

        def conv(x: Tensor, stride: int = 1, same: bool = True) -> Tensor:
            name = f"conv_{next(numbers)}"
            kernel = self._weights[f"{name}.weight"]
            padding = (kernel.shape[2] // 2, kernel.shape[3] // 2) if same else 0
            return F.relu(F.conv2d(x, kernel, self._weights[f"{name}.bias"], stride, padding))

        def chain(x: Tensor, length: int) -> Tensor:
            for _ in range(length):
                x = conv(x)
            return x

        def around(x: Tensor) -> Tensor:
            return conv(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))

        def shrink(x: Tensor) -> Tensor:
            return conv(x, stride=2, same=False)

        x = pixels.contiguous(memory_format=torch.channels_last).float() / 255
        x = conv(conv(shrink(x), same=False))
        x = conv(conv(F.max_pool2d(x, 3, 2), same=False), same=False)
        x = F.max_pool2d(x, 3, 2)
        for _ in range(3):  # 35 x 35
            x = torch.cat([conv(x), chain(x, 2), chain(x, 3), around(x)], 1)
        x = torch.cat([shrink(x), shrink(chain(x, 2)), F.max_pool2d(x, 3, 2)], 1)
        for _ in range(4):  # 17 x 17
            x = torch.cat([conv(x), chain(x, 3), chain(x, 5), around(x)], 1)
        x = torch.cat([shrink(conv(x)), shrink(chain(x, 3)), F.max_pool2d(x, 3, 2)], 1)
        for _ in range(2):  # 8 x 8
            one, three = conv(x), conv(x)
            three = torch.cat([conv(three), conv(three)], 1)
            double = chain(x, 2)
            double = torch.cat([conv(double), conv(double)], 1)
            x = torch.cat([one, three, double, around(x)], 1)
        return x.mean((2, 3))


def prepare(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The model's file, from scripts that hold numbers as text: they are read as data and never run.

    `model.js` lists the tensors in order with their 8-bit scales, as object literals; each shard holds one string of
    base64. A value is `min + scale * byte`.
    """
    text = members["model.js"].decode()
    listed = re.findall(
        r'\{name:"(\w+)/(\w+)",shape:\[([\d,]+)\],dtype:"float32",'
        r'quantization:\{min:([-+.\de]+),scale:([-+.\de]+),dtype:"uint8"\}\}',
        text[text.index("weightsManifest") :],
    )
    stream = b"".join(_base64(members[f"shard{number}.js"]) for number in range(1, SHARDS + 1))
    tensors, place = {}, 0
    for layer, part, sizes, least, step in listed:
        shape = [int(size) for size in sizes.split(",")]
        codes = np.frombuffer(stream, np.uint8, math.prod(shape), place).reshape(shape)
        place += math.prod(shape)
        tensors[f"{layer}.{part}"] = torch.from_numpy(codes * float(step) + float(least))
    if place != len(stream) or place != PARAMETERS:
        raise ValueError("the listed tensors are not what the shards hold")
    weights: Weights = {}
    for number in range(1, CONVOLUTIONS + 1):
        kernel = tensors[f"conv2d_{number}.kernel"].permute(3, 2, 0, 1)  # (H, W, in, out) to (out, in, H, W)
        shift, mean, variance = (
            tensors[f"batch_normalization_{number}.{part}"] for part in ("beta", "moving_mean", "moving_variance")
        )
        merged = folded(kernel, torch.ones_like(shift), shift, mean, variance, EPS)
        weights |= {f"conv_{number}.{part}": value for part, value in merged.items()}
    for number in (1, 2, 3):
        weights[f"dense_{number}.weight"] = tensors[f"dense_{number}.kernel"].T.float().contiguous()
        weights[f"dense_{number}.bias"] = tensors[f"dense_{number}.bias"].float()
    return {"weights.safetensors": save(weights)}


def _base64(script: bytes) -> bytes:
    """The one long string in a script, decoded."""
    found = re.findall(rb'exports="([A-Za-z0-9+/]+={0,2})"', script)
    if len(found) != 1:
        raise ValueError("a script without exactly one string of base64")
    return base64.b64decode(found[0], validate=True)


def load(folder: Path, identity: Identity) -> Inception:
    """The model in `folder`."""
    return Inception(folder, identity)
