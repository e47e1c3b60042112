from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import UserError
from sfumato.measure import neighbours
from sfumato.measure.precision_recall import precision_recall


def line(*places: float) -> np.ndarray:
    return np.array(places)[:, None]


def test_precision_and_recall_of_points_on_a_line_worked_by_hand() -> None:
    """Balls to the nearest other point: real 0 +- 1, 1 +- 1, 3 +- 2; generated 1.5 +- 1, 2.5 +- 1, 9 +- 6.5."""
    found = precision_recall(line(0, 1, 3), line(1.5, 2.5, 9), neighbours=1)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 3)
    # 0 is in no ball; 1 is in 1.5 +- 1; 3 in 2.5 +- 1. With one more generated point at 0.4, 0 is covered too.
    more = precision_recall(line(0, 1, 3), line(1.5, 2.5, 9, 0.4), neighbours=1)
    assert (more.precision, more.recall) == (pytest.approx(3 / 4), 1)


def test_precision_is_of_the_generated_and_recall_of_the_real() -> None:
    random = np.random.default_rng(0)
    real = random.normal(size=(200, 2))
    narrow = precision_recall(real, 0.05 * random.normal(size=(150, 2)))
    assert narrow.precision > 0.95
    assert narrow.recall < 0.2
    wide = precision_recall(real, 20 * random.normal(size=(150, 2)))
    assert wide.precision < 0.2
    assert wide.recall > 0.8
    assert (narrow.real, narrow.generated, narrow.neighbours) == (200, 150, 3)
    assert all(word in str(narrow) for word in ("200", "150", "3 neighbours"))


@pytest.mark.parametrize("block", [1, 500, 2**23])
def test_it_is_the_definition(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    random = np.random.default_rng(1)
    real, generated = random.normal(size=(60, 3)), random.normal(size=(45, 3)) + 0.7

    def share(points: np.ndarray, among: np.ndarray) -> float:
        reaches = [sorted(float(np.linalg.norm(centre - other)) for other in among)[4] for centre in among]
        balls = list(zip(among, reaches, strict=True))
        return float(np.mean([any(np.linalg.norm(x - centre) <= reach for centre, reach in balls) for x in points]))

    found = precision_recall(real, generated, neighbours=4)
    assert found.precision == share(generated, real)
    assert found.recall == share(real, generated)
    assert 0.2 < found.precision < 1


def test_the_same_images_are_wholly_precise_and_wholly_recalled() -> None:
    points = np.random.default_rng(2).normal(size=(30, 50)).astype(np.float32)
    found = precision_recall(points, points[::-1])
    assert (found.precision, found.recall) == (1, 1)


def test_too_few_images() -> None:
    with pytest.raises(UserError, match="at least 4 images"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
