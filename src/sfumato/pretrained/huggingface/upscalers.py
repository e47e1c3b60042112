"""Larger images with plausible detail, by the upscaling pipelines of `diffusers`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sfumato.errors import UserError
from sfumato.pretrained._networks import check_images
from sfumato.pretrained.huggingface._replicas import Replicas, chosen_devices, chosen_precision
from sfumato.pretrained.huggingface._snapshot import INDEX, find, library
from sfumato.pretrained.huggingface.diffusion import generator, pipeline, pixels
from sfumato.pretrained.interfaces import Images


@dataclass(frozen=True)
class Way:
    """How a pipeline enlarges: by what factor, in what multiples of pixels, and as its authors advise to call it."""

    factor: int
    multiple: int
    settings: dict[str, Any]


WAYS = {
    "StableDiffusionLatentUpscalePipeline": Way(2, 64, {"num_inference_steps": 20, "guidance_scale": 0.0}),
    "StableDiffusionUpscalePipeline": Way(4, 8, {"num_inference_steps": 75, "guidance_scale": 9.0, "noise_level": 20}),
}


class DiffusionUpscaler:
    """An `Upscaler` by 2 or 4. Untested on GPU and on full-size models.

    Every image is drawn with the same `seed`, so a result depends on its image alone. Images of odd sizes are extended
    by their last row and column, and the result is cut.

    Args:
        name: a folder or a name on the hub: `stabilityai/stable-diffusion-x4-upscaler` or
            `stabilityai/sd-x2-latent-upscaler`.
        revision: on the hub.
        devices: `auto`, a device, or several, each with a copy of the pipeline.
        precision: `auto` (float32 on a CPU, float16 on GPUs), `fp32`, `fp16` or `bf16`.
        batch: images a call; each batch is filled up.
        steps: of denoising; None is what suits the pipeline.
        guidance: strength of guidance by `prompt`; None is what suits the pipeline.
        noise_level: noise added to the given image, in steps of the schedule (factor 4 only); more invents more.
        prompt: what all the images show.
        seed: of public randomness.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        devices: str | Sequence[str] = "auto",
        precision: str = "auto",
        batch: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        noise_level: int | None = None,
        prompt: str = "",
        seed: int = 0,
    ) -> None:
        places = chosen_devices(devices)
        dtype = chosen_precision(precision, places, "fp16")
        snapshot = find(name, revision, dtype != torch.float32)
        self.identity = snapshot.identity
        label = snapshot.json(INDEX).get("_class_name")
        if label not in WAYS:
            raise UserError(f"{name} is no upscaler that Sfumato knows ({label}); known are: {', '.join(WAYS)}.")
        self._way = WAYS[label]
        given = {"num_inference_steps": steps, "guidance_scale": guidance, "noise_level": noise_level}
        if noise_level is not None and "noise_level" not in self._way.settings:
            raise UserError(f"A noise_level was given, but {name} takes none; leave it out.")
        self._settings = self._way.settings | {key: value for key, value in given.items() if value is not None}
        self.factor = self._way.factor
        self.prompt = prompt
        self.seed = seed
        auto = library("diffusers").DiffusionPipeline
        self._replicas = Replicas(lambda device: pipeline(auto, snapshot, "upscaler", dtype).to(device), places, batch)

    def upscale(self, images: Images) -> Images:
        """Uint8 `(N, 3, H, W)` to uint8 `(N, 3, factor H, factor W)`.

        Raises:
            UserError: not such images, or too little memory or precision.
        """
        check_images(images, (3,))
        height, width = images.shape[2:]
        below, beside = -height % self._way.multiple, -width % self._way.multiple
        full = np.pad(images, ((0, 0), (0, 0), (0, below), (0, beside)), mode="edge")

        def enlarge(pipe: Any, _: torch.device, batch: list[Images]) -> list[Images]:
            values = np.stack(batch).astype(np.float32).transpose(0, 2, 3, 1) / 255
            found = pipe(
                prompt=[self.prompt] * len(batch),
                image=values,
                generator=[generator(self.seed) for _ in batch],
                output_type="np",
                **self._settings,
            )
            return pixels(found.images, self.identity.name)

        drawn = self._replicas.map(enlarge, list(full))
        factor = self.factor
        if not drawn:
            return np.empty((0, 3, factor * height, factor * width), np.uint8)
        return np.stack(drawn)[:, :, : factor * height, : factor * width]
