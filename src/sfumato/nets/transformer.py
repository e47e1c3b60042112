"""Transformers made for private training: every trained parameter sits in a layer that maps one tensor to one tensor.

Rows never meet, no buffer changes in `forward`, no weight is used twice (input and output embeddings are not tied), and
positions are looked up row by row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nets.attention import attention, plain_attention, split
from sfumato.nets.entropy import mean_cross_entropy


class TransformerShape(NamedTuple):
    """The public constants of a transformer.

    Attributes:
        width: of the residual stream.
        layers: blocks.
        heads: of attention; `width` is a multiple of it.
        positions: longest sequence.
    """

    width: int = 256
    layers: int = 6
    heads: int = 8
    positions: int = 256


class Memory:
    """Keys and values of one block for the positions that it has seen, so that each is computed once."""

    def __init__(self, positions: int) -> None:
        """`positions`: the most that it will hold."""
        self._positions, self._seen = positions, 0
        self._held: tuple[Tensor, Tensor] | None = None

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in those of further positions, `(N, heads, t, d)`; returns all of them."""
        if self._held is None:
            n, heads, _, size = k.shape
            self._held = k.new_empty(n, heads, self._positions, size), v.new_empty(n, heads, self._positions, size)
        begin, self._seen = self._seen, self._seen + k.shape[2]
        keys, values = self._held
        keys[:, :, begin : self._seen], values[:, :, begin : self._seen] = k, v
        return keys[:, :, : self._seen], values[:, :, : self._seen]


class Block(nn.Module):
    """Attention and a two-layer network, each after a norm and around an identity path (Xiong et al. 2020)."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, hidden: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """`(N, T, width)` to the same.

        Args:
            x: the residual stream.
            hidden: booleans `(T, T)`, true where a position does not see another; in place of the causal mask.
            memory: keys and values of what came before x, to which those of x are added.
        """
        qkv: Tensor = self.qkv(self.norm1(x))
        if hidden is None and memory is None:
            mixed = attention(qkv, self.heads, self.causal)
        else:
            q, k, v = split(qkv, self.heads)
            if memory is not None:
                k, v = memory.extended(k, v)
            mixed = plain_attention(q, k, v, self.causal, hidden).transpose(1, 2).reshape(x.shape)
        x = x + self.project(mixed)
        output: Tensor = x + self.contract(F.gelu(self.expand(self.norm2(x))))
        return output


def stream(x: Tensor) -> Tensor:
    """The residual stream, as wide as autocast computes: a step is mostly memory that moves, and this is much of it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def initialise(model: nn.Module, layers: int) -> None:
    """GPT-2's initial weights: normal, and smaller where a block adds to the residual stream."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            last = name.endswith(("project", "contract"))
            nn.init.normal_(module.weight, std=0.02 / (2 * layers) ** 0.5 if last else 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class GPT(nn.Module):
    """Predicts each token from those before it (Radford et al. 2019)."""

    def __init__(self, vocabulary: int, shape: TransformerShape) -> None:
        super().__init__()
        self.shape, self.vocabulary = shape, vocabulary
        self.tokens = nn.Embedding(vocabulary, shape.width)
        self.places = nn.Embedding(shape.positions, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, True) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, vocabulary)
        initialise(self, shape.layers)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(N, T)` integers in [0, vocabulary) to logits `(N, T, vocabulary)` of the next token."""
        x = stream(self.tokens(tokens) + self.places(positions(tokens)))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def losses(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of each row's next tokens, `(N,)`, for `(N, T + 1)` tokens."""
        return mean_cross_entropy(self(tokens[:, :-1].contiguous()), tokens[:, 1:])


class PatchTransformer(nn.Module):
    """Maps pictures to pictures of the same size, patch by patch, with full attention (Dosovitskiy et al. 2021)."""

    def __init__(self, channels: int, patch: int, shape: TransformerShape) -> None:
        """
        Args:
            channels: of the pictures.
            patch: side of a patch in pixels.
            shape: `positions` bounds the number of patches.
        """
        super().__init__()
        self.patch = patch
        self.inlet = nn.Conv2d(channels, shape.width, patch, stride=patch)
        self.places = nn.Embedding(shape.positions, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, False) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.outlet = nn.Linear(shape.width, channels * patch**2)
        initialise(self, shape.layers)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)`, sides multiples of the patch's, to the same."""
        n, _, height, width = x.shape
        h = self.inlet(x).flatten(2).transpose(1, 2)
        h = stream(h + self.places(positions(h[:, :, 0])))
        for block in self.blocks:
            h = block(h)
        lines, columns = height // self.patch, width // self.patch
        pixels = self.outlet(self.norm(h)).view(n, lines, columns, -1, self.patch, self.patch)
        output: Tensor = pixels.permute(0, 3, 1, 4, 2, 5).reshape(n, -1, height, width)
        return output


def positions(x: Tensor, begin: int = 0) -> Tensor:
    """Positions of each row of `(N, T)`, from `begin`, in memory of their own, so that a row's lookup is its own."""
    return torch.arange(begin, begin + x.shape[1], device=x.device).repeat(len(x), 1)
