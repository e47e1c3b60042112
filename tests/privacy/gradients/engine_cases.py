"""Models and losses to try the gradient engine on, and the precisions and kernels to try it with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sfumato.nets.autoregressive import Condition, ScaleGPT
from sfumato.nets.ddpmpp import DDPMpp, DDPMppShape
from sfumato.nets.diffusion import Denoiser
from sfumato.nets.transformer import GPT, PatchTransformer, TransformerShape
from sfumato.nets.unet import UNet, UNetShape
from sfumato.privacy.gradients import kernels
from sfumato.privacy.gradients.engine import Clipping

FLAT = Clipping(0.3, "flat")
Losses = Callable[[slice], Tensor]
SETTINGS = [
    *(("fp32", name) for name in ("off", "avx2", "avx512")[: kernels.level("fp32") + 1]),
    *(("bf16", name) for name in ("off", "avx512", "amx")[: kernels.level() + 1]),
]
"""Precision, and the value of SFUMATO_KERNELS."""


def of_settings(precision_and_level: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    precision, level = precision_and_level
    monkeypatch.setenv("SFUMATO_KERNELS", level)
    return precision


class Small(nn.Module):
    """Convolutions with stride, padding and 1x1 kernels, linear layers on tokens and rows."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, padding=1, bias=bias)
        self.second = nn.Conv2d(5, 4, (2, 3), stride=(2, 1), padding=(0, 1))
        self.third = nn.Conv2d(4, 3, 1)
        self.token = nn.Linear(3, 6, bias=bias)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = self.third(torch.tanh(self.second(h)))
        h = torch.tanh(self.token(h.flatten(2).transpose(1, 2)))
        return self.last(h.mean(1)).square().sum(1)


class Learned(nn.Module):
    """Parameters of its own: a position each, a scale of all."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.places = nn.Parameter(0.1 * torch.randn(positions, width))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.places) * self.scale


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter (Hu et al. 2022)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Grouped(nn.Module):
    """Convolutions in groups, norms over channels and groups of them."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.GroupNorm(2, 6)
        self.middle = nn.Conv2d(6, 9, (1, 3), stride=(2, 3), padding=(0, 2), groups=3)
        self.last = nn.Conv2d(9, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.middle(torch.relu(self.norm(self.inlet(x)))))).square().sum((1, 2, 3))


class Tokens(nn.Module):
    """Embedded tokens, learned positions, both norms, an adapter."""

    def __init__(self, tokens: int, length: int, width: int) -> None:
        super().__init__()
        self.tokens, self.learned = nn.Embedding(tokens, width), Learned(length, width)
        self.norm, self.adapted = nn.LayerNorm(width), Adapted(width, 2)
        self.scale, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.adapted(self.norm(self.learned(self.tokens(tokens))))
        return self.head(self.scale(torch.tanh(h))).square().sum((1, 2))


def model_and_losses(kind: str, count: int, seed: int) -> tuple[nn.Module, Losses]:
    """A model with random weights, and the losses of a part of `count` random rows."""
    torch.manual_seed(seed)
    if kind in ("small", "grouped"):
        model, x = (Small() if kind == "small" else Grouped()), torch.randn(count, 2, 6, 4)
        return model, lambda part: model(x[part])
    if kind == "tokens":
        tokens_model, tokens = Tokens(4, 7, 8), torch.randint(4, (count, 7))
        return tokens_model, lambda part: tokens_model(tokens[part])
    if kind == "gpt":
        gpt, tokens = GPT(11, TransformerShape(32, 2, 4, 12)), torch.randint(11, (count, 10))
        return gpt, lambda part: gpt.losses(tokens[part])
    if kind == "scales":
        scales, tokens = (
            ScaleGPT(9, 2, 5, TransformerShape(32, 1, 4), Condition("class", 3)),
            torch.randint(9, (count, 10)),
        )
        return scales, lambda part: scales.losses(tokens[part], torch.arange(count)[part] % 4 - 1)
    if kind == "patches":
        patches, images = PatchTransformer(3, 2, TransformerShape(16, 2, 2, 12)), torch.randn(count, 3, 4, 6)
        return patches, lambda part: (patches(images[part]) - images[part]).square().mean((1, 2, 3))
    network: UNet | DDPMpp = UNet(UNetShape(4, 4, 10, (16, 24), (2, 2)))
    if kind == "published":
        network = DDPMpp(DDPMppShape(4, 14, 10, 8, (1, 2), (7,), 1))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.08)
    clean, normal, guide = torch.randn(3, count, 4, 14, 14)
    level, labels, denoiser = torch.rand(count) + 0.1, torch.arange(count) % 10, Denoiser(network, 0.5)

    def losses(part: slice) -> Tensor:
        seen = guide[part] if kind == "unet" else None
        return denoiser.loss(clean[part], normal[part], level[part], labels[part], seen)

    return network, losses


KINDS = ("small", "grouped", "tokens", "gpt", "patches", "unet")
ALL_KINDS = (*KINDS, "scales", "published")


def everyone(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)
