"""What the torch backends share: fixed preprocessing, fixed batches, and the way from foreign weights to ours.

An embedding may be part of what a private record contributes to a touch, so it must depend on that record alone. Every
batch therefore has one constant shape, filled up with zeros, whatever the number of items, and a core to itself:
the same kernels run on every item, and its result is the same to the bit whatever its neighbours are.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from sfumato._threads import one_core_each
from sfumato.errors import UserError
from sfumato.pretrained.interfaces import Images

IMAGE_BATCH = 4

Weights = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)


def resized(images: Images, side: int) -> Images:
    """RGB images of `side` x `side` pixels, by Pillow's bicubic filter, whose support widens when it shrinks an image.

    Integer arithmetic: the same bytes on every machine. Other resamplers alias, which distorts feature statistics
    (Parmar, Zhang and Zhu 2022, "On aliased resizing and surprising subtleties in GAN evaluation").

    Args:
        images: uint8 `(N, 1 or 3, H, W)`.
        side: of the result.

    Raises:
        UserError: not such images.
    """
    check_images(images, (1, 3))
    out = np.empty((len(images), 3, side, side), np.uint8)
    for image, place in zip(images, out, strict=True):
        picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
        pixels = np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC))
        place[:] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return out


def check_images(images: Images, channels: tuple[int, ...]) -> None:
    """Raises UserError unless `images` is uint8 `(N, C, H, W)` with one of these numbers of channels."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in channels or 0 in images.shape[2:]:
        allowed = " or ".join(map(str, channels))
        raise UserError(
            f"Images must be uint8 of shape (N, {allowed}, height, width); given was {images.dtype} of shape "
            f"{images.shape}."
        )


def in_batches(
    network: Callable[[Tensor], Tensor], inputs: NDArray[Any], batch: int, outputs: tuple[int, ...]
) -> NDArray[np.float32]:
    """Applies a network to the rows of `inputs`, always `batch` at a time, each on one core.

    Args:
        network: `(batch, ...)` to float32 `(batch, *outputs)`; called from several threads.
        inputs: `(N, ...)`.
        batch: rows a call; the last one is filled up with zeros.
        outputs: shape of one row of the result.

    Returns:
        `(N, *outputs)`.
    """
    results = np.empty((len(inputs), *outputs), np.float32)

    @torch.inference_mode()
    def work(start: int) -> None:
        rows = inputs[start : start + batch]
        full = np.zeros((batch, *inputs.shape[1:]), inputs.dtype)
        full[: len(rows)] = rows
        results[start : start + len(rows)] = network(torch.from_numpy(full)).numpy()[: len(rows)]

    with one_core_each() as pool:
        list(pool.map(work, range(0, len(inputs), batch)))
    return results


def read_torch(data: bytes) -> dict[str, Any]:
    """What a `.pth` file of weights holds; `weights_only`, so nothing in it is executed."""
    return dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))


def folded(kernel: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Weights:
    """A convolution without bias and the batch normalisation after it as one convolution with bias.

    Computed in float64, so that it is the same on every machine.
    """
    factor = scale.double() / (variance.double() + eps).sqrt()
    return {
        "weight": (kernel.double() * factor[:, None, None, None]).float().contiguous(),
        "bias": (shift.double() - mean.double() * factor).float(),
    }


def with_weights(build: Callable[[], M], weights: Weights) -> M:
    """A network for inference; what it was built with is thrown away, and the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        network = build()
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)
