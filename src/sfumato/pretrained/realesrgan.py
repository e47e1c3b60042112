"""Real-ESRGAN: pictures four times as large, with plausible detail, on a plain CPU through ncnn.

Wang, Xie, Dong and Shan 2021, "Real-ESRGAN: Training real-world blind super-resolution with pure synthetic data".
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ncnn  # type: ignore[import-untyped]
import numpy as np

from sfumato.errors import InternalError
from sfumato.pretrained._networks import check_images
from sfumato.pretrained.interfaces import Identity, Images

FACTOR = 4


class RealESRGAN:
    """An `Upscaler` by 4 for RGB images of any size. One image at a time, so each result depends on its image alone.

    Args:
        folder: of the pulled model.
        identity: which model it is.
    """

    factor = FACTOR

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.identity = identity
        self._network = ncnn.Net()
        # One thread: more are slower on pictures this small, and collapse beside other programs.
        self._network.opt.num_threads = 1
        self._network.opt.use_vulkan_compute = False
        # Half precision is no faster on most processors, and not the same on all.
        self._network.opt.use_fp16_packed = False
        self._network.opt.use_fp16_storage = False
        self._network.opt.use_fp16_arithmetic = False
        if self._network.load_param(str(folder / "model.param")) or self._network.load_model(str(folder / "model.bin")):
            raise InternalError(f"ncnn does not read the checked model in {folder}.")

    def upscale(self, images: Images) -> Images:
        """Uint8 `(N, 3, H, W)` to uint8 `(N, 3, 4 H, 4 W)`.

        Raises:
            UserError: not such images.
        """
        check_images(images, (3,))
        count, channels, height, width = images.shape
        results = np.empty((count, channels, FACTOR * height, FACTOR * width), np.uint8)
        for image, place in zip(images, results, strict=True):
            place[:] = self._upscale(image)
        return results

    def _upscale(self, image: Images) -> Images:
        values = np.ascontiguousarray(image, np.float32) / 255
        extractor = self._network.create_extractor()
        # A Mat made from an array does not keep the array alive: clone it while it is.
        extractor.input("data", ncnn.Mat(values).clone())
        code, found = extractor.extract("output")
        if code:
            raise InternalError(f"ncnn fails with code {code} on an image of shape {image.shape}.")
        pixels: Images = np.rint(np.clip(np.array(found), 0, 1) * 255).astype(np.uint8)
        return pixels


def prepare(members: Mapping[str, bytes]) -> dict[str, bytes]:
    """The model's files, as they are in the wheel."""
    return dict(members)


def load(folder: Path, identity: Identity) -> RealESRGAN:
    """The model in `folder`."""
    return RealESRGAN(folder, identity)
