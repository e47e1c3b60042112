from __future__ import annotations

import numpy as np
import pytest

from sfumato.errors import UserError
from sfumato.measure.kernel import kernel_distance, squared_mmd


def test_it_is_the_double_sum() -> None:
    random = np.random.default_rng(0)
    one, other = random.normal(size=(7, 3)), random.normal(size=(5, 3)) + 1

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within = np.mean([k(one[i], one[j]) for i in range(7) for j in range(7) if i != j])
    other_within = np.mean([k(other[i], other[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([k(x, y) for x in one for y in other])
    assert squared_mmd(one, other) == pytest.approx(within + other_within - 2 * between)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_it_is_unbiased(shift: float) -> None:
    """In one dimension k(x, y) = 1 + 3xy + 3(xy)^2 + (xy)^3, so the discrepancy is one of three moments.

    Between N(0, 1) and N(m, 1): 3 m^2 + 3 (m^2)^2 + (m^3 + 3 m)^2.
    """
    random = np.random.default_rng(1)
    found = [squared_mmd(random.normal(size=(6, 1)), random.normal(size=(8, 1)) + shift) for _ in range(20_000)]
    expected = 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift) ** 2
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - expected) < 4 * error
    assert error < 0.1


def test_subsets_average_to_the_whole_and_the_counts_are_told() -> None:
    random = np.random.default_rng(2)
    one, other = random.normal(size=(400, 4)), random.normal(size=(300, 4)) * 1.3
    found = kernel_distance(one, other)
    assert (found.subsets, found.subset_size, found.real, found.generated) == (100, 150, 400, 300)
    assert found.mean == pytest.approx(squared_mmd(one, other), abs=4 * found.deviation / 10)
    assert 0 < found.deviation < found.mean
    assert found == kernel_distance(one, other)
    assert all(word in str(found) for word in ("400", "300", "150", "100"))
    given = kernel_distance(one, other, subsets=3, subset_size=20)
    assert (given.subsets, given.subset_size) == (3, 20)
    assert given.deviation > found.deviation


def test_large_sets_give_subsets_of_a_thousand() -> None:
    many = np.random.default_rng(3).normal(size=(2100, 2))
    assert kernel_distance(many, many, subsets=2).subset_size == 1000


def test_too_few_images() -> None:
    with pytest.raises(UserError, match="at least 4"):
        kernel_distance(np.zeros((3, 2)), np.zeros((9, 2)))
