"""Batch, steps and draws from epsilon and time: by the trials' rule of thumb, and near what exact accounting says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.methods.proportions import (
    FEWEST_STEPS,
    LARGEST_NOISE,
    LARGEST_RATE,
    MOST_DRAWS,
    MOST_STEPS,
    Proportions,
    noise,
    proportions,
)
from sfumato.privacy import accounting
from sfumato.privacy.accounting import Training, gaussian_mu

SIZE, PARAMETERS = 60_000, 98_000
WEAK, STRONG = gaussian_mu(10, 1e-5), gaussian_mu(1, 1e-5)


@pytest.mark.parametrize("found", [Proportions(4096, 1000, 1), Proportions(2048, 160, 1), Proportions(1024, 250, 8)])
@pytest.mark.parametrize("epsilon", [1.0, 10.0])
def test_the_estimate_of_the_noise_is_near_the_exact_one(found: Proportions, epsilon: float) -> None:
    rate = found.batch / SIZE
    multiplier = accounting.calibrate(lambda z: Training(z, rate, found.steps), epsilon, 1e-5, [], accounting.INTERVAL)
    exact = multiplier * math.sqrt(PARAMETERS) / found.batch
    assert noise(found, SIZE, gaussian_mu(epsilon, 1e-5), PARAMETERS) == pytest.approx(exact, rel=0.2)


def test_time_decides_at_a_large_epsilon() -> None:
    """More time is more steps, until there are as many as anybody takes; no second draw before that."""
    found = [proportions(rows, SIZE, WEAK, PARAMETERS) for rows in (3e5, 1e6, 3e6, 6e6)]
    assert all(one.draws == 1 for one in found)
    assert [one.steps for one in found] == sorted(one.steps for one in found)
    assert all(2000 <= one.batch <= 4000 for one in found[1:])
    assert proportions(3e7, SIZE, WEAK, PARAMETERS).steps == MOST_STEPS
    assert proportions(3e7, SIZE, WEAK, PARAMETERS).draws > 1


def test_noise_decides_at_a_small_epsilon() -> None:
    """Few steps of a batch near 1024 whose noise is still borne; the rest of the time goes into draws."""
    little, much = (proportions(rows, SIZE, STRONG, PARAMETERS) for rows in (6e5, 6e6))
    assert little.steps == much.steps < 250
    assert 800 <= much.batch <= little.batch <= 2100
    assert noise(much, SIZE, STRONG, PARAMETERS) <= 1.02 * LARGEST_NOISE
    assert much.draws == pytest.approx(10 * little.draws, rel=0.5)


@given(
    rows=st.floats(1, 1e9),
    size=st.integers(1, 10**7),
    mu=st.floats(0.01, 10),
    parameters=st.integers(1, 10**8),
)
def test_it_always_chooses_something_possible(rows: float, size: int, mu: float, parameters: int) -> None:
    found = proportions(rows, size, mu, parameters)
    assert 1 <= found.batch <= max(LARGEST_RATE * size + 0.5, 1)
    assert 1 <= found.steps <= MOST_STEPS
    assert 1 <= found.draws <= MOST_DRAWS
    if rows >= 4 * FEWEST_STEPS:
        assert found.batch * found.steps * found.draws <= 1.5 * rows + 1
