"""What public images are told of while a model learns from them: texts, as vectors of a frozen public embedder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to vectors, `(N, size)`."""


class Told(NamedTuple):
    """Texts of images; one of an image's is told at a time.

    Attributes:
        vectors: of all texts, float32 `(V, size)`.
        starts: int64 `(N,)`: image n has the texts from `starts[n]` on,
        counts: int64 `(N,)`: so many of them.
    """

    vectors: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def classes(cls, names: Sequence[str], labels: NDArray[np.int64], embed: Embed) -> Told:
        """Every image is told the name of its class."""
        starts = torch.from_numpy(labels)
        return cls(torch.from_numpy(embed(names)), starts, torch.ones_like(starts))

    @classmethod
    def captions(cls, texts: Sequence[Sequence[str]], embed: Embed) -> Told:
        """Every image is told one of its own captions; equal ones are embedded once."""
        places = {text: place for place, text in enumerate(dict.fromkeys(chain.from_iterable(texts)))}
        order = [places[text] for own in texts for text in own]
        counts = [len(own) for own in texts]
        return cls(
            torch.from_numpy(embed(list(places)))[order],
            torch.tensor(list(accumulate(counts, initial=0))[:-1]),
            torch.tensor(counts),
        )

    def part(self, shown: Tensor) -> Told:
        """Of some images, by number."""
        return Told(self.vectors, self.starts[shown], self.counts[shown])

    def of(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A text of each image `(n,)`, `(n, size)`; zeros where it has none, and for number -1."""
        counts = torch.where(images < 0, 0, self.counts[images])
        several = bool((self.counts > 1).any())
        pick = (torch.rand(len(images), generator=generator) * counts).long() if several else 0
        place = torch.where(counts > 0, self.starts[images] + pick, 0)
        return torch.where(counts[:, None] > 0, self.vectors[place], 0.0)
