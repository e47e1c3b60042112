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

TOGETHER = 256  # texts between two reports of progress


class Told(NamedTuple):
    """Texts of images; one of an image's is told at a time.

    Attributes:
        vectors: of all different texts, float32 `(V, size)`.
        texts: int64 `(T,)`, numbers of texts, image by image.
        starts: int64 `(N,)`: image n has those from `texts[starts[n]]` on,
        counts: int64 `(N,)`: so many of them.
    """

    vectors: Tensor
    texts: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def classes(cls, names: Sequence[str], labels: NDArray[np.int64], embed: Embed) -> Told:
        """Every image is told the name of its class."""
        texts, places = torch.from_numpy(labels), torch.arange(len(labels))
        return cls(torch.from_numpy(embed(names)), texts, places, torch.ones_like(places))

    @classmethod
    def captions(
        cls, texts: Sequence[Sequence[str]], embed: Embed, progress: Callable[[int, int], None] = lambda *_: None
    ) -> Told:
        """Every image is told one of its own captions; equal ones are embedded once.

        `progress` is told (different captions done, in all).
        """
        numbers = {text: number for number, text in enumerate(dict.fromkeys(chain.from_iterable(texts)))}
        different, vectors = list(numbers), []
        for begin in range(0, max(1, len(different)), TOGETHER):
            vectors.append(embed(different[begin : begin + TOGETHER]))
            progress(min(begin + TOGETHER, len(different)), len(different))
        counts = [len(own) for own in texts]
        return cls(
            torch.from_numpy(np.concatenate(vectors)),
            torch.tensor([numbers[text] for own in texts for text in own], dtype=torch.int64),
            torch.tensor(list(accumulate(counts, initial=0))[:-1], dtype=torch.int64),
            torch.tensor(counts, dtype=torch.int64),
        )

    def part(self, shown: Tensor) -> Told:
        """Of some images, by number."""
        return self._replace(starts=self.starts[shown], counts=self.counts[shown])

    def of(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A text of each image `(n,)`, `(n, size)`; zeros where it has none, and for number -1."""
        counts, told = torch.where(images < 0, 0, self.counts[images]), torch.zeros(len(images), self.vectors.shape[1])
        several = bool((self.counts > 1).any())
        pick = (torch.rand(len(images), generator=generator) * counts).long() if several else torch.zeros_like(counts)
        some = counts > 0
        told[some] = self.vectors[self.texts[self.starts[images[some]] + pick[some]]]
        return told
