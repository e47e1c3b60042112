"""Sound touches pass, and touches without noise do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfumato.audit.touches import Threshold, audit_touches, choose, judge
from sfumato.privacy.noise import Noise, TestNoise
from sfumato.privacy.plan import Plan, SumTouch

RUNS = 240


def test_sound_touches_pass(tmp_path: Path) -> None:
    found = audit_touches(1.0, 1e-5, RUNS, tmp_path, Noise())
    assert [one.name for one in found] == ["noisy histogram", "noisy sum", "private training"]
    assert not any(one.broken for one in found)
    assert all(one.facts["runs"] == 2 * 180 for one in found)


def test_touches_without_noise_do_not(tmp_path: Path) -> None:
    found = audit_touches(1.0, 1e-5, RUNS, tmp_path, TestNoise())
    assert all(one.broken for one in found)
    assert [one.unprotected for one in found[:2]] == [True, True]
    assert found[2].facts["alarms"] == 0
    assert abs(found[2].facts["hits"] / 180 - 0.5) < 0.2  # half of the steps leave the record out


def gaussian(mu: float, runs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal(runs) + mu, random.standard_normal(runs)


def test_the_bound_of_a_gaussian_is_below_its_epsilon_and_near_what_can_be_seen() -> None:
    plan = Plan(unit="image", epsilon=4.0, delta=1e-5, touches=(SumTouch("x", 1.0, 1, 1.0812),), main="x")  # mu 0.925
    bounds = [judge("x", plan, *gaussian(0.925, 20_000, seed), 1).bound for seed in range(5)]
    assert max(bounds) < 4
    assert min(bounds) > 1.7
    weaker = judge("x", plan, *gaussian(4.0, 20_000, 9), 1)  # noise of less than a quarter
    assert weaker.broken


def test_the_test_is_chosen_on_pilot_runs_alone() -> None:
    present, absent = gaussian(3.0, 1000, 0)
    test = choose(present, absent, 1e-5)
    assert test.says_present or test.level < np.median(present)
    assert test.counts(present, absent)[0] > 20 * test.counts(present, absent)[1]
    assert Threshold(False, 0.0).counts(np.array([1.0, -1.0]), np.array([-1.0, -2.0])) == (2, 1)
    plan = Plan(unit="image", epsilon=4.0, delta=1e-5, touches=(SumTouch("x", 1.0, 1, 1.0),), main="x")
    misled = judge("x", plan, np.r_[np.ones(25), np.zeros(75)], np.zeros(100), 1)
    assert misled.facts["hits"] in (0, 75)  # what the pilot showed is not there in the runs that count
    assert misled.bound == 0
