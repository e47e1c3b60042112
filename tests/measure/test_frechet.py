from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from sfumato.errors import UserError
from sfumato.measure.frechet import frechet_distance, gaussian_frechet


def textbook(one: np.ndarray, other: np.ndarray) -> float:
    """The usual formula with a general matrix square root."""
    s, t = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    shift = ((one.mean(0) - other.mean(0)) ** 2).sum()
    return float(shift + np.trace(s + t - 2 * np.real(sqrtm(s @ t))))


def mixed(count: int, dimensions: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, dimensions)) @ random.normal(size=(dimensions, dimensions)) + random.normal()


def test_it_is_the_textbook_value() -> None:
    one, other = mixed(80, 6, 0), mixed(50, 6, 1)
    found = frechet_distance(one, other)
    assert found.distance == pytest.approx(textbook(one, other), rel=1e-9)
    assert (found.real, found.generated) == (80, 50)
    assert "80" in str(found)
    assert "50" in str(found)


@pytest.mark.parametrize("counts", [(5, 7), (5, 90), (20, 21)])
def test_fewer_images_than_dimensions_are_no_obstacle(counts: tuple[int, int]) -> None:
    """sqrtm is unreliable on singular products; a ridge that goes to 0 leads it to the value."""
    one, other = mixed(counts[0], 20, 2), mixed(counts[1], 20, 3)
    s, t = (np.cov(rows, rowvar=False) + 1e-9 * np.eye(20) for rows in (one, other))
    shift = ((one.mean(0) - other.mean(0)) ** 2).sum()
    expected = shift + np.trace(s + t - 2 * np.real(sqrtm(s @ t)))
    assert frechet_distance(one, other).distance == pytest.approx(expected, rel=1e-4)


def test_one_dimension_is_a_difference_of_means_and_deviations() -> None:
    one, other = np.array([[0.0], [2.0]]), np.array([[5.0], [9.0], [13.0]])
    assert frechet_distance(one, other).distance == pytest.approx((9 - 1) ** 2 + (4 - 2**0.5) ** 2)


def test_closed_forms_of_gaussians() -> None:
    """Commuting covariances: the sum of squared differences of deviations; a shift adds its square."""
    random = np.random.default_rng(0)
    turn, _ = np.linalg.qr(random.normal(size=(4, 4)))
    a, b = np.array([1.0, 2.0, 0.0, 3.0]), np.array([2.0, 0.5, 1.0, 3.0])
    shift = np.array([1.0, 0, -2, 0])
    found = gaussian_frechet(np.zeros(4), turn * a**2 @ turn.T, shift, turn * b**2 @ turn.T)
    assert found == pytest.approx(5 + ((a - b) ** 2).sum())
    noisy = turn * np.array([1.0, 4.0, -0.1, 9.0]) @ turn.T  # noise can make a covariance indefinite
    assert gaussian_frechet(np.zeros(4), noisy, np.zeros(4), turn * a**2 @ turn.T) == pytest.approx(0, abs=1e-9)


def test_it_grows_with_the_shift_and_is_zero_for_the_same() -> None:
    one = mixed(40, 8, 4)
    assert frechet_distance(one, one[::-1]).distance == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + 0.5).distance == pytest.approx(8 * 0.25, rel=1e-9)
    assert frechet_distance(one, 3 * one - 2 * one.mean(0)).distance == pytest.approx(4 * np.trace(np.cov(one.T)))


def test_values_far_from_zero_do_not_spoil_it() -> None:
    one, other = mixed(60, 6, 5), mixed(60, 6, 6)
    assert frechet_distance(one + 1e5, other + 1e5).distance == pytest.approx(textbook(one, other), rel=1e-6)


def test_one_image_is_too_few() -> None:
    with pytest.raises(UserError, match="at least 2"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
