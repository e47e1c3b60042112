"""Texts to images, and images to images near them, by pipelines of `diffusers`; SDXL-Turbo as in SPTI by default.

SPTI (Synthesis via Private Textual Intermediaries, arXiv 2506.07555) renders captions with `stabilityai/sdxl-turbo` in
float16, four steps, without guidance, four images at a time.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from sfumato.errors import UserError
from sfumato.pretrained.huggingface._replicas import Replicas, chosen_devices, chosen_precision
from sfumato.pretrained.huggingface._snapshot import INDEX, Snapshot, find, library, reading, with_article
from sfumato.pretrained.huggingface.captioners import pictures
from sfumato.pretrained.interfaces import Images

SDXL_TURBO = "stabilityai/sdxl-turbo"
TURBO = {"num_inference_steps": 4, "guidance_scale": 0.0}


class Diffusion:
    """An `ImageGenerator` and `ImageVariator`. Untested on GPU and on full-size models.

    The n-th image is drawn with a generator of its own, `seed + n`, on the CPU: it hangs neither on the batch nor on
    the number of devices. Some older models bring a filter of their own, which turns images it dislikes black.

    Args:
        name: a folder or a name on the hub.
        revision: on the hub.
        devices: `auto`, a device, or several, each with a copy of the pipeline.
        precision: `auto` (float32 on a CPU, float16 on GPUs), `fp32`, `fp16` or `bf16`.
        batch: images a call; each batch is filled up.
        steps: of denoising; None is 4 for models distilled to a few steps (`turbo`), else what the pipeline does.
        guidance: strength of guidance by the text; None is 0 for such models, else what the pipeline does.
        size: side of the images, or height and width; None is what the model was trained for.
        prompt: the text where `vary_images` is given none.
    """

    def __init__(
        self,
        name: str = SDXL_TURBO,
        revision: str | None = None,
        devices: str | Sequence[str] = "auto",
        precision: str = "auto",
        batch: int = 4,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | tuple[int, int] | None = None,
        prompt: str = "",
    ) -> None:
        places = chosen_devices(devices)
        dtype = chosen_precision(precision, places, "fp16")
        snapshot = find(name, revision, dtype != torch.float32)
        self.identity = snapshot.identity
        self.prompt = prompt
        self._settings: dict[str, Any] = dict(TURBO) if is_turbo(snapshot) else {}
        if steps is not None:
            self._settings["num_inference_steps"] = steps
        if guidance is not None:
            self._settings["guidance_scale"] = guidance
        if self._settings.get("num_inference_steps", 1) < 1:
            raise UserError(f"{steps} steps were given; give at least 1.")
        auto = library("diffusers").AutoPipelineForText2Image
        self._replicas = Replicas(
            lambda device: pipeline(auto, snapshot, "image generator", dtype).to(device), places, batch
        )
        first = self._replicas.copies[0][0]
        self._size = sides(size, first)

    def generate(self, texts: Sequence[str], seed: int) -> Images:
        """One image a text, uint8 `(N, 3, H, W)`; the n-th is drawn with `seed + n`.

        Raises:
            UserError: too little memory or precision.
        """
        height, width = self._size

        def draw(pipe: Any, _: torch.device, batch: list[tuple[int, str]]) -> list[Images]:
            found = pipe(
                prompt=[text for _, text in batch],
                generator=[generator(number) for number, _ in batch],
                height=height,
                width=width,
                output_type="np",
                **self._settings,
            )
            return pixels(found.images, self.identity.name)

        drawn = self._replicas.map(draw, [(seed + number, text) for number, text in enumerate(texts)])
        return np.stack(drawn) if drawn else np.empty((0, 3, height, width), np.uint8)

    def vary_images(self, images: Images, seed: int, strength: float, texts: Sequence[str] | None = None) -> Images:
        """One image near each given one, uint8 `(N, 3, H, W)` of the size of `generate`; the n-th with `seed + n`.

        Args:
            images: uint8 `(N, 1 or 3, any H, any W)`; resized by Pillow's Lanczos filter.
            seed: of public randomness.
            strength: share of the denoising steps that is done anew, in (0, 1]. At least one step is always done: where
                `strength` times the steps is less, the schedule is made of more steps.
            texts: what the images show; None is the `prompt` of the model.

        Raises:
            UserError: not such images, texts or strength; too little memory; the model draws from texts alone.
        """
        if not 0 < strength <= 1:
            raise UserError(f"A strength of {strength} was given; give a number above 0, and at most 1.")
        prompts = [self.prompt] * len(images) if texts is None else list(texts)
        if len(prompts) != len(images):
            raise UserError(f"{len(prompts)} texts were given for {len(images)} images; give one for each.")
        height, width = self._size
        near = [image.resize((width, height), Image.Resampling.LANCZOS) for image in pictures(images)]
        automatic = library("diffusers").AutoPipelineForImage2Image

        def vary(pipe: Any, _: torch.device, batch: list[tuple[int, str, Image.Image]]) -> list[Images]:
            try:
                varying = quiet(automatic.from_pipe(pipe))
            except ValueError as error:
                raise UserError(
                    f"{self.identity.name} draws from texts alone; choose a model that can vary."
                ) from error
            found = varying(
                prompt=[text for _, text, _ in batch],
                image=[image for _, _, image in batch],
                generator=[generator(number) for number, _, _ in batch],
                strength=strength,
                output_type="np",
                **self._settings | {"num_inference_steps": enough_steps(self._steps(varying), strength)},
                **({"height": height, "width": width} if has_parameter(varying, "height") else {}),
            )
            return pixels(found.images, self.identity.name)

        items = [(seed + number, text, image) for number, (text, image) in enumerate(zip(prompts, near, strict=True))]
        drawn = self._replicas.map(vary, items)
        return np.stack(drawn) if drawn else np.empty((0, 3, height, width), np.uint8)

    def _steps(self, pipe: Any) -> int:
        return int(self._settings.get("num_inference_steps") or default_of(pipe, "num_inference_steps"))


def is_turbo(snapshot: Snapshot) -> bool:
    """Whether a model was distilled to a few steps without guidance: it says so, or its schedule has their spacing."""
    schedule = snapshot.json("scheduler/scheduler_config.json")
    euler = str(schedule.get("_class_name", "")).startswith("Euler") and schedule.get("timestep_spacing") == "trailing"
    return "turbo" in snapshot.identity.name.lower() or euler


def pipeline(auto: Any, snapshot: Snapshot, kind: str, dtype: torch.dtype) -> Any:
    """A pipeline of `diffusers`, none of whose parts is code of the model.

    Raises:
        UserError: it is not such a pipeline.
    """
    index = snapshot.json(INDEX)
    if not index:
        raise UserError(
            f"{snapshot.identity.name} cannot be loaded as {with_article(kind)}: without {INDEX}, it is no pipeline."
        )
    known = dir(library("diffusers").pipelines)
    parts = [kind for kind in index.values() if isinstance(kind, list) and kind[0] is not None]
    foreign = sorted({str(part[0]) for part in parts} - {"diffusers", "transformers", *known})
    if foreign or not isinstance(index.get("_class_name"), str):
        code = ", ".join(foreign) or index.get("_class_name")
        raise UserError(f"{snapshot.identity.name} asks for code from elsewhere ({code}), which is never run.")
    with reading(snapshot, kind):
        return quiet(auto.from_pretrained(snapshot.folder, dtype=dtype, **snapshot.loading))


def quiet(pipe: Any) -> Any:
    """A pipeline without progress bars and without marks in the pixels."""
    pipe.set_progress_bar_config(disable=True)
    if hasattr(pipe, "watermark"):
        pipe.watermark = None
    return pipe


def sides(size: int | tuple[int, int] | None, pipe: Any) -> tuple[int, int]:
    """Height and width of the images.

    Raises:
        UserError: not multiples of 8, which the models work in.
    """
    if size is None:
        scale = getattr(pipe, "vae_scale_factor", 8)
        denoiser: Any = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        trained: Any = getattr(pipe, "default_sample_size", None) or getattr(denoiser.config, "sample_size", 64)
        size = trained * scale if isinstance(trained, int) else (trained[0] * scale, trained[1] * scale)
    height, width = (size, size) if isinstance(size, int) else size
    if height < 8 or width < 8 or height % 8 or width % 8:
        raise UserError(f"A size of {height} x {width} was given; give multiples of 8.")
    return height, width


def enough_steps(steps: int, strength: float) -> int:
    """`steps`, or as many more as it takes that `strength` of them is at least one."""
    steps = max(steps, math.floor(1 / strength))
    while int(steps * strength) < 1:
        steps += 1
    return steps


def has_parameter(pipe: Any, parameter: str) -> bool:
    """Whether a pipeline can be given a parameter."""
    return parameter in inspect.signature(pipe.__call__).parameters


def default_of(pipe: Any, parameter: str) -> Any:
    """What a pipeline does where a parameter is not given."""
    return inspect.signature(pipe.__call__).parameters[parameter].default


def generator(seed: int) -> torch.Generator:
    """On the CPU, so that it draws the same for every device."""
    return torch.Generator().manual_seed(seed % 2**63)


def pixels(images: Any, name: str) -> list[Images]:
    """Floats 0 to 1 `(N, H, W, 3)` as uint8 images `(3, H, W)`.

    Raises:
        UserError: some are not numbers.
    """
    values = np.asarray(images, np.float32)
    if not np.isfinite(values).all():
        raise UserError(f"{name} overflows in this precision; give bf16 or fp32.")
    return list(np.rint(values.clip(0, 1) * 255).astype(np.uint8).transpose(0, 3, 1, 2))
