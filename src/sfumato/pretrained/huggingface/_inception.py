"""Inception-v3 with ImageNet weights, in the form of the hub's `timm/inception_v3...` repositories.

Szegedy, Vanhoucke, Ioffe, Shlens and Wojna 2015, "Rethinking the Inception architecture for computer vision". The
library that these repositories are made for brings torchvision, so the network is written out here. It is not the
network of published FID values: that one has older weights and pools in another way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from sfumato.errors import UserError
from sfumato.pretrained._networks import Weights, folded
from sfumato.pretrained.huggingface._snapshot import Snapshot

SIDE = 299
EPS = 1e-3
GREY = (0.5, 0.5, 0.5)  # mean and standard deviation, where the model does not state its own


class InceptionV3:
    """Images to 2,048 features: the mean over the last layer's places.

    Args:
        weights: kernel and bias of each convolution, by its name; the normalisation after it is folded into it.
        mean, deviation: of the colours, as the model was trained.
    """

    def __init__(self, weights: Weights, mean: Tensor, deviation: Tensor) -> None:
        self._weights = weights
        self._mean, self._deviation = mean, deviation

    def to(self, device: torch.device, dtype: torch.dtype) -> InceptionV3:
        """The network on a device."""
        weights = {name: value.to(device, dtype) for name, value in self._weights.items()}
        return InceptionV3(weights, self._mean.to(device, dtype), self._deviation.to(device, dtype))

    def __call__(self, pixels: Tensor) -> Tensor:
        """Floats 0 to 255 `(N, 3, 299, 299)` to `(N, 2048)`."""

        def conv(x: Tensor, name: str, stride: int = 1, same: bool = True) -> Tensor:
            kernel = self._weights[f"{name}.weight"]
            padding = (kernel.shape[2] // 2, kernel.shape[3] // 2) if same else 0
            return F.relu(F.conv2d(x, kernel, self._weights[f"{name}.bias"], stride, padding))

        def chain(x: Tensor, name: str, *ends: str) -> Tensor:
            for end in ends:
                x = conv(x, name + end)
            return x

        def shrink(x: Tensor, name: str) -> Tensor:
            return conv(x, name, stride=2, same=False)

        def around(x: Tensor, name: str) -> Tensor:
            return conv(F.avg_pool2d(x, 3, 1, 1), name)

        x = shrink((pixels / 255 - self._mean) / self._deviation, "Conv2d_1a_3x3")
        x = conv(conv(x, "Conv2d_2a_3x3", same=False), "Conv2d_2b_3x3")
        x = conv(conv(F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1"), "Conv2d_4a_3x3", same=False)
        x = F.max_pool2d(x, 3, 2)
        for block in ("Mixed_5b.", "Mixed_5c.", "Mixed_5d."):  # 35 x 35
            five = chain(x, f"{block}branch5x5_", "1", "2")
            double = chain(x, f"{block}branch3x3dbl_", "1", "2", "3")
            x = torch.cat([conv(x, f"{block}branch1x1"), five, double, around(x, f"{block}branch_pool")], 1)
        double = chain(x, "Mixed_6a.branch3x3dbl_", "1", "2")
        double = shrink(double, "Mixed_6a.branch3x3dbl_3")
        x = torch.cat([shrink(x, "Mixed_6a.branch3x3"), double, F.max_pool2d(x, 3, 2)], 1)
        for block in ("Mixed_6b.", "Mixed_6c.", "Mixed_6d.", "Mixed_6e."):  # 17 x 17
            seven = chain(x, f"{block}branch7x7_", "1", "2", "3")
            double = chain(x, f"{block}branch7x7dbl_", "1", "2", "3", "4", "5")
            x = torch.cat([conv(x, f"{block}branch1x1"), seven, double, around(x, f"{block}branch_pool")], 1)
        three = shrink(conv(x, "Mixed_7a.branch3x3_1"), "Mixed_7a.branch3x3_2")
        seven = shrink(chain(x, "Mixed_7a.branch7x7x3_", "1", "2", "3"), "Mixed_7a.branch7x7x3_4")
        x = torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)
        for block in ("Mixed_7b.", "Mixed_7c."):  # 8 x 8
            three = conv(x, f"{block}branch3x3_1")
            double = chain(x, f"{block}branch3x3dbl_", "1", "2")
            sides = [conv(three, f"{block}branch3x3_2{side}") for side in "ab"]
            sides += [conv(double, f"{block}branch3x3dbl_3{side}") for side in "ab"]
            x = torch.cat([conv(x, f"{block}branch1x1"), *sides, around(x, f"{block}branch_pool")], 1)
        return x.mean((2, 3))


def is_inception(snapshot: Snapshot) -> bool:
    """Whether a model states this architecture."""
    return bool(snapshot.json("config.json").get("architecture") == "inception_v3")


def build(snapshot: Snapshot) -> InceptionV3:
    """The network of a snapshot.

    Raises:
        UserError: its weights are not those of an Inception-v3.
    """
    given: Weights = {}
    for file in snapshot.files:
        if file.endswith(".safetensors"):
            given |= load_file(snapshot.folder / file)
    stated: dict[str, Any] = snapshot.json("config.json").get("pretrained_cfg", {})
    colours = [torch.tensor(stated.get(key, GREY)).view(1, 3, 1, 1) for key in ("mean", "std")]
    weights: Weights = {}
    try:
        for name in (key.removesuffix(".conv.weight") for key in given if key.endswith(".conv.weight")):
            scale, shift, mean, variance = (
                given[f"{name}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
            )
            parts = folded(given[f"{name}.conv.weight"], scale, shift, mean, variance, EPS)
            weights |= {f"{name}.{part}": value for part, value in parts.items()}
        network = InceptionV3(weights, *colours)
        with torch.inference_mode():
            network(torch.zeros(1, 3, SIDE, SIDE))
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"The weights of {snapshot.identity.name} are not those of an Inception-v3: {error}."
        ) from error
    return network


def pixels(batch: list[Image.Image]) -> dict[str, Tensor]:
    """Whole pictures as floats 0 to 255 `(N, 3, 299, 299)`, resized by Pillow's bicubic filter."""
    sides = [picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for picture in batch]
    return {
        "pixel_values": torch.from_numpy(np.stack([np.asarray(side) for side in sides])).permute(0, 3, 1, 2).float()
    }
