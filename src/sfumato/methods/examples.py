"""Detail from examples: an image is put together from pieces of public ones whose coarse tokens are alike.

A piece comes from the place that it goes to, as in position-patch hallucination (Ma, Zhang & Qi 2010, after Freeman,
Jones & Pasztor 2002, "Example-based super-resolution"), and from among the nearest examples the one is taken that
agrees best with what lies there already (after Efros & Freeman 2001, "Image quilting"). Nothing has to be learnt, and
pieces are as sharp as photographs are; but they are copies, so the examples' licence holds for what is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.methods.spectral_settings import ExamplesConfig, Image
from sfumato.nets.tokenizer import Tokenizer

_ROWS = 64  # images put together at once; each looks at `choices` pieces in memory


@dataclass(frozen=True)
class Examples:
    """Public pictures with their coarse tokens.

    Attributes:
        pictures: uint8 `(M, C, H, W)`.
        tokens: int64 `(M, T)`, of the coarse scale.
    """

    pictures: Tensor
    tokens: Tensor

    @classmethod
    def among(cls, pictures: Tensor, tokens: Tensor, count: int, generator: torch.Generator) -> Examples:
        """At most `count` of the pictures, by lot."""
        chosen = torch.randperm(len(pictures), generator=generator)[:count]
        return cls(pictures[chosen], tokens[chosen])

    @classmethod
    def blank(cls, image: Image, tokens: int, count: int) -> Examples:
        """As many black pictures, for speed trials."""
        return cls(torch.zeros(count, *image, dtype=torch.uint8), torch.zeros(count, tokens, dtype=torch.long))

    @torch.inference_mode()
    def quilted(self, tokenizer: Tokenizer, tokens: Tensor, config: ExamplesConfig, device: torch.device) -> Tensor:
        """Images `(N, C, H, W)`, float32, 0 to 255, for coarse tokens `(N, T)`.

        Windows of tokens are visited row by row, each overlapping those before it by half. Of the examples whose
        tokens there are nearest, `config.choices` of them, the piece is taken for which the mean squared error of its
        coarse pixels, plus `config.agreement` times that of its pixels against what was laid down before, is least.
        """
        grid, levels = tokenizer.shape.grid, tokenizer.shape.levels
        codes = tokenizer.codebook(0).to(device) / (1 << levels)  # in grey levels
        high, wide = (min(config.window, side) for side in grid)
        cell = tokenizer.shape.patch << levels  # side of a token, in pixels
        pictures, known = self.pictures.to(device), codes[self.tokens.to(device)].reshape(-1, *grid, codes.shape[1])
        fade = _fade(high * cell, wide * cell, device)
        made = []
        for some in torch.split(tokens.to(device), _ROWS):
            wanted = codes[some].reshape(-1, *grid, codes.shape[1])
            canvas = torch.zeros(len(some), *self.pictures.shape[1:], device=device)
            laid = torch.zeros(canvas.shape[2:], device=device)
            for down in _starts(grid[0], high):
                for across in _starts(grid[1], wide):
                    rows, columns = slice(down, down + high), slice(across, across + wide)
                    near, error = _nearest(wanted[:, rows, columns], known[:, rows, columns], config.choices)
                    rows, columns = (slice(cell * part.start, cell * part.stop) for part in (rows, columns))
                    pieces = pictures[:, :, rows, columns]
                    weight = torch.minimum(laid[rows, columns], fade)
                    if config.agreement and weight.any():
                        there = (canvas / laid.clamp(min=1e-12))[:, None, :, rows, columns]
                        apart = ((pieces[near] - there).square() * weight).mean((2, 3, 4)) / weight.mean()
                        error = error + config.agreement * apart
                    best = near.gather(1, error.argmin(1, keepdim=True))[:, 0]
                    canvas[:, :, rows, columns] += pieces[best] * fade
                    laid[rows, columns] += fade
            made.append(canvas / laid)
        return torch.cat(made)


def _starts(side: int, window: int) -> Iterator[int]:
    """Where windows begin along a side of the grid: half a window apart, the last one at the end."""
    step = max(1, window // 2)
    yield from range(0, side - window, step)
    yield side - window


def _fade(height: int, width: int, device: torch.device) -> Tensor:
    """Weights of a piece's pixels, `(height, width)`: almost 0 at its rim, 1 in its middle."""
    down, across = (torch.hann_window(side + 2, periodic=False, device=device)[1:-1] for side in (height, width))
    return (down[:, None] * across).square() + 1e-4


def _nearest(wanted: Tensor, known: Tensor, choices: int) -> tuple[Tensor, Tensor]:
    """The nearest `choices` of windows `(M, h, w, numbers)` to each of `(N, h, w, numbers)`.

    Returns:
        Their numbers and mean squared errors in coarse pixels, both `(N, choices)`, nearest first.
    """
    numbers = wanted[0].numel()
    distances = torch.cdist(wanted.flatten(1), known.flatten(1))
    distance, near = distances.topk(min(choices, len(known)), largest=False)
    return near, distance.square() / numbers
