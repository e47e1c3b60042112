"""Tiny settings, pictures and models for tests of Spectral."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.hardware import Hardware
from sfumato.methods.spectral_settings import SpectralConfig
from sfumato.methods.tokens import PublicModel, public_model
from sfumato.methods.told import Told
from sfumato.nets.autoregressive import Condition

CPU = Hardware(torch.device("cpu"), "fp32")
IMAGE = (1, 8, 8)
TINY: dict[str, Any] = {
    "levels": 1,
    "patch": 2,
    "vocabulary": 16,
    "width": 16,
    "layers": 1,
    "heads": 2,
    "rank": 4,
    "batch": 16,
    "steps": 3,
    "warm_steps": 2,
    "warm_batch": 8,
    "chunk": 8,
    "tokenizer": {"width": 16, "layers": 1, "heads": 2, "rounds": 3, "steps": 3, "batch": 8},
    "pretraining": {"steps": 4, "batch": 8},
    "superresolution": {"width": [8, 8], "steps": 4, "batch": 8, "levels": 3},
}


def config(**changes: Any) -> SpectralConfig:
    return SpectralConfig.model_validate(TINY | changes)


def pictures(count: int, seed: int = 0, channels: int = 1, side: int = 8) -> NDArray[np.uint8]:
    """Slopes of light of any direction, with a little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / (side - 1) - 0.5
    a, b, c = random.normal(size=(3, count, channels, 1, 1))
    values = 127 + 70 * (a * x + b * y) + 20 * c + random.normal(size=(count, channels, side, side)) * 4
    return np.clip(values, 0, 255).astype(np.uint8)


@functools.cache
def known(condition: Condition = Condition(), detail: str = "examples") -> PublicModel:  # noqa: B008
    """A public model of 60 pictures."""
    told = None
    if condition.size:
        vectors = torch.randn(60, condition.size, generator=torch.Generator().manual_seed(0))
        told = Told(vectors, torch.arange(60), torch.arange(60), torch.ones(60, dtype=torch.int64))
    settings = config(detail=detail)
    return public_model(settings, IMAGE, lambda: pictures(60), condition, heard=lambda: told, seed=0, hardware=CPU)
