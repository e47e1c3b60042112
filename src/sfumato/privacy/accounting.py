"""What a set of touches costs: epsilon, delta and an attacker's power. The one door to dp-accounting.

A touch is described here by its *mechanism*, a few public numbers: `Histogram`, `IntegerSum` or `Training`. Each has a
*dominating pair* of distributions, one for a record added and one for a record removed: whatever the record and the
data, no test tells the two outputs apart better than it tells the pair apart. A privacy loss distribution (PLD) is such
a pair on a grid of losses, rounded so that it dominates; pairs multiply under adaptive composition (Zhu, Dong, Wang
2022, "Optimal accounting of differential privacy via characteristic function", theorem 10), so PLDs are convolved.

Rounding is always towards more epsilon: losses are discretised pessimistically (connect the dots, Doroshenko et al.
2022), and delta carries an allowance for the rounding errors of the Fourier transforms behind the convolutions.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from sfumato.errors import InternalError, PrivacyRefusal, UserError
from sfumato.privacy import _losses
from sfumato.privacy._mechanisms import (
    NOISE_RANGE,
    SMALLEST_GRID_SCALE,
    Histogram,
    IntegerSum,
    Mechanism,
    Training,
    positive,
)
from sfumato.privacy._search import noise_for, solve

__all__ = [
    "INTERVAL",
    "LARGEST_EPSILON",
    "NOISE_RANGE",
    "SMALLEST_DELTA",
    "SMALLEST_GRID_SCALE",
    "CrossCheck",
    "Histogram",
    "IntegerSum",
    "Mechanism",
    "Training",
    "accountant_version",
    "attacker_power",
    "calibrate",
    "check_delta",
    "cross_check",
    "delta",
    "epsilon",
    "gaussian_mu",
    "rdp",
    "rdp_epsilon",
    "replace_one_epsilon",
    "round_up_epsilon",
    "round_up_noise",
]

INTERVAL = 1e-4
"""Discretisation interval of privacy losses, throughout a composition.

Measured: DP-SGD with sampling rate 0.001, noise multiplier 0.6 and 50,000 steps costs epsilon 5.1233 on this grid and
5.1370 on one of 1e-3. Both take seconds, so only the search for a noise multiplier uses the coarser one.
"""

SMALLEST_DELTA = 1e-12
LARGEST_EPSILON = 100.0
_SEARCH_COARSER = 10  # how many intervals make one of the search's first grid


def check_delta(delta: float) -> float:
    """`delta` as a float in [1e-12, 1).

    *Guarantee:* refuses what double precision cannot bound. *Does not cover:* whether it suits the number of records.

    Raises:
        UserError: it is outside.
    """
    number = positive("delta", delta, smallest=SMALLEST_DELTA)
    if number >= 1:
        raise UserError(f"delta is {delta!r}; it must be below 1, and well below 1 / number of records.")
    return number


@dataclass(frozen=True)
class CrossCheck:
    """Epsilon of one composition by three computations.

    *Guarantee:* made by `cross_check` only if the three agree as far as they must. *Does not cover:* an error common to
    all.

    Attributes:
        pld: by privacy loss distributions, the one that is claimed.
        rdp: by Renyi differential privacy; larger by any factor without either being wrong.
        doubled_interval: by privacy loss distributions on a grid twice as coarse.
    """

    pld: float
    rdp: float
    doubled_interval: float


def epsilon(mechanisms: Iterable[Mechanism], delta: float, interval: float = INTERVAL) -> float:
    """The epsilon at `delta` of the adaptive composition of `mechanisms`; 0 for none of them.

    *Guarantee:* an upper bound under adding or removing one record; infinite where next to nothing is protected (a
    Renyi divergence of order 2 above 500). *Does not cover:* replacing a record; groups of records.

    Raises:
        UserError: delta is out of range, or too small to be computed for so many compositions.
    """
    return _price(_in_order(mechanisms), check_delta(delta), interval)


def delta(mechanisms: Iterable[Mechanism], epsilon: float, interval: float = INTERVAL) -> float:
    """The delta at `epsilon` >= 0 of the adaptive composition of `mechanisms`.

    *Guarantee:* an upper bound under adding or removing one record. *Does not cover:* replacing a record; groups.

    Raises:
        UserError: epsilon is negative or not finite.
    """
    target = 0.0 if epsilon == 0 else positive("epsilon", epsilon)
    mechanisms = _in_order(mechanisms)
    if _losses.hopeless(mechanisms):
        return 1.0
    found = _losses.distribution(mechanisms, interval).get_delta_for_epsilon(target)
    return min(1.0, float(found) + _losses.allowance(mechanisms))


def rdp(mechanisms: Iterable[Mechanism], order: float) -> float:
    """Renyi divergence of the composition at one order above 1: the sum over mechanisms.

    Histograms and integer sums: order x rho. Training: Mironov, Talwar, Zhang 2019.

    *Guarantee:* an upper bound under adding or removing one record; it adds up over adaptively chosen mechanisms, which
    is what a Renyi filter needs. *Does not cover:* a choice of the order after the fact.

    Raises:
        UserError: the order is not above 1.
    """
    if positive("order", order) <= 1:
        raise UserError(f"order is {order!r}; a Renyi order must be above 1.")
    return float(_losses.renyi(_in_order(mechanisms), [order]).rdp[0])


def rdp_epsilon(mechanisms: Iterable[Mechanism], delta: float) -> float:
    """Epsilon at `delta` by Renyi accounting: the second opinion, never the claim.

    *Guarantee:* an upper bound, usually 5 to 10 % above `epsilon`, at times several times it. *Does not cover:* as
    `epsilon`.

    Raises:
        UserError: delta is out of range.
    """
    return max(0.0, float(_losses.renyi(_in_order(mechanisms), None).get_epsilon(check_delta(delta))))


def cross_check(mechanisms: Iterable[Mechanism], delta: float, interval: float = INTERVAL) -> CrossCheck:
    """Epsilon by PLD, by PLD at twice the interval, and by RDP.

    *Guarantee:* PLD exceeds RDP by at most 1 % + 0.005, and moves by at most 1 % + 0.005 when the interval doubles. RDP
    above PLD by any factor is no disagreement. *Does not cover:* an error common to both.

    Raises:
        InternalError: PLD exceeds RDP by more.
        PrivacyRefusal: the loss grid is too coarse for this composition.
        UserError: delta is out of range.
    """
    mechanisms = _in_order(mechanisms)
    fine, coarse = (epsilon(mechanisms, delta, step) for step in (interval, 2 * interval))
    renyi = rdp_epsilon(mechanisms, delta)
    if math.isinf(fine) or abs(coarse - fine) > 0.01 * fine + 0.005:
        raise PrivacyRefusal(
            f"The cost of this plan cannot be computed reliably: epsilon is {fine:.4f} with a loss interval of"
            f" {interval:g} and {coarse:.4f} with twice that. Plan more noise, or fewer rounds or steps."
        )
    if fine > 1.01 * renyi + 0.005:
        raise InternalError(
            f"Two accountants disagree: epsilon is {fine:.4f} by privacy loss distributions and {renyi:.4f} by Renyi"
            " divergences, which should not be smaller. Nothing was spent."
        )
    return CrossCheck(pld=fine, rdp=renyi, doubled_interval=coarse)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu for which one Gaussian release of noise multiplier 1 / mu costs exactly (epsilon, delta).

    Solves delta = Phi(-epsilon / mu + mu / 2) - e^epsilon Phi(-epsilon / mu - mu / 2) (Balle, Wang 2018; Dong, Roth, Su
    2022, corollary 1). Budgets are shared in units of mu^2, which add up; epsilons do not.

    *Guarantee:* none; it sizes shares and prices nothing. *Does not cover:* noise that is not Gaussian.

    Raises:
        UserError: epsilon is not in (0, 100] or delta not in [1e-12, 1).
    """
    epsilon, delta = positive("epsilon", epsilon, LARGEST_EPSILON), check_delta(delta)
    low, high = 0.0, 1.0
    while _gaussian_delta(high, epsilon) < delta:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _gaussian_delta(middle, epsilon) < delta else (low, middle)
    return low


def attacker_power(mechanisms: Iterable[Mechanism], false_alarm: float, interval: float = INTERVAL) -> float:
    """How often, at most, an attacker recognises a given unit, if at most `false_alarm` of absent units raise an alarm.

    The trade-off curve of the composition: the least e^eps x false_alarm + delta(eps) over eps of both signs
    (Wasserman, Zhou 2010; Dong, Roth, Su 2022, proposition 6).

    *Guarantee:* an upper bound on the true-positive rate of any test with any knowledge of the other records. *Does not
    cover:* what can be learned of a unit without its record; groups.

    Raises:
        UserError: false_alarm is not in (0, 1).
    """
    from scipy import optimize

    if positive("false_alarm", false_alarm) >= 1:
        raise UserError(f"false_alarm is {false_alarm!r}; it must be above 0 and below 1.")
    mechanisms = _in_order(mechanisms)
    if _losses.hopeless(mechanisms):
        return 1.0
    distribution = _losses.distribution(mechanisms, interval)

    def power(eps: float) -> float:
        return math.exp(eps) * false_alarm + float(distribution.get_delta_for_epsilon(eps))

    # Quasi-convex in eps, and any eps gives a valid bound; at either end it is above 1 - 1e-8.
    least = optimize.minimize_scalar(power, bounds=(-20.0, -math.log(false_alarm)), method="bounded").fun
    return min(1.0, float(least) + _losses.allowance(mechanisms))


def replace_one_epsilon(mechanisms: Iterable[Mechanism], delta: float, interval: float = INTERVAL) -> float:
    """Epsilon at `delta` if neighbours differ by replacing one record.

    *Guarantee:* an upper bound. *Does not cover:* groups.

    Raises:
        UserError: delta is out of range, or too small to be computed for so many compositions.
    """
    mechanisms, delta = _in_order(mechanisms), check_delta(delta)
    if _losses.hopeless(mechanisms, distance=2.0):
        return math.inf
    return _losses.epsilon_at(_losses.replacing(mechanisms, interval), delta, mechanisms * 2)


def calibrate(
    at_noise: Callable[[float], Mechanism],
    epsilon: float,
    delta: float,
    others: Iterable[Mechanism] = (),
    interval: float = INTERVAL,
) -> float:
    """The least noise, rounded up, with which `at_noise(noise)` composed with `others` costs at most (epsilon, delta).

    The search runs on a coarse loss grid. What the fine grid saves at its solution is added to the target and the
    search repeated, until the fine grid's epsilon is on target. What is returned was checked on the fine grid.

    *Guarantee:* the composition at the returned noise costs at most (epsilon, delta). *Does not cover:* being the least
    such noise to more than about 0.1 %; noise that is changed afterwards.

    Raises:
        UserError: epsilon is not in (0, 100], or delta is not in [1e-12, 1) or too small for so many compositions.
        PrivacyRefusal: no noise is enough, because the others have used the budget up.
    """
    target, delta, others = positive("epsilon", epsilon, LARGEST_EPSILON), check_delta(delta), tuple(others)
    least, most = NOISE_RANGE

    def price(noise: float, step: float = interval) -> float:
        return _price(_in_order((at_noise(noise), *others)), delta, step)

    refusal = PrivacyRefusal(
        f"No noise keeps the whole plan within epsilon {target:g} at delta {delta:g}: the other touches already use"
        " this budget up. Give them smaller shares or fewer rounds."
    )
    if _price(_in_order(others), delta, interval) >= target:
        raise refusal
    coarse = _SEARCH_COARSER * interval
    noise, surplus = noise_for(at_noise(1.0), gaussian_mu(target, delta)), 0.0
    for _ in range(5):
        noise = solve(functools.partial(price, step=coarse), target + surplus, noise)
        if noise == least or abs(price(noise) - target) <= 2e-4 * target:
            break
        surplus = price(noise, coarse) - price(noise)
    noise = round_up_noise(noise)
    while price(noise) > target:
        if noise == most:
            raise refusal
        noise = min(round_up_noise(noise * (1 + 1e-6)), most)
    return noise


def round_up_noise(noise: float) -> float:
    """`noise` rounded up to 4 significant decimals, so that what is printed is what is used.

    *Guarantee:* the result is not below `noise`. *Does not cover:* further arithmetic on it.

    Raises:
        UserError: it is not finite and above 0.
    """
    exact = Decimal(repr(positive("noise", noise)))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted() - 3), rounding=ROUND_CEILING))


def round_up_epsilon(epsilon: float, digits: int = 4) -> float:
    """`epsilon` rounded up to `digits` decimals for display; a negative one becomes 0.

    *Guarantee:* the result is not below `epsilon`. *Does not cover:* further arithmetic on it.

    Raises:
        UserError: it is not finite.
    """
    if not math.isfinite(epsilon):
        raise UserError(f"epsilon is {epsilon!r}; only a finite epsilon can be stated: plan more noise.")
    return float(Decimal(repr(max(0.0, float(epsilon)))).quantize(Decimal(1).scaleb(-digits), rounding=ROUND_CEILING))


def accountant_version() -> str:
    """Version of the installed dp-accounting.

    *Guarantee:* names what prices plans now. *Does not cover:* what priced an older plan.
    """
    return importlib.metadata.version("dp-accounting")


def _in_order(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Sorted, so that a composition has one price to the last bit however its parts were listed."""
    return tuple(sorted(mechanisms, key=repr))


def _price(mechanisms: tuple[Mechanism, ...], delta: float, interval: float) -> float:
    if _losses.hopeless(mechanisms):
        return math.inf
    return _losses.epsilon_at(_losses.distribution(mechanisms, interval), delta, mechanisms)


def _gaussian_delta(mu: float, epsilon: float) -> float:
    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(-epsilon / mu + mu / 2) - math.exp(epsilon) * phi(-epsilon / mu - mu / 2)
