"""Diffusion after Karras et al. 2022 ("EDM"): preconditioning, training loss and samplers, on pixels or Haar bands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


class Denoiser(NamedTuple):
    """EDM's preconditioned denoiser `D(x; s) = c_skip x + c_out F(c_in x, ln(s)/4)` around a network F (their eq. 7).

    Attributes:
        network: the trained function F.
        data_std: standard deviation that the data are assumed to have, a public constant.
    """

    network: Network
    data_std: float

    def __call__(self, noisy: Tensor, level: Tensor, labels: Tensor | None, guide: Tensor | None) -> Tensor:
        """Estimates clean bands `(N, C, h, w)` from noisy ones at noise levels `(N,)`."""
        s = level.view(-1, 1, 1, 1)
        total = (s**2 + self.data_std**2).sqrt()
        output = self.network(noisy / total, level.log() / 4, labels, guide).to(noisy.dtype)
        return (self.data_std / total) ** 2 * noisy + (s * self.data_std / total) * output

    def loss(self, clean: Tensor, normal: Tensor, level: Tensor, labels: Tensor | None, guide: Tensor | None) -> Tensor:
        """Weighted squared error of each row (EDM table 1), shape `(N,)`.

        Args:
            clean: bands `(N, C, h, w)`.
            normal: standard normal draws of the same shape.
            level: noise levels `(N,)`, positive.
            labels: `(N,)` or None.
            guide: `(N, G, h, w)` or None.
        """
        estimate = self(clean + level.view(-1, 1, 1, 1) * normal, level, labels, guide)
        weight = (level**2 + self.data_std**2) / (level * self.data_std) ** 2
        return weight * (estimate - clean).square().flatten(1).mean(1)


def training_levels(normal: Tensor) -> Tensor:
    """Noise levels to train at, `(N,)`, from standard normal draws: log-normal (EDM table 1)."""
    return torch.exp(1.2 * normal - 1.2)


def noise_levels(steps: int, lowest: float, highest: float, bend: float = 7.0) -> Tensor:
    """The sampling schedule of EDM eq. 5: `steps` levels falling from `highest` to `lowest`, then 0."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (highest ** (1 / bend) + ramp * (lowest ** (1 / bend) - highest ** (1 / bend))) ** bend
    return torch.cat((levels, torch.zeros(1, dtype=torch.float64))).float()


class Sampler(NamedTuple):
    """Constants of sampling (EDM, algorithm 2); without churn it is deterministic but for its start.

    Attributes:
        steps: noise levels visited; the network is called `2 steps - 1` times, twice that with guidance.
        lowest: last positive noise level.
        highest: first noise level.
        churn: noise added anew over all steps, relative to the level (S_churn); 0 for the deterministic sampler.
        churn_from: lowest level at which noise is added.
        churn_to: highest such level.
        guidance: how far estimates move from "no label" beyond the label's (Ho and Salimans 2022); 0 for none.
    """

    steps: int = 18
    lowest: float = 0.02
    highest: float = 40.0
    churn: float = 0.0
    churn_from: float = 0.0
    churn_to: float = math.inf
    guidance: float = 0.0


@torch.inference_mode()
def sample(
    denoiser: Denoiser,
    start: Tensor,
    labels: Tensor | None,
    guide: Tensor | None,
    sampler: Sampler,
    generator: torch.Generator,
) -> Tensor:
    """Second-order sampler (Heun's method on the probability-flow ODE; EDM algorithms 1 and 2).

    Args:
        denoiser: the trained denoiser.
        start: standard normal draws `(N, C, h, w)`.
        labels: `(N,)` or None; guidance needs them.
        guide: `(N, G, h, w)` or None.
        sampler: constants.
        generator: of the noise that churn adds.

    Returns:
        Clean pictures or bands `(N, C, h, w)`.
    """

    def estimate(x: Tensor, level: Tensor) -> Tensor:
        levels = level.expand(len(x))
        clean = denoiser(x, levels, labels, guide)
        if sampler.guidance and labels is not None:
            clean = clean + sampler.guidance * (clean - denoiser(x, levels, torch.full_like(labels, -1), guide))
        return clean

    levels = noise_levels(sampler.steps, sampler.lowest, sampler.highest).to(start.device)
    stir = min(sampler.churn / sampler.steps, math.sqrt(2) - 1)
    x = start * levels[0]
    for now, then in itertools.pairwise(levels):
        if stir and sampler.churn_from <= float(now) <= sampler.churn_to:
            fresh = torch.randn(x.shape, generator=generator).to(x.device)
            x, now = x + now * math.sqrt((1 + stir) ** 2 - 1) * fresh, now * (1 + stir)
        slope = (x - estimate(x, now)) / now
        euler = x + (then - now) * slope
        if then > 0:
            slope = (slope + (euler - estimate(euler, then)) / then) / 2
        x = x + (then - now) * slope
    return x
