"""The search for the noise that meets a budget. It prices nothing: what it finds is priced again by `accounting`.

*Guarantee:* none. *Does not cover:* which end of its tolerance is safe; `accounting.calibrate` sees to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from sfumato.privacy._mechanisms import NOISE_RANGE, Mechanism, Training

_LARGEST_EXPONENT = 700.0  # of e, in double precision


def noise_for(at_one: Mechanism, mu: float) -> float:
    """The noise with which a mechanism is about as telling as one Gaussian release of noise multiplier 1 / mu.

    Exact up to the discreteness of noise without sampling; with it, the central limit theorem of Gaussian DP (Bu, Dong,
    Long, Su 2020). `at_one` is the mechanism with noise multiplier 1.
    """
    if isinstance(at_one, Training):
        return 1 / math.sqrt(math.log1p(mu**2 / (at_one.sampling_rate**2 * at_one.steps)))
    return math.sqrt(2 * at_one.rho) / mu


def mu_of(mechanism: Mechanism) -> float:
    """The mu for which `noise_for` gives the mechanism's noise; infinite where it is too little to be told."""
    if isinstance(mechanism, Training):
        exponent = mechanism.noise_multiplier**-2
        told = math.expm1(exponent) if exponent < _LARGEST_EXPONENT else math.inf
        return mechanism.sampling_rate * math.sqrt(mechanism.steps * told)
    return math.sqrt(2 * mechanism.rho)


def solve(price: Callable[[float], float], target: float, start: float) -> float:
    """The noise within `NOISE_RANGE` at which the decreasing `price` meets `target`, to 5 digits, or the nearer end."""
    from scipy import optimize

    least, most = NOISE_RANGE
    low = high = min(max(start, least), most)
    ratio = 1.1
    while price(high) > target and high < most:
        low, high, ratio = high, min(high * ratio, most), ratio * 1.1
    while price(low) <= target and low > least:
        high, low, ratio = low, max(low / ratio, least), ratio * 1.1
    if price(low) <= target:
        return low
    if price(high) > target:
        return high

    def excess(log_noise: float) -> float:  # nearly linear; an infinite price is made finite for the solver
        return math.log(max(1e-9, min(price(math.exp(log_noise)), 1e6)) / target)

    root = optimize.brentq(excess, math.log(low), math.log(high), xtol=1e-5)
    return min(max(math.exp(root), low), high)
