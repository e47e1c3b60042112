"""One-run auditing with inserted images: the attacker sees what a run releases, nothing of the run itself.

Canaries are images of random blocks, put into a folder of stand-ins by coins, and the folder goes through the product
from intake to model. Each canary is scored by what was released: by likelihood where the model has one, by the loss
that the network was trained on, else by the distance to the nearest image made. Such bounds are usually loose, often 0
even without protection: small models do not remember single images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sfumato import run
from sfumato.audit.bounds import OneRun
from sfumato.audit.canaries import Report, stricter_claim
from sfumato.audit.standins import DATASET, Picture, coins
from sfumato.config import RunConfig, validated
from sfumato.data.folder import METADATA
from sfumato.errors import InternalError
from sfumato.measure.features import Pixels, features
from sfumato.measure.neighbours import nearest
from sfumato.methods.coarse import coarse_network, condition_of
from sfumato.methods.denoising import View, row_losses
from sfumato.methods.privimage_model import PrivImageModel, guides_of
from sfumato.methods.spectral_model import SpectralModel
from sfumato.nets.autoregressive import UNCONDITIONAL
from sfumato.privacy.captions import Describe
from sfumato.privacy.noise import Noise
from sfumato.workflows import workflow

DRAWS = 16
"""Noise draws for the loss of a canary, the same for all of them."""
Scores = NDArray[np.float64]


def random_blocks(count: int, shape: tuple[int, int, int], label: str, seed: int, block: int = 4) -> list[Picture]:
    """Canaries: random colours in blocks, unlike anything else and unlike each other."""
    channels, height, width = shape
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        small = random.integers(0, 256, (channels, -(-height // block), -(-width // block)), dtype=np.uint8)
        pixels = small.repeat(block, 1).repeat(block, 2)[:, :height, :width]
        found.append(Picture(f"inserted-{number:06d}.png", label, np.ascontiguousarray(pixels)))
    return found


def black_box(
    settings: Mapping[str, Any],
    pictures: Sequence[Picture],
    canaries: Sequence[Picture],
    folder: Path,
    noise: Noise,
    *,
    models: Mapping[str, Any] = MappingProxyType({}),
    report: Report = lambda *_: None,
) -> OneRun:
    """Makes a run on stand-ins with canaries among them, and guesses from its model who was there.

    Args:
        settings: of the run; data set and ledger are the audit's own.
        pictures: stand-ins; whoever they are, the claim is about the canaries.
        canaries: m, put in by coins; with captions, as stand-ins, where the run is told such.
        folder: temporary.
        noise: `Noise`, or `TestNoise` for a run without protection.
        models: a user's own model objects.
        report: progress.
    """
    config = validated({**settings, "dataset": DATASET, "ledger": str(folder / "ledger.jsonl")})
    if any(canary.pixels.shape != config.image.spec().shape for canary in canaries):
        raise InternalError(f"canaries must have the shape of the run's images, {config.image.spec().shape}")
    inside = coins(len(canaries))
    private = folder / "private"
    write([*pictures, *(one for one, chosen in zip(canaries, inside, strict=True) if chosen)], private)
    started = run.prepare(config, private, None, folder / "run", run.make_plan(config), models)
    model = run.train(started, report, noise=noise)
    scores = scores_of(started, model, config, canaries)
    return OneRun.of(scores, inside, config.epsilon, config.delta, stricter_claim(started.plan))


def write(pictures: Sequence[Picture], folder: Path) -> None:
    """Writes pictures as PNG files in class folders, and their captions beside them, if there are any."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(picture.text for picture in pictures):
        names = [f"{picture.label}/{picture.identity}" if picture.label else picture.identity for picture in pictures]
        lines = [{"file_name": name, "text": one.text} for name, one in zip(names, pictures, strict=True)]
        (folder / METADATA).write_text("\n".join(map(json.dumps, lines)))
    for picture in pictures:
        place = folder / (picture.label or "")
        place.mkdir(parents=True, exist_ok=True)
        pixels = picture.pixels[0] if len(picture.pixels) == 1 else picture.pixels.transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(place / picture.identity)


def scores_of(started: run.Run, model: Any, config: RunConfig, canaries: Sequence[Picture]) -> Scores:
    """The higher, the likelier the canary was there; `(m,)`."""
    pixels = np.stack([canary.pixels for canary in canaries])
    classes = config.classes or ()
    labels = torch.tensor([classes.index(c.label) if c.label in classes else -1 for c in canaries])
    if isinstance(model, SpectralModel):
        if (describe := workflow(config.method).describe(started.work)) is not None:
            model = hearing(model, describe, [canary.text[0] if canary.text else "" for canary in canaries])
            labels = torch.tensor([number if canary.text else -1 for number, canary in enumerate(canaries)])
        return by_likelihood(model, torch.from_numpy(pixels), labels)
    if isinstance(model, PrivImageModel):
        return by_loss(model, torch.from_numpy(pixels), labels)
    made = run.draw(started, model, config.count, config.seed).pixels
    return by_distance(made, pixels)


def hearing(model: SpectralModel, describe: Describe, captions: Sequence[str]) -> SpectralModel:
    """The model with captions in place of its prompts: label n tells it the n-th."""
    return replace(model, vectors=torch.from_numpy(describe(captions)))


@torch.inference_mode()
def by_likelihood(model: SpectralModel, pixels: Tensor, labels: Tensor) -> Scores:
    """How much likelier the coarse tokens became in private training."""
    tokens = model.public.tokenizer.encode(pixels, 1)
    before = coarse_network(model.public.network, UNCONDITIONAL)
    told = condition_of(model.coarse.condition, labels, model.vectors)
    gain = before.losses(tokens, torch.full_like(labels, -1)) - model.coarse.losses(tokens, told)
    found: Scores = gain.double().numpy()
    return found


@torch.inference_mode()
def by_loss(model: PrivImageModel, pixels: Tensor, labels: Tensor) -> Scores:
    """How much better a canary is denoised than its mirror images, which are as hard and were never there.

    The mirror images calibrate the loss as neighbours do in Mattern et al. 2023 ("Membership inference attacks against
    language models via neighbourhood comparison").
    """
    mirrored = [_denoising_loss(model, pixels.flip(sides), labels) for sides in ([2], [3], [2, 3])]
    found: Scores = np.mean(mirrored, axis=0) - _denoising_loss(model, pixels, labels)
    return found


def _denoising_loss(model: PrivImageModel, pixels: Tensor, labels: Tensor) -> Scores:
    """Over the same draws for every canary."""
    generator = torch.Generator().manual_seed(0)  # the attacker's own
    view, guides = View.of(model.network.shape), guides_of(model.prototypes, model.network.shape)
    pictures = pixels.float() / 127.5 - 1
    guide = None if guides is None else guides[labels.clamp(min=0)]
    total = torch.zeros(len(pixels), dtype=torch.float64)
    for _ in range(DRAWS):
        normal = torch.randn(1, *view.size(model.image), generator=generator).expand(len(pixels), -1, -1, -1)
        spread = torch.randn(1, generator=generator).expand(len(pixels))
        total += row_losses(model.network, pictures, labels, guide, normal, spread).double()
    return total.numpy()


def by_distance(made: NDArray[np.uint8], pixels: NDArray[np.uint8]) -> Scores:
    """Minus the distance to the nearest image made, both reduced to 16 x 16 pixels."""
    embedder = Pixels()
    return -nearest(features(pixels, embedder), features(made, embedder)).distances
