"""Public pretraining: the network of a run learns on public images what the private task will ask of it.

The task is to make an object out of a blurred mean. In private training that mean is the noisy mean of a class; here it
is the mean of a small group of public images that look alike, so the network learns to trust a blurred guide and to
sharpen it. The condition is the private class for which the semantic query chose the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sfumato.hardware import Hardware
from sfumato.methods.checkpoint import Checkpoint
from sfumato.methods.clusters import cluster
from sfumato.methods.curves import Told
from sfumato.methods.denoising import Network, Shape, View, network_of, train_openly

LEAST_IN_GROUP = 10  # images, on average, whose mean is a guide


class PretrainingConfig(BaseModel):
    """Settings of public pretraining.

    Attributes:
        steps: of Adam; 0 leaves pretraining out.
        batch: pictures a step.
        rate: peak of the learning rate.
        guides: groups of pictures that look alike, whose means are the guides.
        label_dropout: share of the pictures shown without their condition.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(600, ge=0)
    batch: int = Field(256, ge=1)
    rate: float = Field(2e-3, gt=0)
    guides: int = Field(150, ge=1, le=10_000)
    label_dropout: float = Field(0.1, ge=0, le=1)


@dataclass(frozen=True)
class Examples:
    """Public pictures as pretraining sees them.

    Attributes:
        pixels: uint8 `(N, C, H, W)`.
        labels: private class that chose the picture, int64 `(N,)`; -1 in an unconditional run.
        groups: int64 `(N,)`, index into `means`.
        means: of the groups, `(groups, C, H, W)` in [-1, 1].
    """

    pixels: Tensor
    labels: Tensor
    groups: Tensor
    means: Tensor


def chosen_examples(
    config: PretrainingConfig,
    pixels: NDArray[np.uint8],
    public: NDArray[np.int64],
    chosen: NDArray[np.int64],
    conditional: bool,
    seed: int,
) -> Examples:
    """The pictures of the chosen public classes, once for every private class that chose them.

    Args:
        config: settings.
        pixels: all public pictures, uint8 `(N, C, H, W)`.
        public: public class of each, int64 `(N,)`.
        chosen: public classes by private class, `(private classes, kept)`.
        conditional: whether the network is told the private class.
        seed: public.
    """
    members = [np.flatnonzero(np.isin(public, row)) for row in chosen]
    picked = np.concatenate(members)
    labels = np.repeat(np.arange(len(chosen)) if conditional else np.full(len(chosen), -1), list(map(len, members)))
    return _with_guides(config, pixels[picked], labels, seed)


def lot_of_examples(config: PretrainingConfig, pixels: NDArray[np.uint8], share: float, seed: int) -> Examples:
    """A share of the public pictures, drawn by lot, without a condition; for comparison with chosen ones.

    Args:
        config: settings.
        pixels: all public pictures, uint8 `(N, C, H, W)`.
        share: of them, in (0, 1].
        seed: public.
    """
    count = max(1, round(share * len(pixels)))
    picked = np.sort(np.random.default_rng(seed).permutation(len(pixels))[:count])
    return _with_guides(config, pixels[picked], np.full(count, -1), seed)


def _with_guides(
    config: PretrainingConfig, pixels: NDArray[np.uint8], labels: NDArray[np.int64], seed: int
) -> Examples:
    pictures = torch.from_numpy(pixels)
    groups = torch.from_numpy(cluster(pixels, max(1, min(config.guides, len(pixels) // LEAST_IN_GROUP)), seed))
    sums = torch.zeros(int(groups.max()) + 1, *pictures.shape[1:]).index_add_(0, groups, _scaled(pictures))
    means = sums / torch.bincount(groups)[:, None, None, None]
    return Examples(pictures, torch.from_numpy(labels), groups, means)


def pretrain(
    config: PretrainingConfig,
    shape: Shape,
    examples: Examples,
    *,
    seed: int,
    hardware: Hardware,
    told: Told = lambda *_: None,
    unfinished: Path | None = None,
    facts: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[int, Network]]:
    """Trains a new network; yields steps and the network as it is.

    Args:
        config: settings.
        shape: of the network.
        examples: public pictures.
        seed: of weights, batches and noise; all public.
        hardware: where to compute.
        told: of every loss.
        unfinished: file for what there is from time to time; if it is there, the training goes on from it.
        facts: its metadata.
    """
    network, view = network_of(shape, seed).to(hardware.device), View.of(shape)
    guides = view.encode(examples.means) if view.guided else None
    generator = torch.Generator().manual_seed(seed)
    left = {"order": torch.empty(0, dtype=torch.long)}  # of the pictures, in this epoch
    checkpoint = Checkpoint(unfinished, {"network": network}, generator, left, facts)
    checkpoint.opens("pretraining")

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        order = left["order"]
        while True:
            while len(order) < config.batch:
                order = torch.cat((order, torch.randperm(len(examples.pixels), generator=generator)))
            part, order = order[: config.batch], order[config.batch :]
            left["order"] = order
            hidden = torch.rand(len(part), generator=generator) < config.label_dropout
            labels = torch.where(hidden, -1, examples.labels[part])
            shown = None if guides is None else guides[examples.groups[part]]
            yield _scaled(examples.pixels[part]), labels, shown

    for step in train_openly(
        network,
        batches(),
        steps=config.steps,
        rate=config.rate,
        generator=generator,
        hardware=hardware,
        told=told,
        checkpoint=checkpoint,
    ):
        yield step, network


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1
