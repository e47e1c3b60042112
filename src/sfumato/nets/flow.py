"""A flow-matching transformer on the latents of small drawings, guided by text and by a neighbour.

The network is a diffusion transformer (Peebles and Xie 2023, "Scalable diffusion models with transformers") that learns
the straight flow from noise to a latent (Lipman et al. 2023, "Flow matching for generative modeling"). It is
semi-parametric (Blattmann et al. 2022, "Retrieval-augmented diffusion models"): beside the noisy latent it sees the
latent of a known picture, and a label tells how the wanted picture relates to it. So a network of a few million
parameters need not know what a trombone looks like; it learns how pictures vary.

Attention is written as two products, because on processors the fused kernel is slower at these sizes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RELATIONS = ("none", "variant", "kind")
"""How a picture relates to its neighbour: none is shown; it is the same drawing, altered; it is another of its kind."""

FREQUENCIES = 64  # of the embedding of time


class FlowShape(NamedTuple):
    """The public constants of a `FlowTransformer`.

    Attributes:
        channels: of a latent.
        grid: side of a latent, in vectors.
        text: length of a text embedding.
        colours: how many colours a text can name.
        styles: how many hands a drawing can be by.
        width: of the residual stream.
        layers: transformer blocks.
        heads: of attention.
        context: vectors that the text is given as.
    """

    channels: int = 24
    grid: int = 8
    text: int = 384
    colours: int = 12
    styles: int = 6
    width: int = 256
    layers: int = 6
    heads: int = 4
    context: int = 4


class Condition(NamedTuple):
    """What guides the flow of N latents.

    Attributes:
        text: `(N, text)`; zeros for no text.
        colour: `(N,)` integers; 0 for no colour.
        style: `(N,)` integers; 0 for any style.
        relation: `(N,)` indices into `RELATIONS`.
        neighbour: `(N, channels, grid, grid)`; zeros where there is none.
    """

    text: Tensor
    colour: Tensor
    style: Tensor
    relation: Tensor
    neighbour: Tensor


class _Block(nn.Module):
    """Attention and a squared-ReLU layer, each behind a norm with a scale and shift (adaLN-single, without gates)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.table = nn.Parameter(torch.zeros(4, width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        shift1, scale1, shift2, scale2 = (film + self.table).unsqueeze(2).unbind(1)
        x = x + self.attend(torch.addcmul(shift1, _norm(x), scale1))
        hidden = F.relu(self.up(torch.addcmul(shift2, _norm(x), scale2)))
        output: Tensor = x + self.down(hidden * hidden)
        return output

    def attend(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        parts = self.qkv(x).view(n, length, 3 * self.heads, width // self.heads).transpose(1, 2).contiguous()
        q, k, v = parts.chunk(3, dim=1)
        weights = torch.softmax((_norm(q) @ _norm(k).transpose(-1, -2)) * q.shape[-1] ** -0.5, dim=-1)
        output: Tensor = self.out((weights @ v).transpose(1, 2).reshape(n, length, width))
        return output


class FlowTransformer(nn.Module):
    """The velocity of the flow at a noisy latent. Items of a batch never meet."""

    def __init__(self, shape: FlowShape) -> None:
        super().__init__()
        self.shape = shape
        width, cells = shape.width, shape.grid**2
        self.inlet = nn.Linear(2 * shape.channels, width)
        self.place = nn.Parameter(torch.randn(cells, width) * 0.02)
        self.colour = nn.Embedding(shape.colours + 1, width)
        self.style = nn.Embedding(shape.styles + 1, width)
        self.relation = nn.Embedding(len(RELATIONS), width)
        self.context = nn.Linear(shape.text, shape.context * width)
        self.condition = nn.Sequential(
            nn.Linear(shape.text + 2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.film = nn.Linear(width, 4 * width)
        self.blocks = nn.ModuleList(_Block(width, shape.heads) for _ in range(shape.layers))
        self.outlet = nn.Linear(width, shape.channels)
        for table in (self.colour, self.style, self.relation):
            nn.init.normal_(table.weight, std=0.2)
        nn.init.normal_(self.film.weight, std=0.01)
        with torch.no_grad():  # scales begin at 1, shifts at 0
            self.film.bias.copy_(torch.tensor([0.0, 1, 0, 1]).repeat_interleave(width))
        nn.init.zeros_(self.outlet.weight)
        nn.init.zeros_(self.outlet.bias)

    def forward(self, x: Tensor, time: Tensor, given: Condition) -> Tensor:
        """The velocity, from noise at time 0 to a latent at time 1.

        Args:
            x: `(N, channels, grid, grid)`, the latent mixed with noise.
            time: `(N,)` in [0, 1].
            given: what the latent is to be.

        Returns:
            As `x`.
        """
        n = len(x)
        features = torch.cat((given.text, _waves(time.float()).to(given.text.dtype)), dim=1)
        known = self.condition(features) + self.colour(given.colour) + self.style(given.style)
        known = known + self.relation(given.relation)
        film = self.film(F.silu(known)).view(n, 4, -1)
        tokens = self.inlet(torch.cat((x, given.neighbour), dim=1).flatten(2).transpose(1, 2)) + self.place
        context = self.context(given.text).view(n, self.shape.context, -1) + known[:, None]
        h = torch.cat((tokens, context), dim=1)
        for block in self.blocks:
            h = block(h, film)
        velocity = self.outlet(_norm(h[:, : self.shape.grid**2]))
        return velocity.transpose(1, 2).reshape(x.shape)  # type: ignore[no-any-return]


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def _waves(time: Tensor) -> Tensor:
    """Sines and cosines of a time in [0, 1], `(N, 2 FREQUENCIES)`."""
    speeds = torch.exp(torch.linspace(0.0, math.log(200.0), FREQUENCIES, device=time.device))
    angles = time[:, None] * speeds * math.pi
    return torch.cat((angles.sin(), angles.cos()), dim=1)
