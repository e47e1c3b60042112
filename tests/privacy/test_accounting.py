"""The accountant against published and recomputed values, a second implementation, brute force, and its own limits."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, signal, stats

import sfumato
from sfumato.errors import InternalError, PrivacyRefusal, UserError
from sfumato.privacy import accounting, sums
from sfumato.privacy.accounting import (
    NOISE_RANGE,
    SMALLEST_GRID_SCALE,
    Histogram,
    IntegerSum,
    Mechanism,
    Training,
    attacker_power,
    calibrate,
    cross_check,
    delta,
    epsilon,
    gaussian_mu,
    rdp,
    rdp_epsilon,
    replace_one_epsilon,
    round_up_epsilon,
    round_up_noise,
)

COARSE = 1e-3


def one_over_n_log_n(n: int) -> float:
    return 1 / (n * math.log(n))


def analytic_delta(mu: float, eps: float) -> float:
    """Balle & Wang 2018: delta of Gaussian releases of total Gaussian-DP parameter mu, by scipy."""
    upper, lower = stats.norm.logcdf([-eps / mu + mu / 2, -eps / mu - mu / 2])
    return float(math.exp(upper) - math.exp(eps + lower))


def analytic_epsilon(mu: float, target: float) -> float:
    if analytic_delta(mu, 0.0) <= target:
        return 0.0
    return float(optimize.brentq(lambda eps: analytic_delta(mu, eps) - target, 0, 1000, xtol=1e-12))


def gaussian(noise_multiplier: float, releases: int) -> Training:
    return Training(noise_multiplier, 1.0, releases)


def noise_for(eps: float, releases: int, target: float) -> float:
    return math.sqrt(releases) / gaussian_mu(eps, target)


# --- Gaussian releases --------------------------------------------------------------------------------------------

N_10240, N_15154, N_30000, N_300000 = (one_over_n_log_n(n) for n in (10_240, 15_154, 30_000, 300_000))


@pytest.mark.parametrize(
    ("target", "releases", "at_delta", "noise"),
    [
        (1, 9, N_10240, 11.154),
        (1, 10, N_10240, 11.757),
        (1, 20, N_10240, 16.628),
        (10, 9, N_10240, 1.497),
        (1, 9, N_15154, 11.444),
        (1, 10, N_15154, 12.063),
        (10, 9, N_15154, 1.521),
        (1, 9, N_30000, 11.935),
        (1, 10, N_30000, 12.581),
        (10, 9, N_30000, 1.561),
        (1, 9, N_300000, 13.474),
        (1, 10, N_300000, 14.203),
        (10, 9, N_300000, 1.691),
        *zip([1] * 5, (5, 9, 10, 15, 20), [1e-6] * 5, (9.447, 12.674, 13.360, 16.362, 18.893), strict=True),
        *zip([4] * 5, (5, 9, 10, 15, 20), [1e-6] * 5, (2.669, 3.581, 3.774, 4.622, 5.338), strict=True),
    ],
)
def test_noise_of_gaussian_releases(target: float, releases: int, at_delta: float, noise: float) -> None:
    exact = noise_for(target, releases, at_delta)
    assert exact == pytest.approx(noise, abs=6e-4)
    assert analytic_epsilon(math.sqrt(releases) / exact, at_delta) == pytest.approx(target, abs=1e-9)
    assert target <= epsilon([gaussian(exact, releases)], at_delta, COARSE) <= target + 1e-3


GAUSSIAN_EPSILON = [
    (5 * math.sqrt(2), 1, 1e-5, 0.4970),
    (5 * math.sqrt(2), 2, 1e-5, 0.7255),
    (5 * math.sqrt(2), 5, 1e-5, 1.1994),
    (5 * math.sqrt(2), 20, 1e-5, 2.5944),
    (2 * math.sqrt(2), 29, 3e-6, 9.9211),
    (2, 17, 1e-3, 7.8901),
    (2 * math.sqrt(2), 5, 1e-5, 3.3414),
    (10, 10, 1e-5, 1.1994),
    (1, 1, 1e-5, 4.3772),
    (5, 17, 1e-6, 3.9290),
    (15.34, 10, one_over_n_log_n(1_939_290), 1.0045),
    (8.03, 10, one_over_n_log_n(1_939_290), 2.0024),
    (4.24, 10, one_over_n_log_n(1_939_290), 4.0053),
    (11.60, 10, one_over_n_log_n(8_396), 1.0000),
    (6.22, 10, one_over_n_log_n(8_396), 1.9967),
    (3.38, 10, one_over_n_log_n(8_396), 3.9922),
    (13.26, 10, one_over_n_log_n(75_316), 0.9992),
    (7.01, 10, one_over_n_log_n(75_316), 1.9972),
    (3.75, 10, one_over_n_log_n(75_316), 3.9992),
]


@pytest.mark.parametrize(("noise", "releases", "at_delta", "expected"), GAUSSIAN_EPSILON)
def test_epsilon_of_gaussian_releases(noise: float, releases: int, at_delta: float, expected: float) -> None:
    exact = analytic_epsilon(math.sqrt(releases) / noise, at_delta)
    assert exact == pytest.approx(expected, abs=6e-5)
    assert exact <= epsilon([gaussian(noise, releases)], at_delta, COARSE) <= exact + 5e-4
    assert exact <= epsilon([IntegerSum(noise, releases)], at_delta) <= exact + 1e-4
    assert at_delta <= delta([IntegerSum(noise, releases)], exact) <= 1.001 * at_delta


@pytest.mark.parametrize(
    ("noise", "releases", "at_delta", "expected"),
    [
        (2 * math.sqrt(2), 5, 1e-5, 3.6171),
        (10, 10, 1e-5, 1.3085),
        (1, 1, 1e-5, 4.7285),
        (5, 17, 1e-6, 4.2037),
    ],
)
def test_renyi_epsilon_of_gaussian_releases(noise: float, releases: int, at_delta: float, expected: float) -> None:
    for mechanism in (gaussian(noise, releases), IntegerSum(noise, releases), Histogram(noise, 1, releases)):
        assert rdp_epsilon([mechanism], at_delta) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("releases", [1, 30, 1000, 4000, 20_000])
@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_rounding_of_convolutions_is_allowed_for(releases: int, mu: float) -> None:
    """Without the allowance on delta, 4000 releases of noise multiplier 63 would be priced below their true cost."""
    found = epsilon([gaussian(math.sqrt(releases) / mu, releases)], 1e-11)
    assert analytic_epsilon(mu, 1e-11) <= found


# --- DP-SGD -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "z", "steps", "at_delta", "pld", "coarse", "renyi"),
    [
        (4096 / 60000, 10, 2200, 1e-5, 1.2238, 1.2261, 1.3354),
        (0.01, 1, 3000, 1e-5, 3.1923, 3.1938, 3.5108),
        (0.001, 0.6, 50_000, 1e-6, 5.1233, 5.1370, 5.9260),
    ],
)
def test_epsilon_of_training(
    q: float, z: float, steps: int, at_delta: float, pld: float, coarse: float, renyi: float
) -> None:
    training = [Training(z, q, steps)]
    assert epsilon(training, at_delta) == pytest.approx(pld, abs=6e-5)
    assert epsilon(training, at_delta, COARSE) == pytest.approx(coarse, abs=6e-5)
    assert rdp_epsilon(training, at_delta) == pytest.approx(renyi, abs=6e-5)


FMNIST, CIFAR = (1 / 14, 2100, one_over_n_log_n(55_000)), (1 / 11, 1650, one_over_n_log_n(45_000))


@pytest.mark.parametrize(
    ("setting", "target", "renyi_noise", "pld_there", "pld_noise"),
    [
        (FMNIST, 0.2, 70.37, 0.184, 64.25),
        (FMNIST, 1, 14.553, 0.928, 13.583),
        (FMNIST, 10, 1.994, 9.342, 1.899),
        (CIFAR, 0.2, 77.43, 0.182, 70.41),
        (CIFAR, 1, 16.25, 0.926, 15.14),
        (CIFAR, 10, 2.206, 9.337, 2.096),
        ((1 / 3, 150, 1e-5), 1, 16.64, 0.915, None),
        ((1 / 3, 150, 1e-5), 5, 4.035, 4.609, None),
        ((1 / 3, 150, 1e-5), 10, 2.331, 9.201, None),
    ],
)
def test_what_renyi_noise_costs_by_pld(
    setting: tuple[float, int, float], target: float, renyi_noise: float, pld_there: float, pld_noise: float | None
) -> None:
    q, steps, at_delta = setting
    assert rdp_epsilon([Training(renyi_noise, q, steps)], at_delta) == pytest.approx(target, rel=0.015)
    assert epsilon([Training(renyi_noise, q, steps)], at_delta, COARSE) == pytest.approx(pld_there, abs=2.1e-3)
    if pld_noise:
        assert epsilon([Training(pld_noise, q, steps)], at_delta, COARSE) == pytest.approx(target, rel=1.5e-3)


@pytest.mark.parametrize(
    ("records", "at_delta", "batch", "steps", "noises"),
    [
        (30_000, 1e-5, 1024, 1000, {1: 4.14, 5: 1.21, 10: 0.85}),
        (30_000, 1e-5, 4096, 1000, {1: 16.2, 5: 3.95, 10: 2.29}),
        (50_000, 1e-5, 1024, 1000, {1: 2.57, 5: 0.90, 10: 0.68}),
        (82_783, 1e-6, 4096, 1000, {1: 6.72, 5: 1.73, 10: 1.11}),
        (162_770, 1e-6, 4096, 1000, {1: 3.50, 5: 1.07, 10: 0.78}),
        (60_000, 1e-5, 1024, 1000, {1: 2.19, 10: 0.64}),
        (60_000, 1e-5, 2048, 1000, {1: 4.16, 10: 0.85}),
        (60_000, 1e-5, 4096, 500, {1: 5.82, 10: 1.04}),
        (60_000, 1e-5, 4096, 1000, {1: 8.17, 10: 1.30}),
        (60_000, 1e-5, 8192, 300, {1: 8.95, 10: 1.40}),
    ],
)
def test_noise_of_training(records: int, at_delta: float, batch: int, steps: int, noises: dict[float, float]) -> None:
    for target, noise in noises.items():
        found = epsilon([Training(noise, batch / records, steps)], at_delta, COARSE)
        assert found == pytest.approx(target, rel=0.006 + 0.015 / noise)  # the noise is given to 2 decimals


# --- histograms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "rounds", "discrete", "continuous"),
    [(0.7, 1, 6.956, 6.652), (1, 1, 4.430, 4.377), (11.15, 9, 1.004, 1.004)],
)
def test_discrete_noise_costs_more_than_continuous(
    scale: float, rounds: int, discrete: float, continuous: float
) -> None:
    found = epsilon([Histogram(scale, 1, rounds)], 1e-5)
    assert found == pytest.approx(discrete, abs=6e-4)
    assert analytic_epsilon(math.sqrt(rounds) / scale, 1e-5) == pytest.approx(continuous, abs=6e-4)
    assert found > analytic_epsilon(math.sqrt(rounds) / scale, 1e-5)


def discrete_gaussian(scale: float, centre: int, reach: int) -> NDArray[np.float64]:
    weights = np.exp(-((np.arange(-reach, reach + 1) - centre) ** 2) / (2 * scale**2))
    return np.asarray(weights / weights.sum())


def brute_delta(scale: float, shift: tuple[int, ...], eps: float) -> float:
    """Hockey-stick divergence of discrete Gaussian noise around `shift` and around 0, summed over every outcome."""
    upper = lower = np.ones(1)
    reach = math.ceil(9 * scale) + max(shift)
    for component in shift:
        upper = np.outer(upper, discrete_gaussian(scale, component, reach)).ravel()
        lower = np.outer(lower, discrete_gaussian(scale, 0, reach)).ravel()
    return float(np.maximum(upper - math.exp(eps) * lower, 0).sum())


@pytest.mark.parametrize("scale", [0.4, 0.7, 1.0, 1.37, 3.0])
@pytest.mark.parametrize(("cells", "rounds"), [(1, 1), (2, 1), (1, 3)])
def test_histogram_against_brute_force(scale: float, cells: int, rounds: int) -> None:
    shift = (1,) * (cells * rounds)
    for eps in (0.0, 0.3, 1.0, 2.5, 6.0):
        exact, found = brute_delta(scale, shift, eps), delta([Histogram(scale, cells, rounds)], eps)
        assert exact - 1e-13 <= found <= exact + 3e-4 * math.exp(eps) * exact + 1e-11


# --- integer sums -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "shift"), [(2.2, (1,)), (3, (3,)), (3, (2, 2)), (4, (9,)), (5, (3, 4)), (5, (0, 1)), (2.5, (1, 1, 1))]
)
def test_discrete_noise_is_dominated_by_less_gaussian_noise(scale: float, shift: tuple[int, ...]) -> None:
    mu = math.hypot(*shift) / math.sqrt(scale**2 - 4)
    for eps in (-1.0, 0.0, 0.1, 0.5, 1.0, 3.0, 8.0):
        assert brute_delta(scale, shift, eps) <= analytic_delta(mu, eps) + 1e-13


@pytest.mark.parametrize("shift", [(1000, 0), (600, 800), (280, 960)])
def test_integer_sum_against_brute_force(shift: tuple[int, int]) -> None:
    """All outcomes of a sum whose noise is as coarse as allowed: the loss depends on x only through <x, shift>."""
    scale, reach = SMALLEST_GRID_SCALE, 7000
    step = math.gcd(*shift)
    along = [shift[0] // step, shift[1] // step]
    rays = []
    for factor in along:
        ray = np.zeros(2 * reach * factor + 1)
        ray[:: max(factor, 1)] = discrete_gaussian(scale, 0, reach) if factor else 1.0
        rays.append(ray)
    probability = signal.fftconvolve(*rays)
    inner = (np.arange(len(probability)) - len(probability) // 2) * step
    norm = math.hypot(*shift)
    loss = (inner + norm**2 / 2) / scale**2  # of x drawn around `shift`
    for eps in (0.0, 0.3, 1.0, 2.0, 4.0):
        exact = float((np.maximum(-np.expm1(eps - loss), 0) * probability).sum())
        found = delta([IntegerSum(scale / norm, 1)], eps)
        assert exact - 1e-13 <= found <= exact * (1 + 1e-4)


@pytest.mark.parametrize("noise", [0.7, 1, 2, 5, 20])
def test_integer_sum_costs_more_than_gaussian_and_less_than_zcdp_says(noise: float) -> None:
    def zcdp_epsilon(rho: float, target: float) -> float:  # Canonne, Kamath, Steinke 2020, corollary 13
        def bound(alpha: float) -> float:
            return alpha * rho + math.log(1 / (alpha * target)) / (alpha - 1) + math.log1p(-1 / alpha)

        return float(optimize.minimize_scalar(bound, bounds=(1.0001, 1e4), method="bounded").fun)

    for at_delta in (1e-3, 1e-5, 1e-9):
        found = epsilon([IntegerSum(noise, 1)], at_delta)
        assert analytic_epsilon(1 / noise, at_delta) <= found < zcdp_epsilon(1 / (2 * noise**2), at_delta)


def test_sums_use_a_grid_as_fine_as_their_price_assumes() -> None:
    assert sums.GRID * NOISE_RANGE[0] >= SMALLEST_GRID_SCALE


# --- what mistakes cost -------------------------------------------------------------------------------------------


def test_delta_taken_from_too_few_records() -> None:
    assert epsilon([gaussian(11.154, 9)], N_300000) == pytest.approx(1.224, abs=6e-4)


def test_neighbours_that_replace_a_record() -> None:
    assert replace_one_epsilon([Histogram(11.154, 1, 9)], N_10240) == pytest.approx(1.465, abs=1e-3)
    for twice_the_norm in (gaussian(4, 2), IntegerSum(4, 2)):
        exact = analytic_epsilon(math.sqrt(2) / 2, 1e-5)
        assert exact <= replace_one_epsilon([twice_the_norm], 1e-5) <= exact + 1e-4
    sampled: list[Mechanism] = [Training(2, 0.01, 500), Histogram(20, 1, 2)]
    assert epsilon(sampled, 1e-5) < replace_one_epsilon(sampled, 1e-5) < 3 * epsilon(sampled, 1e-5)


@pytest.mark.parametrize(
    ("classes", "at_delta", "true"),
    [(2, one_over_n_log_n(162_770), 1.452), (100, one_over_n_log_n(126_689), 13.38), (10, 1e-5, 3.62)],
)
def test_a_record_that_votes_in_every_class(classes: int, at_delta: float, true: float) -> None:
    voting = Histogram(noise_for(1, 9, at_delta), classes, 9)
    assert epsilon([voting], at_delta) == pytest.approx(true, rel=1.5e-3)


@pytest.mark.parametrize(("images", "true"), [(2, 2.156), (5, 6.174), (10, 14.457), (30, 66.06)])
def test_a_person_with_many_images_under_unit_image(images: int, true: float) -> None:
    assert epsilon([gaussian(11.154 / images, 9)], N_10240, COARSE) == pytest.approx(true, rel=1e-3)


def test_iterations_that_were_not_charged() -> None:
    assert epsilon([gaussian(13.360, 10), gaussian(18.893, 10)], 1e-6) == pytest.approx(1.245, abs=6e-4)
    assert epsilon([gaussian(11.757, 20)], N_10240) == pytest.approx(1.465, abs=6e-4)
    assert epsilon([gaussian(16.63, 10)], N_10240) == pytest.approx(0.684, abs=6e-4)
    for runs, true in ((3, 1.823), (10, 3.567)):
        assert epsilon([gaussian(noise_for(1, 10, 3.23e-6), 10 * runs)], 3.23e-6) == pytest.approx(true, abs=6e-4)


# --- cross-check --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "z", "steps", "ratio"), [(0.002, 0.7, 500, 1.97), (0.001, 0.5, 10, 2.91)])
def test_renyi_above_pld_is_no_disagreement(q: float, z: float, steps: int, ratio: float) -> None:
    found = cross_check([Training(z, q, steps)], 1e-5, COARSE)
    assert found.rdp / found.pld == pytest.approx(ratio, rel=0.01)
    assert found.pld < found.doubled_interval < 1.01 * found.pld


def test_pld_above_renyi_is_our_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    true = epsilon([gaussian(1, 1)], 1e-5)
    monkeypatch.setattr(accounting, "rdp_epsilon", lambda *_: (true - 0.006) / 1.01)
    with pytest.raises(InternalError, match="disagree"):
        cross_check([gaussian(1, 1)], 1e-5)
    monkeypatch.setattr(accounting, "rdp_epsilon", lambda *_: (true - 0.004) / 1.01)
    assert cross_check([gaussian(1, 1)], 1e-5).pld == true


def test_a_grid_that_is_too_coarse_is_refused() -> None:
    with pytest.raises(PrivacyRefusal, match="twice"):
        cross_check([gaussian(30, 900)], 1e-5, interval=0.05)
    with pytest.raises(PrivacyRefusal, match="inf"):
        cross_check([gaussian(0.1, 100)], 1e-5)


def test_renyi_divergences() -> None:
    assert rdp([Histogram(2, 3, 4)], 5) == pytest.approx(5 * 12 / 8)
    assert rdp([IntegerSum(2, 4)], 5) == pytest.approx(5 * 4 / 8)
    assert rdp([gaussian(2, 4), IntegerSum(2, 4)], 2.5) == pytest.approx(2 * 2.5 * 4 / 8)
    assert rdp([Training(1, 0.01, 3000)], 8.5) == pytest.approx(3.268168735, rel=1e-8)
    with pytest.raises(UserError, match="above 1"):
        rdp([gaussian(1, 1)], 1.0)


# --- the attacker -------------------------------------------------------------------------------------------------


def test_gaussian_mu() -> None:
    assert gaussian_mu(1, 1e-5) == pytest.approx(0.268, abs=5e-4)
    assert gaussian_mu(10, 1e-5) == pytest.approx(2.000, abs=5e-4)
    assert analytic_delta(gaussian_mu(3, 1e-7), 3) == pytest.approx(1e-7, rel=1e-9)
    assert gaussian_mu(100, 0.9) > gaussian_mu(1e-4, 1e-12) > 0


@pytest.mark.parametrize("mu", [0.1, 0.268, 1.0, 3.0])
@pytest.mark.parametrize("false_alarm", [0.001, 0.05, 0.5])
def test_power_of_an_attacker_on_gaussian_releases(mu: float, false_alarm: float) -> None:
    exact = stats.norm.cdf(stats.norm.ppf(false_alarm) + mu)
    found = attacker_power([IntegerSum(3 / mu, 9)], false_alarm)
    assert exact - 1e-12 <= found <= exact + 1e-5


def test_power_of_an_attacker_elsewhere() -> None:
    assert attacker_power([], 0.05) == pytest.approx(0.05, abs=1e-6)
    assert attacker_power([gaussian(0.1, 100)], 0.05) == 1.0
    sampled = attacker_power([Training(1, 0.01, 3000)], 0.01, COARSE)
    eps = epsilon([Training(1, 0.01, 3000)], 1e-5, COARSE)
    assert 0.01 < sampled < math.exp(eps) * 0.01 + 1e-5
    with pytest.raises(UserError, match="below 1"):
        attacker_power([], 1.0)


# --- calibration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "steps", "target", "at_delta", "expected"),
    [(1 / 14, 2100, 1, FMNIST[2], 13.53), (0.034, 1000, 5, 1e-5, 1.21), (0.01, 4000, 1, 1e-5, 2.487)],
)
def test_training_noise_is_on_the_safe_side(
    q: float, steps: int, target: float, at_delta: float, expected: float
) -> None:
    noise = calibrate(lambda z: Training(z, q, steps), target, at_delta)
    assert epsilon([Training(noise, q, steps)], at_delta) <= target
    assert epsilon([Training(0.99 * noise, q, steps)], at_delta) > target
    assert noise == pytest.approx(expected, rel=1.1e-3)


@settings(max_examples=8, deadline=None)
@given(
    st.floats(0.2, 10),
    st.floats(-9, -3),
    st.integers(1, 40),
    st.floats(0.01, 0.5),
    st.sampled_from([Histogram, IntegerSum]),
)
def test_calibrated_noise_is_least(
    target: float, log_delta: float, rounds: int, share: float, kind: type[Histogram] | type[IntegerSum]
) -> None:
    at_delta = 10**log_delta
    other = IntegerSum(1 / (gaussian_mu(target, at_delta) * math.sqrt(share)), 1)

    def main(noise: float) -> Histogram | IntegerSum:
        return Histogram(noise, 1, rounds) if kind is Histogram else IntegerSum(noise, rounds)

    noise = calibrate(main, target, at_delta, [other], COARSE)
    assert noise == round_up_noise(noise)
    assert epsilon([main(noise), other], at_delta, COARSE) <= target
    assert epsilon([main(0.99 * noise), other], at_delta, COARSE) > target


def test_a_search_that_ends_too_low_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = accounting.solve
    monkeypatch.setattr(accounting, "solve", lambda price, target, start: 0.98 * solve(price, target, start))
    assert epsilon([gaussian(calibrate(lambda z: gaussian(z, 1), 1.0, 1e-5, (), COARSE), 1)], 1e-5, COARSE) <= 1.0


@pytest.mark.parametrize("target", [1, 10])
def test_what_shares_cost_the_main_touch(target: float) -> None:
    mu = gaussian_mu(target, 1e-5)
    for share, cost in ((0.01, 1.005), (0.05, 1.026), (0.1, 1.054)):
        other = IntegerSum(1 / (mu * math.sqrt(share)), 1)
        noise = calibrate(lambda z: gaussian(z, 1), target, 1e-5, [other], COARSE)
        assert noise * mu == pytest.approx(cost, abs=1.5e-3)


def test_a_budget_that_others_have_used_up_is_refused() -> None:
    with pytest.raises(PrivacyRefusal, match="already use"):
        calibrate(lambda z: Training(z, 0.1, 100), 1.0, 1e-5, [Histogram(3, 1, 1)])


def test_noise_stays_within_its_range() -> None:
    noise = calibrate(lambda z: gaussian(z, 1), 100, 0.1, interval=0.01)
    assert noise == NOISE_RANGE[0]
    assert epsilon([gaussian(noise, 1)], 0.1, COARSE) < 100


# --- limits and rounding ------------------------------------------------------------------------------------------


def test_limits() -> None:
    assert epsilon([], 1e-5) == 0
    assert delta([], 0) < 1e-13
    assert epsilon([gaussian(1e5, 1)], 1e-3) == 0
    assert epsilon([gaussian(0.1, 100)], 1e-5) == math.inf == replace_one_epsilon([gaussian(0.1, 100)], 1e-5)
    assert delta([gaussian(0.1, 100)], 1.0) == 1.0
    assert epsilon([Training(2, 1.0, 1)], 1e-5) == pytest.approx(epsilon([Training(2, 1 - 1e-9, 1)], 1e-5), abs=1e-4)
    assert 0 < epsilon([Training(1, 1e-5, 1)], 1e-7) < 1.5
    assert epsilon([gaussian(3000, 1)], 1e-5) < 2e-3


def test_the_order_of_listing_changes_no_bit() -> None:
    parts: list[Mechanism] = [Histogram(9, 1, 2), Training(2, 0.05, 50), IntegerSum(20, 3)]
    assert epsilon(parts, 1e-6) == epsilon(parts[::-1], 1e-6)


def test_delta_too_small_for_the_number_of_compositions() -> None:
    assert epsilon([gaussian(30, 900)], 1e-12) > analytic_epsilon(1, 1e-12)
    with pytest.raises(UserError, match=r"at least 1\.0e-11"):
        epsilon([gaussian(300, 50_000)], 1e-12)


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, 1e-13, 1.0, "1e-5", None, True])
def test_delta_out_of_range(bad: float) -> None:
    with pytest.raises(UserError, match="delta is"):
        epsilon([gaussian(1, 1)], bad)


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, "1", None, 0.05, 1e6])
def test_mechanisms_refuse_bad_noise(bad: float) -> None:
    for make in (lambda: Histogram(bad, 1, 1), lambda: IntegerSum(bad, 1), lambda: Training(bad, 1, 1)):
        with pytest.raises(UserError, match=r"must be a number at least 0\.1 and at most 100000"):
            make()


@pytest.mark.parametrize("bad", [0, -3, 1.5, math.nan, True, "2"])
def test_mechanisms_refuse_bad_counts(bad: int) -> None:
    for make in (lambda: Histogram(1, bad, 1), lambda: Histogram(1, 1, bad), lambda: IntegerSum(1, bad)):
        with pytest.raises(UserError, match="whole number"):
            make()
    with pytest.raises(UserError, match="steps"):
        Training(1, 0.1, bad)


@pytest.mark.parametrize("bad", [0, -0.1, 1.0001, math.nan])
def test_training_refuses_bad_rates(bad: float) -> None:
    with pytest.raises(UserError, match="sampling_rate"):
        Training(1, bad, 1)


@pytest.mark.parametrize("bad", [0, -1, 100.1, 1e9, math.nan, math.inf])
def test_calibration_refuses_bad_epsilon(bad: float) -> None:
    for call in (lambda: gaussian_mu(bad, 1e-5), lambda: calibrate(lambda z: gaussian(z, 1), bad, 1e-5)):
        with pytest.raises(UserError, match="above 0 and at most 100"):
            call()


@given(st.floats(1e-6, 1e6))
def test_noise_is_rounded_up(noise: float) -> None:
    rounded = round_up_noise(noise)
    assert noise <= rounded <= noise * 1.001
    assert rounded == round_up_noise(rounded) == float(f"{rounded:.4g}")


@given(st.floats(0, 1e4))
def test_epsilon_is_rounded_up(value: float) -> None:
    rounded = round_up_epsilon(value)
    assert value <= rounded <= value + 1.0001e-4
    assert rounded == round_up_epsilon(rounded) == float(f"{rounded:.4f}")


def test_rounding_at_its_edges() -> None:
    assert (round_up_noise(13.5801), round_up_noise(13.58), round_up_noise(9.9999)) == (13.59, 13.58, 10.0)
    assert (round_up_epsilon(0.99991), round_up_epsilon(1.23451, 2), round_up_epsilon(-1e-9)) == (1.0, 1.24, 0.0)
    for bad in (math.nan, math.inf):
        with pytest.raises(UserError):
            round_up_epsilon(bad)
    for bad in (math.nan, math.inf, 0.0, -1.0):
        with pytest.raises(UserError):
            round_up_noise(bad)


@settings(max_examples=6, deadline=None)
@given(st.floats(1, 20), st.floats(0.01, 1), st.integers(1, 50), st.integers(1, 4))
def test_less_noise_and_more_releases_cost_more(noise: float, q: float, steps: int, cells: int) -> None:
    def price(noise: float, q: float, steps: int, cells: int, at_delta: float = 1e-6) -> float:
        return epsilon([Training(noise, q, steps), Histogram(noise, cells, 2)], at_delta, COARSE)

    here = price(noise, q, steps, cells)
    assert price(1.2 * noise, q, steps, cells) <= here <= price(noise, q, steps + 5, cells)
    assert price(noise, 0.8 * q, steps, cells) <= here <= price(noise, q, steps, cells + 1)
    assert price(noise, q, steps, cells, 1e-4) <= here <= price(noise, q, steps, cells, 1e-8)


# --- the door -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "doors"),
    [("dp_accounting", {"privacy/_losses.py"}), ("sfumato.privacy._losses", {"privacy/accounting.py"})],
)
def test_only_accounting_reaches_dp_accounting(module: str, doors: set[str]) -> None:
    root, found = Path(sfumato.__file__).parent, set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names += [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
            if any(f"{name}.".startswith(f"{module}.") for name in names):
                found.add(path.relative_to(root).as_posix())
    assert found == doors


def test_importing_a_plan_is_cheap() -> None:
    code = "import sys, sfumato.privacy.plan; print({'dp_accounting', 'scipy', 'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
