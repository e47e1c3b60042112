from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import UserError
from sfumato.measure import features as module
from sfumato.measure.features import EMBEDDERS, Pixels, features, load_embedder
from sfumato.pretrained.interfaces import Embeddings, Identity, ImageEmbedder, Images


def noise(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 64, 64), (1, 12, 12), (3, 30, 50)])
def test_pixels_are_averages_of_what_falls_into_them(shape: tuple[int, int, int]) -> None:
    found = features(noise(5, *shape), Pixels())
    assert found.shape == (5, 768)
    assert found.dtype == np.float32
    assert 0 <= found.min() < found.max() <= 1
    grey = features(np.full((1, *shape), 51, np.uint8), Pixels())
    assert np.allclose(grey, 0.2)
    if shape[1] == 64:
        blocks = noise(5, *shape).reshape(5, 3, 16, 4, 16, 4).mean((3, 5)) / 255
        assert np.allclose(found.reshape(5, 16, 16, 3).transpose(0, 3, 1, 2), blocks, atol=1 / 255)


def test_rows_keep_their_order_and_do_not_depend_on_their_neighbours() -> None:
    images = noise(70, 1, 28, 28)
    told: list[int] = []
    found = features(iter(images), Pixels(), told.append)
    assert told == [32, 64, 70]
    order = np.random.default_rng(1).permutation(70)
    assert np.array_equal(features(images[order], Pixels()), found[order])
    assert np.array_equal(features(images[69:], Pixels()), found[69:])
    assert features(images[:0], Pixels()).shape == (0, 768)


class Recorder:
    """An embedder that notes what it is asked."""

    identity = Identity("recorder", "1", "", "Apache-2.0", "tests")
    dimensions = 1

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def embed_images(self, images: Images) -> Embeddings:
        self.shapes.append(images.shape)
        return images.reshape(len(images), -1)[:, :1].astype(np.float32)


def test_batches_have_one_shape_and_no_more_images_are_drawn_than_embedded() -> None:
    recorder = Recorder()
    images = noise(40, 3, 8, 8)
    drawn: list[int] = []

    def source() -> object:
        for index, image in enumerate(images):
            assert index < module.BATCH * (len(recorder.shapes) + 1)
            drawn.append(index)
            yield image

    found = features(source(), recorder)  # type: ignore[arg-type]
    assert recorder.shapes == [(module.BATCH, 3, 8, 8)] * 2
    assert np.array_equal(found[:, 0], images[:, 0, 0, 0])
    assert len(drawn) == 40


def test_embedders_are_loaded_by_name_and_those_not_pulled_say_so() -> None:
    assert isinstance(load_embedder("pixels"), ImageEmbedder)
    with pytest.raises(UserError, match="efficientnet-lite0, inception-nsfwjs, efficientnet-lite2, pixels"):
        load_embedder("vgg")
    for name in EMBEDDERS[:-1]:
        with pytest.raises(UserError, match="pull"):
            load_embedder(name)  # the home of tests is empty
