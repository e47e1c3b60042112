"""Images of which some could not be made.

A service may refuse a prompt, or fail on it again and again. One such prompt must not end a run of thousands, and no
stand-in picture may be taken for an answer. So a generator may offer `try_generate`, which says of each image whether
it was made; `try_generate(generator, ...)` asks any generator that way. An image that was not made is mid-grey, must
get no vote, and must never be selected; in a noisy histogram its cell stays and gets noise like all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sfumato.pretrained.interfaces import ImageGenerator, Images, ImageVariator

GREY = 128


class Renders(NamedTuple):
    """Images, and which of them were made.

    Attributes:
        images: uint8 `(N, 3, H, W)`; mid-grey where nothing was made.
        made: bool `(N,)`.
    """

    images: Images
    made: NDArray[np.bool_]


@runtime_checkable
class FallibleGenerator(ImageGenerator, Protocol):
    """An `ImageGenerator` that can fail on one text and go on with the others."""

    def try_generate(self, texts: Sequence[str], seed: int) -> Renders:
        """As `generate`, for as many texts as it can."""


@runtime_checkable
class FallibleVariator(ImageVariator, Protocol):
    """An `ImageVariator` that can fail on one image and go on with the others."""

    def try_vary_images(
        self, images: Images, seed: int, strength: float, texts: Sequence[str] | None = None
    ) -> Renders:
        """As `vary_images`, for as many images as it can."""


def try_generate(generator: ImageGenerator, texts: Sequence[str], seed: int) -> Renders:
    """One image a text, from any generator; from one that cannot fail on single texts all are made."""
    if isinstance(generator, FallibleGenerator):
        return generator.try_generate(texts, seed)
    images = generator.generate(texts, seed)
    return Renders(images, np.ones(len(images), bool))


def try_vary_images(
    variator: ImageVariator, images: Images, seed: int, strength: float, texts: Sequence[str] | None = None
) -> Renders:
    """One image near each given one, from any variator."""
    if isinstance(variator, FallibleVariator):
        return variator.try_vary_images(images, seed, strength, texts)
    varied = variator.vary_images(images, seed, strength, texts)
    return Renders(varied, np.ones(len(varied), bool))
