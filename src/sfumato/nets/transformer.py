"""Transformers made for private training: every trained parameter sits in a layer that maps one tensor to one tensor.

Rows never meet, no buffer changes in `forward`, no weight is used twice (input and output embeddings are not tied), and
positions are looked up row by row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if memory is not None:
            k, v = memory.extended(k, v)
        mixed = _attention(q, k, v, self.causal, hidden)
        x = x + self.project(mixed.transpose(1, 2).reshape(n, length, width))
        output: Tensor = x + self.contract(F.gelu(self.expand(self.norm2(x))))
        return output


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, hidden: Tensor | None = None) -> Tensor:
    """Plain attention; on processors, PyTorch's fused one takes up to ten times as long in bfloat16.

    `(N, heads, t, d)` each; causal queries are the last ones of the keys' sequence. Softmax is as wide inside as it
    would be under autocast, which would also copy what goes in and comes out.
    """
    n, heads, queries, size = q.shape
    keys = k.shape[2]
    if causal and hidden is None and queries > 1:
        hidden = torch.ones(queries, keys, dtype=torch.bool, device=q.device).triu(1 + keys - queries)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if hidden is None else ~hidden)
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.flatten(0, 1) for x in (q * size**-0.5, k, v))
        unseen = q.new_zeros(queries, keys)
        if hidden is not None:
            unseen = unseen.masked_fill(hidden, float("-inf"))
        mixed = torch.baddbmm(unseen, q, k.transpose(1, 2)).softmax(-1) @ v
    return mixed.view(n, heads, queries, size)


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
        x = self.tokens(tokens) + self.places(positions(tokens))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def losses(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of each row's next tokens, `(N,)`, for `(N, T + 1)` tokens."""
        return mean_cross_entropy(self(tokens[:, :-1].contiguous()), tokens[:, 1:])


def mean_cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Each row's mean over its positions, `(N,)`, of logits `(N, T, vocabulary)` against tokens `(N, T)`."""
    flat = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    return flat.view(tokens.shape).mean(1)


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
        h = h + self.places(positions(h[:, :, 0]))
        for block in self.blocks:
            h = block(h)
        lines, columns = height // self.patch, width // self.patch
        pixels = self.outlet(self.norm(h)).view(n, lines, columns, -1, self.patch, self.patch)
        output: Tensor = pixels.permute(0, 3, 1, 4, 2, 5).reshape(n, -1, height, width)
        return output


def positions(x: Tensor, begin: int = 0) -> Tensor:
    """Positions of each row of `(N, T)`, from `begin`, in memory of their own, so that a row's lookup is its own."""
    return torch.arange(begin, begin + x.shape[1], device=x.device).repeat(len(x), 1)
