from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import UserError
from sfumato.measure import neighbours
from sfumato.measure.density_coverage import density_coverage, expected_coverage


def test_points_on_a_line_worked_by_hand() -> None:
    """Balls 0 +- 1, 1 +- 1, 3 +- 2: 0.5 lies in two of them, 2 in two, 2.5 in one, 9 in none."""
    real, generated = (np.array(places)[:, None] for places in ([0.0, 1.0, 3.0], [0.5, 2.0, 2.5, 9.0]))
    found = density_coverage(real, generated, neighbours=1)
    assert found.density == pytest.approx(5 / 4)
    assert found.coverage == 1
    assert density_coverage(real, generated[1:], neighbours=1).coverage == pytest.approx(2 / 3)
    two = density_coverage(real, generated, neighbours=2)  # balls 0 +- 3, 1 +- 2, 3 +- 3
    assert two.density == pytest.approx((3 + 3 + 3) / (2 * 4))


@pytest.mark.parametrize("block", [1, 500, 2**23])
def test_it_is_the_definition(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    random = np.random.default_rng(1)
    real, generated = random.normal(size=(60, 3)), random.normal(size=(45, 3)) + 0.7
    reaches = [sorted(float(np.linalg.norm(x - other)) for other in real)[5] for x in real]
    within = np.array(
        [[np.linalg.norm(y - x) <= reach for x, reach in zip(real, reaches, strict=True)] for y in generated]
    )
    found = density_coverage(real, generated)
    assert found.density == pytest.approx(within.sum() / (5 * 45))
    assert found.coverage == pytest.approx(within.any(0).mean())
    assert 0.2 < found.coverage < 1
    assert (found.real, found.generated, found.neighbours) == (60, 45, 5)
    assert all(word in str(found) for word in ("60", "45", "5 neighbours"))


@pytest.mark.parametrize(("real", "generated", "k"), [(40, 40, 5), (30, 60, 3)])
def test_two_sets_from_one_distribution_have_the_papers_expectations(real: int, generated: int, k: int) -> None:
    random = np.random.default_rng(2)
    found = [density_coverage(random.normal(size=(real, 4)), random.normal(size=(generated, 4)), k) for _ in range(400)]
    for values, expected in (
        ([one.density for one in found], 1.0),
        ([one.coverage for one in found], expected_coverage(real, generated, k)),
    ):
        error = np.std(values) / len(values) ** 0.5
        assert abs(np.mean(values) - expected) < 4 * error
        assert error < 0.02


def test_the_expected_coverage_of_the_papers_example() -> None:
    """Ten thousand images each and five neighbours: 0.969; the authors' code prints 0.9735 for one drawing."""
    assert expected_coverage(10_000, 10_000, 5) == pytest.approx(1 - 0.5**5, abs=2e-4)
    assert expected_coverage(3, 1, 1) == pytest.approx(1 / 3)
    assert expected_coverage(2, 1, 1) == pytest.approx(1 / 2)


def test_an_outlier_hardly_raises_density_where_it_raises_precision() -> None:
    random = np.random.default_rng(3)
    real = random.normal(size=(100, 2))
    real[0] = 1e3  # its ball reaches over everything
    far = 40 + random.normal(size=(100, 2))
    assert density_coverage(real, far).density < 0.21
    assert density_coverage(real, far).coverage < 0.02


def test_too_few_images() -> None:
    with pytest.raises(UserError, match="at least 6 images"):
        density_coverage(np.zeros((5, 2)), np.zeros((9, 2)))
