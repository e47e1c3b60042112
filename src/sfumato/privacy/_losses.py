"""Privacy loss distributions and Renyi divergences of compositions, by dp-accounting; `accounting` prices with them.

*Guarantee:* distributions dominate those of the mechanisms, on a grid of losses that is rounded towards more loss.
*Does not cover:* the rounding errors of Fourier transforms, unless `allowance` is set aside for them.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from sfumato.errors import UserError
from sfumato.privacy._mechanisms import Histogram, IntegerSum, Mechanism, Training

_LARGEST_RENYI = 500.0  # order-2 divergence beyond which the distribution of losses would fill gigabytes
# Fourier transforms misjudge delta of T convolved distributions by at most 7e-17 T (measured against the analytic
# Gaussian for T up to 10^6, delta from 1e-8 to 1e-12, intervals 1e-4 and 2e-5).
_ALLOWANCE, _ALLOWANCE_PER_COMPOSITION = 1e-14, 1e-16


def _pld() -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution


@functools.lru_cache(maxsize=8)
def distribution(mechanisms: tuple[Mechanism, ...], interval: float) -> Any:
    """Of the adaptive composition, if neighbours differ by a record that is added or removed."""
    return _composed([_part(each, interval) for each in mechanisms], interval)


def replacing(mechanisms: tuple[Mechanism, ...], interval: float) -> Any:
    """Of the adaptive composition, if neighbours differ by a record that is replaced.

    A record's old cells lose 1 and its new ones gain 1 (twice the cells); a clipped sum moves by twice its norm; in
    training, the old and the new record are sampled alike and point opposite ways.
    """
    replaced = _pld().NeighborRel.REPLACE_ONE
    parts = []
    for each in mechanisms:
        match each:
            case Histogram():
                parts.append(_part(Histogram(each.scale, 2 * each.cells, each.rounds), interval))
            case IntegerSum():
                parts.append(_gaussian(each.gaussian_noise_multiplier / 2, 1.0, interval))
            case Training():
                step = _gaussian(each.noise_multiplier, each.sampling_rate, interval, neighboring_relation=replaced)
                parts.append(step.self_compose(each.steps))
    return _composed(parts, interval)


@functools.lru_cache(maxsize=8)
def _part(mechanism: Mechanism, interval: float) -> Any:
    match mechanism:
        case Histogram():
            cell = _pld().from_discrete_gaussian_mechanism(
                mechanism.scale, sensitivity=1, value_discretization_interval=interval, use_connect_dots=True
            )
            return cell.self_compose(mechanism.compositions)
        case IntegerSum():
            return _gaussian(mechanism.gaussian_noise_multiplier, 1.0, interval)
        case Training():
            step = _gaussian(mechanism.noise_multiplier, mechanism.sampling_rate, interval)
            return step.self_compose(mechanism.steps)


def _gaussian(noise_multiplier: float, sampling_rate: float, interval: float, **options: Any) -> Any:
    return _pld().from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=interval, sampling_prob=sampling_rate, **options
    )


def _composed(parts: list[Any], interval: float) -> Any:
    return functools.reduce(lambda a, b: a.compose(b), parts) if parts else _pld().identity(interval)


def epsilon_at(composed: Any, delta: float, mechanisms: tuple[Mechanism, ...]) -> float:
    """Epsilon at `delta`, of which the rounding errors of composing `mechanisms` take a part."""
    errors = allowance(mechanisms)
    if delta < 2 * errors:
        raise UserError(
            f"delta is {delta:g}, too small to be computed for this many rounds and steps: it must be at least"
            f" {2 * errors:.1e}."
        )
    return max(0.0, float(composed.get_epsilon_for_delta(delta - errors)))


def allowance(mechanisms: tuple[Mechanism, ...]) -> float:
    """What to add to a delta for the rounding errors of composing `mechanisms`."""
    return _ALLOWANCE + _ALLOWANCE_PER_COMPOSITION * sum(each.compositions for each in mechanisms)


def hopeless(mechanisms: tuple[Mechanism, ...], distance: float = 1.0) -> bool:
    """Whether next to nothing is protected, at so many times the distance of neighbours."""
    return distance**2 * float(renyi(mechanisms, [2.0]).rdp[0]) > _LARGEST_RENYI


def renyi(mechanisms: tuple[Mechanism, ...], orders: list[float] | None) -> Any:
    """An accountant of the composition at these Renyi orders, or at its own."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders)
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of orders whose series does not converge; they count as infinite
    try:
        for each in mechanisms:
            if isinstance(each, Training):
                noise = dp_accounting.GaussianDpEvent(each.noise_multiplier)
                accountant.compose(dp_accounting.PoissonSampledDpEvent(each.sampling_rate, noise), each.steps)
            else:
                accountant.compose(dp_accounting.ZCDpEvent(each.rho))
    finally:
        logger.setLevel(level)
    return accountant
