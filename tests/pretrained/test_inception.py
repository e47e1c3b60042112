from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sfumato.pretrained import inception as module
from sfumato.pretrained.inception import Inception
from sfumato.pretrained.interfaces import ImageEmbedder, Images
from sfumato.pretrained.portraits import Portraits

pytestmark = pytest.mark.usefixtures("offline")


def test_it_is_the_network_of_its_package(inception: Inception, picture: Images) -> None:
    """Expected: the graph written in the package's model.min.js, run layer by layer without folding."""
    found = inception.embed_images(picture)
    assert isinstance(inception, ImageEmbedder)
    assert found.shape == (1, inception.dimensions)
    assert found.dtype == np.float32
    expected = [0.178474411, 0.002049307, 0.100998253, 0.016608596, 0.00182915, 0, 0.056316186, 0.017514258]
    np.testing.assert_allclose(found[0, :8], expected, atol=1e-5)
    np.testing.assert_allclose([found.sum(), (found**2).sum()], [9.171345, 0.8033912], rtol=1e-4)
    judged = inception.judge(picture)[0]
    assert [judged[kind] for kind in module.KINDS] == pytest.approx(
        [0.0848653, 0.0100510, 0.8921529, 0.0104102, 0.0025207], abs=1e-4
    )


def test_a_row_does_not_depend_on_its_neighbours(inception: Inception, portraits: Portraits) -> None:
    images = portraits.draw(3, 1)
    together = inception.embed_images(images)
    assert np.array_equal(inception.embed_images(images[::-1]), together[::-1])
    assert np.array_equal(inception.embed_images(images[1:2]), together[1:2])


def test_features_tell_sharp_from_blurred(inception: Inception, portraits: Portraits) -> None:
    faces = portraits.draw(8, 2)
    blurred = [Image.fromarray(face.transpose(1, 2, 0)).filter(ImageFilter.GaussianBlur(2)) for face in faces[4:]]
    one, other = inception.embed_images(faces).reshape(2, 4, -1).mean(1)
    soft = inception.embed_images(np.stack([np.asarray(face).transpose(2, 0, 1) for face in blurred])).mean(0)
    assert ((one - soft) ** 2).sum() > 4 * ((one - other) ** 2).sum()


def test_scripts_are_data() -> None:
    with pytest.raises(ValueError, match="exactly one string"):
        module._base64(b'exports=require("child_process")')
    shard = b'W.exports="AAEC"'
    tensor = '{name:"conv2d_1/kernel",shape:[1,2],dtype:"float32",quantization:{min:-.5,scale:.1,dtype:"uint8"}}'
    model = f"weightsManifest:[{tensor}]"
    members = {"model.js": model.encode(), **{f"shard{number}.js": shard for number in range(1, 7)}}
    with pytest.raises(ValueError, match="not what the shards hold"):
        module.prepare(members)
