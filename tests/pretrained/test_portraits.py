from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import UserError
from sfumato.pretrained.interfaces import ImageSource
from sfumato.pretrained.portraits import BATCH, Portraits, on_one_side

pytestmark = pytest.mark.usefixtures("offline")


def test_it_is_the_generator_of_its_package(portraits: Portraits) -> None:
    """Expected: the package's own Generator class on the same latents."""
    faces = portraits.draw(2, 7)
    assert isinstance(portraits, ImageSource)
    assert faces.shape == (2, 3, 64, 64)
    assert faces.dtype == np.uint8
    expected = [
        [[37, 41, 40], [33, 39, 40], [38, 40, 39]],
        [[26, 27, 28], [23, 27, 28], [28, 29, 28]],
        [[26, 31, 28], [22, 30, 31], [29, 32, 30]],
    ]
    np.testing.assert_allclose(faces[1, :, 30:33, 30:33].astype(int), expected, atol=1)
    assert faces.mean() == pytest.approx(82.2954, abs=0.01)


def test_a_face_depends_on_its_latent_vector_alone(portraits: Portraits) -> None:
    latents = portraits.latents(BATCH + 3, 1)
    together = portraits.draw_from(latents)
    assert np.array_equal(portraits.draw_from(latents[::-1]), together[::-1])
    assert np.array_equal(portraits.draw_from(latents[5:6]), together[5:6])
    assert np.array_equal(portraits.draw(BATCH + 3, 1), together)
    assert np.array_equal(portraits.draw(4, 1), together[:4])
    assert not np.array_equal(portraits.draw(4, 2), together[:4])


def test_near_latents_give_near_faces(portraits: Portraits) -> None:
    latents = portraits.latents(8, 3)
    moved = latents + 0.05 * portraits.latents(8, 4)
    faces, near, far = (portraits.draw_from(at).astype(float) for at in (latents, moved, latents[::-1]))
    assert 0 < np.abs(faces - near).mean() < np.abs(faces - far).mean() / 4


@pytest.mark.parametrize("latents", [np.zeros((2, 99)), np.zeros(100), np.full((1, 100), np.nan)])
def test_other_vectors_are_refused(portraits: Portraits, latents: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"shape \(N, 100\)"):
        portraits.draw_from(latents)


def test_mirrored_latents_lie_on_one_side_and_keep_the_rest() -> None:
    latents = np.random.default_rng(0).standard_normal((2000, 100), np.float32)
    moved = on_one_side(latents, 30, 5)
    axes = np.linalg.qr(np.random.default_rng(5).standard_normal((100, 30)))[0]
    assert (moved @ axes >= -1e-5).all()
    np.testing.assert_allclose(moved @ axes, np.abs(latents @ axes), atol=1e-4)
    across = np.eye(100) - axes @ axes.T
    np.testing.assert_allclose(moved @ across, latents @ across, atol=1e-4)
    assert not np.allclose(moved, on_one_side(latents, 30, 6))
