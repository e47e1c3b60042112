from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfumato.pretrained.interfaces import Identity, Images
from sfumato.pretrained.renders import Renders, try_generate, try_vary_images


class Sure:
    """Makes every image."""

    identity = Identity("sure", "1", "", "", "")

    def generate(self, texts: Sequence[str], seed: int) -> Images:
        return np.stack([np.full((3, 2, 2), len(text) + seed, np.uint8) for text in texts])

    def vary_images(self, images: Images, seed: int, strength: float, texts: Sequence[str] | None = None) -> Images:
        return images + np.uint8(seed)


class Unsure(Sure):
    """Makes every second one."""

    def try_generate(self, texts: Sequence[str], seed: int) -> Renders:
        return Renders(self.generate(texts, seed), np.arange(len(texts)) % 2 == 0)

    def try_vary_images(
        self, images: Images, seed: int, strength: float, texts: Sequence[str] | None = None
    ) -> Renders:
        return Renders(self.vary_images(images, seed, strength), np.arange(len(images)) % 2 == 0)


def test_a_generator_is_asked_the_way_it_can() -> None:
    texts = ["a", "bb", "ccc"]
    images = np.zeros((3, 3, 2, 2), np.uint8)
    for model, made in ((Sure(), [True, True, True]), (Unsure(), [True, False, True])):
        drawn = try_generate(model, texts, 4)
        assert np.array_equal(drawn.images, model.generate(texts, 4))
        assert drawn.made.tolist() == made
        varied = try_vary_images(model, images, 5, 0.5)
        assert (varied.images == 5).all()
        assert varied.made.tolist() == made
        assert varied.made.dtype == bool
