from __future__ import annotations

import numpy as np
import pytest

from sfumato.measure.closeness import closeness, lean


def test_distances_to_the_nearest_image() -> None:
    real = np.array([[0.0, 0.0], [10.0, 0.0]])
    generated = np.array([[0.0, 0.0], [3.0, 4.0], [9.0, 0.0], [10.0, 2.0], [0.0, 3.0]])  # 0, 5, 1, 2, 3
    found = closeness(real, generated)
    assert (found.smallest, found.median, found.copies) == (0, 2, 1)
    assert found.lowest_5 == pytest.approx(0.2)
    assert found.lowest_1 == pytest.approx(0.04)
    assert (found.real, found.generated) == (2, 5)
    assert all(word in str(found) for word in ("5 against 2", "copies 1"))


def test_a_generator_that_copies_leans_to_its_training_images() -> None:
    random = np.random.default_rng(0)
    training, holdout, others = (random.normal(size=(150, 6)) for _ in range(3))
    copies = training + 0.01 * random.normal(size=training.shape)
    assert lean(training, holdout, copies).share > 0.99
    assert lean(holdout, training, copies).share < 0.01
    honest = lean(training, holdout, others)
    assert abs(honest.share - 0.5) < 4 * honest.deviation
    assert lean(training, training, others).share == 0.5
    assert all(word in str(honest) for word in ("150 against 150 and 150",))


def test_the_deviation_is_that_over_divisions_of_the_real_images() -> None:
    """Few dimensions or many: where some images are nearest to most, the share scatters more than coin tosses do."""
    random = np.random.default_rng(1)
    real, generated = random.normal(size=(60, 30)), 0.3 * random.normal(size=(100, 30))
    shares, deviations = [], []
    for _ in range(600):
        random.shuffle(real)
        found = lean(real[:30], real[30:], generated)
        shares.append(found.share)
        deviations.append(found.deviation)
    assert np.ptp(deviations) < 1e-12
    assert np.std(shares) == pytest.approx(deviations[0], rel=0.12)
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * deviations[0] / 600**0.5)
    assert deviations[0] > 1.5 * 0.5 / 100**0.5


def test_the_larger_set_is_cut() -> None:
    random = np.random.default_rng(2)
    training, holdout = random.normal(size=(50, 2)), random.normal(size=(20, 2))
    found = lean(training, holdout, holdout)
    assert (found.training, found.holdout, found.generated) == (20, 20, 20)
    assert found == lean(training[:20], holdout, holdout)
