"""Images to feature vectors by named public embedders, for distances between sets of images.

Features of private images are private. They are computed in this process, held in memory, and kept nowhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.errors import UserError
from sfumato.pretrained.interfaces import Embeddings, Identity, ImageEmbedder, Images

BATCH = 32


class Pixels:
    """The picture itself, 16 x 16 pixels in colour: an `ImageEmbedder` that needs no weights and is always there.

    It sees where light and colour are and nothing of what is shown. Its distances have no published counterpart.
    """

    side = 16
    dimensions = 3 * side * side
    identity = Identity("pixels", "1", "", "Apache-2.0", "Sfumato: the image reduced to 16 x 16 pixels, 0 to 1")

    def embed_images(self, images: Images) -> Embeddings:
        """Resizes by Pillow's box filter, which averages whatever falls into a pixel."""
        found = np.empty((len(images), self.side, self.side, 3), np.float32)
        for row, pixels in zip(found, images, strict=True):
            image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
            row[:] = np.asarray(image.convert("RGB").resize((self.side, self.side), Image.Resampling.BOX))
        found /= 255
        return found.reshape(len(images), -1)


NETWORKS = ("efficientnet-lite0", "inception-nsfwjs")
"""Two networks that were trained apart, by their names in the zoo: a finding that only one of them shows is weak."""

EMBEDDERS = (*NETWORKS, "efficientnet-lite2", Pixels.identity.name)


def load_embedder(name: str) -> ImageEmbedder:
    """The embedder called `name`, one of EMBEDDERS.

    Raises:
        UserError: there is none of this name, or its weights have not been pulled.
    """
    if name == Pixels.identity.name:
        return Pixels()
    if name not in EMBEDDERS:
        raise UserError(f"There is no embedder {name!r}; give one of {', '.join(EMBEDDERS)}.")
    from sfumato.pretrained import zoo

    return zoo.load_image_embedder(name)


def features(
    images: Iterable[NDArray[np.uint8]], embedder: ImageEmbedder, progress: Callable[[int], Any] | None = None
) -> Embeddings:
    """Embeds images as they come, so that only features are held.

    Batches have one constant shape, the last one filled up with black images: with another shape, rows of one batch may
    differ from those of another in their last bits.

    Args:
        images: uint8 `(C, H, W)` each, C 1 or 3, all of one shape; an array `(N, C, H, W)` will do.
        embedder: whose `embed_images` treats each image by itself.
        progress: told the number of images done.

    Returns:
        float32 `(N, dimensions)`, rows in the order of the images.
    """
    parts = [np.empty((0, embedder.dimensions), np.float32)]
    done = 0
    for batch in _batches(images):
        filled = np.zeros((BATCH, *batch.shape[1:]), np.uint8)
        filled[: len(batch)] = batch
        parts.append(embedder.embed_images(filled)[: len(batch)])
        done += len(batch)
        if progress is not None:
            progress(done)
    return np.concatenate(parts)


def _batches(images: Iterable[NDArray[np.uint8]]) -> Iterator[Images]:
    source = iter(images)
    while batch := list(itertools.islice(source, BATCH)):
        yield np.stack(batch)
