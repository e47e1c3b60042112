from __future__ import annotations

import numpy as np
import pytest
import torch

from sfumato.errors import UserError
from sfumato.pretrained.efficientnet import EfficientNet
from sfumato.pretrained.interfaces import ImageEmbedder, Images
from sfumato.pretrained.portraits import Portraits

pytestmark = pytest.mark.usefixtures("offline")


def test_it_is_the_network_of_its_package(efficientnet: EfficientNet, picture: Images) -> None:
    """Expected: the package efficientnet-lite-pytorch 0.1.0 with its own weights on the same 224 x 224 pixels."""
    found = efficientnet.embed_images(picture)
    assert found.shape == (1, 1280)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, :8], [0, 0, 0, 0, 0, 0.014499298, 0, 1.454697132], atol=3e-5)
    np.testing.assert_allclose([found.sum(), (found**2).sum()], [234.375458, 353.20282], rtol=3e-5)
    logits = torch.from_numpy(found) @ efficientnet._network.classes.weight.T + efficientnet._network.classes.bias
    assert logits.argmax() == 854
    assert float(logits.max()) == pytest.approx(6.92626, abs=1e-4)


def test_so_is_the_larger_one(efficientnet_lite2: EfficientNet, picture: Images) -> None:
    """Expected: as above, from the weights of Lite2, at 260 x 260 pixels."""
    found = efficientnet_lite2.embed_images(picture)
    expected = [0, 0.924466848, 0.111579552, 0.059115604, 0.76442039, 2.279810429, 0, 0.112399444]
    np.testing.assert_allclose(found[0, :8], expected, atol=3e-5)
    np.testing.assert_allclose([found.sum(), (found**2).sum()], [242.125961, 280.355743], rtol=3e-5)
    assert efficientnet_lite2.tag(picture, best=1)[0][0].name == efficientnet_lite2.names[854]


def test_tags_are_sorted_chances_with_names(efficientnet: EfficientNet, picture: Images) -> None:
    assert len(efficientnet.names) == 1000
    assert (efficientnet.names[1], efficientnet.names[285]) == ("goldfish", "Egyptian Mau")
    everything = efficientnet.tag(picture, best=1000)[0]
    assert sum(tag.probability for tag in everything) == pytest.approx(1)
    assert efficientnet.tag(picture, best=2)[0] == everything[:2]
    assert everything[0].name == efficientnet.names[854]
    assert everything[0].probability > everything[1].probability


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_its_neighbours(
    efficientnet: EfficientNet, portraits: Portraits, threads: int
) -> None:
    images = portraits.draw(5, 1)  # more than one batch
    torch.set_num_threads(threads)
    try:
        together = efficientnet.embed_images(images)
        assert np.array_equal(efficientnet.embed_images(images[::-1]), together[::-1])
        assert np.array_equal(efficientnet.embed_images(images[3:4]), together[3:4])
        assert len(np.unique(together, axis=0)) == 5
    finally:
        torch.set_num_threads(1)


def test_grey_is_rgb_with_equal_channels(efficientnet: EfficientNet, picture: Images) -> None:
    grey = picture[:, :1, :28, :28]
    assert np.array_equal(efficientnet.embed_images(grey), efficientnet.embed_images(grey.repeat(3, 1)))


def test_no_image_is_no_row(efficientnet: EfficientNet) -> None:
    assert isinstance(efficientnet, ImageEmbedder)
    assert efficientnet.embed_images(np.zeros((0, 3, 5, 5), np.uint8)).shape == (0, efficientnet.dimensions)


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 3, 8, 8), np.float32), np.zeros((3, 8, 8), np.uint8), np.zeros((1, 4, 8, 8), np.uint8),
     np.zeros((1, 3, 0, 8), np.uint8)],
)  # fmt: skip
def test_other_arrays_are_refused(efficientnet: EfficientNet, images: Images) -> None:
    with pytest.raises(UserError, match="must be uint8 of shape"):
        efficientnet.embed_images(images)
