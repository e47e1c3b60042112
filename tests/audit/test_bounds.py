"""Bounds hold with the confidence they state, and equal what other code computes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sfumato.audit.bounds import (
    OneRun,
    clopper_pearson,
    epsilon_of_rates,
    fixed_guesses,
    one_run_epsilon,
    one_run_p_value,
)
from sfumato.errors import InternalError


@pytest.mark.parametrize(("hits", "trials"), [(0, 10), (3, 10), (10, 10), (180, 4000)])
@pytest.mark.parametrize("confidence", [0.95, 0.999])
def test_intervals_are_clopper_and_pearsons(hits: int, trials: int, confidence: float) -> None:
    other = stats.binomtest(hits, trials).proportion_ci(confidence, method="exact")
    assert clopper_pearson(hits, trials, confidence) == pytest.approx((other.low, other.high))


def test_rates_give_a_bound_that_is_right_as_often_as_it_says() -> None:
    random, true = np.random.default_rng(0), 1.5
    hits, alarms = random.binomial(500, 0.1 * math.exp(true), 1000), random.binomial(500, 0.1, 1000)
    bounds = np.array([epsilon_of_rates(int(h), int(a), 500, 0.0, 0.95) for h, a in zip(hits, alarms, strict=True)])
    assert (bounds > true).mean() <= 0.05
    assert bounds.mean() > 0.8
    assert epsilon_of_rates(400, 100, 500, 0.9, 0.95) == 0
    assert epsilon_of_rates(0, 0, 500, 1e-5, 0.95) == 0


def by_hand(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 term by term."""
    rate = math.exp(epsilon) / (1 + math.exp(epsilon))

    def tail(least: int) -> float:
        return sum(math.comb(r, k) * rate**k * (1 - rate) ** (r - k) for k in range(max(least, 0), r + 1))

    return min(1.0, tail(v) + 2 * m * delta * max((tail(v - i) - tail(v)) / i for i in range(1, m + 1)))


@pytest.mark.parametrize(("m", "r", "v"), [(40, 20, 20), (40, 20, 15), (30, 30, 17), (60, 10, 1)])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
def test_the_theorem_by_hand(m: int, r: int, v: int, epsilon: float, delta: float) -> None:
    assert one_run_p_value(m, r, v, epsilon, delta) == pytest.approx(by_hand(m, r, v, epsilon, delta), rel=1e-9)


def test_one_run_bounds_of_known_cases() -> None:
    perfect = 0.05 ** (1 / 100)
    assert one_run_epsilon(1000, 100, 100, 0.0, 0.95) == pytest.approx(math.log(perfect / (1 - perfect)), abs=1e-6)
    assert one_run_epsilon(1000, 100, 50, 0.0, 0.95) == 0
    assert one_run_epsilon(1000, 100, 90, 1e-5, 0.95) < one_run_epsilon(1000, 100, 90, 0.0, 0.95)
    assert one_run_p_value(10, 0, 0, 1.0, 0.0) == 1
    for wrong in ((10, 11, 3), (10, 5, 6)):
        with pytest.raises(InternalError):
            one_run_p_value(*wrong, 1.0, 0.0)


def test_one_run_bounds_hold_for_randomised_response() -> None:
    random, true = np.random.default_rng(1), 2.0
    right = random.binomial(200, 1 / (1 + math.exp(-true)), 600)
    found = {int(v): one_run_epsilon(200, 200, int(v), 0.0, 0.95) for v in np.unique(right)}
    bounds = np.array([found[int(v)] for v in right])
    assert 0.01 < (bounds > true).mean() <= 0.06  # 5 % and chance: the bound is exact for randomised response
    assert bounds.mean() > 1.5


def test_guesses_are_fixed_by_public_values() -> None:
    few, most = fixed_guesses(5000, 4.0, 1e-5)
    assert most == 4000
    assert 50 <= few <= 400
    assert few % 2 == 0


def test_guesses_on_gaussian_scores_come_near_the_ideal_bound() -> None:
    random, mu = np.random.default_rng(2), 0.925  # costs (4, 1e-5)
    found, ideal = [], 0.0
    for _ in range(5):
        coins = random.random(5000) < 0.5
        run = OneRun.of(random.standard_normal(5000) + mu * coins, coins, 4.0, 1e-5)
        found.append(run.bound(0.95))
        ideal = run.ideal
    assert 1.6 < ideal < 2.3
    assert abs(np.mean(found) - ideal) < 0.3
    verdict = run.verdict("scores", 3)
    assert not verdict.broken
    assert not verdict.unprotected
    assert verdict.gate < verdict.bound < verdict.ceiling
    assert verdict.to_json()["canaries"] == 5000


def test_scores_that_tell_everything_break_any_claim_below_the_ceiling() -> None:
    coins = np.random.default_rng(3).random(2000) < 0.5
    verdict = OneRun.of(coins.astype(float), coins, 4.0, 1e-5, 4.5).verdict("scores", 12)
    assert verdict.broken
    assert verdict.unprotected
    assert verdict.bound == verdict.ceiling
    assert verdict.facts["stricter"]["gate"] > 4.5 > 4 > verdict.gate  # at the claimed delta nothing is that sure
    assert not OneRun.of(coins.astype(float), coins, 4.0, 1e-5, 6.5).verdict("scores", 12).broken
    backwards = OneRun.of(-coins.astype(float), coins, 4.0, 1e-5, 4.5).verdict("scores", 12)
    assert backwards.bound == 0
