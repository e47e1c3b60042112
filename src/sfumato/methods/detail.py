"""The public stage of Spectral that follows the private one: detail for coarse images, from public models alone.

All of it is post-processing of what the private stage released, or, on public images, a look at how much quality the
method can carry at all: the oracle floor is the true coarse image and the detail stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.hardware import Hardware
from sfumato.methods.examples import Examples
from sfumato.methods.spectral_settings import ExamplesConfig
from sfumato.methods.superresolution import SuperResolver
from sfumato.nets.autoregressive import ScaleGPT, Taste, generate
from sfumato.nets.tokenizer import Tokenizer
from sfumato.nets.wavelet import haar_scales
from sfumato.pretrained.interfaces import Images, Upscaler
from sfumato.pretrained.lanczos import resized


@dataclass(frozen=True)
class TokenDetail:
    """Detail from the public model's own finer scales: drawn token by token behind the coarse ones.

    Attributes:
        tokenizer: public.
        network: of all scales, as public images left it.
        taste: how detail is drawn.
    """

    tokenizer: Tokenizer
    network: ScaleGPT
    taste: Taste

    def pictures(self, coarse: Tensor, condition: Tensor, generator: torch.Generator, hardware: Hardware) -> Tensor:
        """Uint8 pictures `(N, C, H, W)` for coarse tokens `(N, tokens)` and what the public model is told of them."""
        device, precision = hardware
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            network = self.network.to(device)
            tokens = generate(network, condition, generator, prefix=coarse, taste=self.taste)
        return whole(self.tokenizer.decode(tokens))


@dataclass(frozen=True)
class ExampleDetail:
    """Pieces of public images whose coarse tokens are alike.

    Attributes:
        tokenizer: public; knows how far tokens are from each other.
        examples: public images.
        config: how they are put together.
    """

    tokenizer: Tokenizer
    examples: Examples
    config: ExamplesConfig

    def pictures(self, coarse: Tensor, condition: Tensor, generator: torch.Generator, hardware: Hardware) -> Tensor:
        """Uint8 pictures `(N, C, H, W)` for coarse tokens `(N, tokens)`; nothing else is looked at."""
        return whole(self.examples.quilted(self.tokenizer, coarse, self.config, hardware.device))


@dataclass(frozen=True)
class DiffusedDetail:
    """Detail by super-resolution that public images taught.

    Attributes:
        tokenizer: public; decodes the coarse image.
        resolver: public.
        levels: noise levels visited.
    """

    tokenizer: Tokenizer
    resolver: SuperResolver
    levels: int

    def pictures(self, coarse: Tensor, condition: Tensor, generator: torch.Generator, hardware: Hardware) -> Tensor:
        """Uint8 pictures `(N, C, H, W)` for coarse tokens `(N, tokens)`; the condition is not looked at."""
        resolver = self.resolver.to(hardware.device)
        return whole(resolver.draw(self.tokenizer.decode(coarse), generator, hardware, self.levels))


@dataclass(frozen=True)
class UpscaledDetail:
    """Detail from a public upscaler, which knows nothing of tokens.

    Attributes:
        tokenizer: public; decodes the coarse image.
        upscaler: repeated until the image is large enough, then reduced to its size.
    """

    tokenizer: Tokenizer
    upscaler: Upscaler

    def pictures(self, coarse: Tensor, condition: Tensor, generator: torch.Generator, hardware: Hardware) -> Tensor:
        """Uint8 pictures `(N, C, H, W)` for coarse tokens `(N, tokens)`; the rest is not looked at."""
        _, height, width = self.tokenizer.shape.image
        return upscaled(whole(self.tokenizer.decode(coarse)), self.upscaler, height, width)


Detail = ExampleDetail | DiffusedDetail | TokenDetail | UpscaledDetail


def whole(images: Tensor) -> Tensor:
    """Grey levels as uint8."""
    return images.round().clamp(0, 255).to(torch.uint8).cpu()


def upscaled(images: Tensor, upscaler: Upscaler, height: int, width: int) -> Tensor:
    """Uint8 `(N, C, h, w)` to `(N, C, height, width)`; grey images are shown to the upscaler in three channels."""
    pictures: Images = images.expand(-1, 3, -1, -1).numpy() if images.shape[1] == 1 else images.numpy()
    while pictures.shape[2] < height or pictures.shape[3] < width:
        pictures = upscaler.upscale(np.ascontiguousarray(pictures))
    if pictures.shape[2:] != (height, width):
        pictures = resized(pictures, height, width)
    found = torch.from_numpy(pictures)
    return found if images.shape[1] == 3 else whole(found.float().mean(1, keepdim=True))


def enlarged(images: Tensor, upscaler: Upscaler) -> Tensor:
    """Uint8 `(N, C, H, W)`, each side times the upscaler's factor."""
    return upscaled(images, upscaler, upscaler.factor * images.shape[2], upscaler.factor * images.shape[3])


class Floor(NamedTuple):
    """What the method can carry at best: public images, their true coarse image, and detail from public models.

    Attributes:
        levels: of the transform.
        height, width: of the coarse image.
        detail: who made the detail: "lanczos", "regression", "examples", an upscaler, or "own", which a run has learnt.
        energy: share of the images' variance that the coarse band holds.
        psnr: of what comes back against the images, in dB.
        sharpness: energy of its finest Haar details over that of the images'; 1 is as sharp, 0 is blurred.
    """

    levels: int
    height: int
    width: int
    detail: str
    energy: float
    psnr: float
    sharpness: float


def floors(pictures: Tensor, most: int = 4) -> Iterator[Floor]:
    """The oracle floor of every number of levels, with two detail stages that cost nothing to make.

    "lanczos" adds no detail. "regression" predicts each block from the 3x3 coarse pixels around it, linearly, as learnt
    on one half of the pictures and measured on the other. Both are means: drawn or learned detail is sharper.

    Args:
        pictures: public, uint8 `(N, C, H, W)`; of fewer than two there is nothing to learn, and no floor.
        most: levels.
    """
    true = pictures.float()
    for levels in range(1, most + 1 if len(pictures) > 1 else 1):
        side = 1 << levels
        if true.shape[2] % side or true.shape[3] % side or min(true.shape[2:]) // side < 2:
            return
        small = F.avg_pool2d(true, side)
        for name, found, against in (
            ("lanczos", _lanczos(small, true.shape[2], true.shape[3]), true),
            ("regression", _regressed(small, true, side), true[1::2]),
        ):
            yield floor_of(name, levels, against, found)


def floor_of(name: str, levels: int, true: Tensor, found: Tensor) -> Floor:
    """A `Floor` from images `(N, C, H, W)` and what came back of them."""
    true, found = true.float(), found.float().clamp(0, 255)
    small = F.avg_pool2d(true, 1 << levels)
    mean = true.mean((0, 2, 3), keepdim=True)
    energy = (small - mean).square().mean() / (true - mean).square().mean().clamp(min=1e-9)
    error = (true - found).square().mean().clamp(min=1e-9)
    _, ours = haar_scales(found, 1)
    _, theirs = haar_scales(true, 1)
    return Floor(
        levels,
        small.shape[2],
        small.shape[3],
        name,
        float(energy),
        float(10 * torch.log10(255**2 / error)),
        float(ours.square().mean() / theirs.square().mean().clamp(min=1e-9)),
    )


def _lanczos(small: Tensor, height: int, width: int) -> Tensor:
    pictures = whole(small)
    grey = pictures.shape[1] == 1
    images = pictures.expand(-1, 3, -1, -1).numpy() if grey else pictures.numpy()
    return torch.from_numpy(resized(images, height, width))[:, : 1 if grey else 3]


def _regressed(small: Tensor, true: Tensor, side: int) -> Tensor:
    """Blocks of every second picture, predicted from the coarse pixels around them as the others teach."""
    count, channels, height, width = true.shape
    seen = F.unfold(F.pad(small, (1, 1, 1, 1), mode="replicate"), 3).transpose(1, 2) / 255 - 0.5
    seen = torch.cat((seen, torch.ones_like(seen[..., :1])), 2)
    blocks = F.unfold(true, side, stride=side).transpose(1, 2)
    x, y = seen[0::2].flatten(0, 1).double(), blocks[0::2].flatten(0, 1).double()
    gram = x.T @ x + 1e-3 * len(x) / x.shape[1] * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, x.T @ y).float()
    found = (seen[1::2] @ weights).transpose(1, 2)
    return F.fold(found, (height, width), side, stride=side).view(count // 2, channels, height, width)
