"""The touches of one run with all their parameters, calibrated and priced before any of them happens.

A method asks for touches with *requests*, which say everything but the noise. `Plan.calibrate` finds the noise: each
auxiliary request has a public share of the budget in units of mu^2 (the Gaussian-DP parameter of (epsilon, delta),
squared), and the one main touch, which has no share, gets as little noise as the whole plan then allows.

Nothing in a plan depends on a private value. It is made from arguments, presets and declared facts before the first
touch, so it can be printed, hashed and published, and everything that enters accounting is in it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sfumato.errors import InternalError, UserError
from sfumato.privacy import accounting
from sfumato.privacy._mechanisms import normalise, positive, whole
from sfumato.privacy._search import mu_of, noise_for
from sfumato.privacy._touches import (
    HistogramRequest,
    HistogramTouch,
    Request,
    SumRequest,
    SumTouch,
    Touch,
    TrainingRequest,
    TrainingTouch,
    check_name,
)

__all__ = [
    "HistogramRequest",
    "HistogramTouch",
    "Plan",
    "PlanRow",
    "Request",
    "SumRequest",
    "SumTouch",
    "Touch",
    "TrainingRequest",
    "TrainingTouch",
]

Unit = Literal["image", "person"]

_FORMAT = "sfumato-plan-2"
_WHAT = {"histogram": "noisy histogram", "sum": "noisy sum", "training": "private training"}


@dataclass(frozen=True)
class PlanRow:
    """One touch as a forecast prints it; `share` is of mu^2.

    *Guarantee:* public as a whole. *Does not cover:* epsilon per touch, which does not exist: epsilons do not add up.
    """

    name: str
    what: str
    sampling_rate: float | None
    attempts: int
    noise_multiplier: float
    share: float


@dataclass(frozen=True)
class Plan:
    """All touches of a run and their joint price.

    *Guarantee:* a run that makes at most `attempts()` at its touches is (`planned_epsilon`, `delta`)-differentially
    private for one record of `unit` added or removed, whatever the outcomes and whoever chose later steps from earlier
    outcomes. *Does not cover:* the declared size and every other number in it, which are public; other runs on the same
    records (the ledger adds them up).

    Attributes:
        unit: what one record is.
        epsilon: target, in (0, 100].
        delta: in [1e-12, 1), and below 1 / `declared_size`.
        touches: in the order in which the method listed them.
        main: name of the touch that got what the shares of the others left.
        declared_size: number of records of the unit, if its owner declared it; not hidden by the guarantee.
        interval: discretisation of privacy losses behind every price.
        accountant_version: of dp-accounting, when the plan was made.
        relation: which data sets are neighbours.
    """

    unit: Unit
    epsilon: float
    delta: float
    touches: tuple[Touch, ...]
    main: str
    declared_size: int | None = None
    interval: float = accounting.INTERVAL
    accountant_version: str = dataclasses.field(default_factory=accounting.accountant_version)
    relation: Literal["add-or-remove-one"] = "add-or-remove-one"

    def __post_init__(self) -> None:
        _check_budget(self.unit, self.epsilon, self.delta, self.declared_size)
        normalise(self, epsilon=float(self.epsilon), delta=float(self.delta), touches=tuple(self.touches))
        normalise(self, interval=positive("interval", self.interval, largest=0.1))
        _check_names([touch.name for touch in self.touches])
        if self.main not in self.attempts():
            raise UserError(f"The main touch of a plan must be one of its touches; {self.main!r} is none.")
        if self.relation != "add-or-remove-one":
            raise UserError(f"relation is {self.relation!r}; plans are made for add-or-remove-one only.")

    @classmethod
    def calibrate(
        cls,
        requests: Iterable[Request],
        *,
        epsilon: float,
        delta: float,
        unit: Unit,
        declared_size: int | None = None,
        interval: float = accounting.INTERVAL,
    ) -> Plan:
        """Finds the noise of every requested touch, and cross-checks the price of them all.

        An auxiliary touch that makes n releases of sensitivity 1 gets the noise multiplier sqrt(n) / (sqrt(share) mu),
        rounded up; auxiliary training the one at which Gaussian DP's central limit theorem gives it mu sqrt(share). The
        main touch's is found by a search on the composed PLD, in which the others stand with their exact price.

        *Guarantee:* the plan's `planned_epsilon` is at most `epsilon`, and two accountants agree on it
        (`accounting.cross_check`). *Does not cover:* what is not requested.

        Args:
            requests: exactly one of them without a share.
            epsilon: target, in (0, 100].
            delta: in [1e-12, 1), and below 1 / `declared_size`.
            unit: what one record is.
            declared_size: public number of records of the unit, or None.
            interval: discretisation of privacy losses.

        Raises:
            UserError: an argument is out of range, or not exactly one request lacks a share.
            PrivacyRefusal: no noise of the main touch meets the budget.
        """
        requests = tuple(requests)
        _check_budget(unit, epsilon, delta, declared_size)
        _check_names([request.name for request in requests])
        main = _main_of(requests)
        mu = accounting.gaussian_mu(epsilon, delta)
        touches = {
            request.name: request.at(_auxiliary_noise(request, request.share, mu))
            for request in requests
            if request.share is not None
        }
        others = [touch.mechanism for touch in touches.values()]
        noise = accounting.calibrate(lambda z: main.at(z).mechanism, epsilon, delta, others, interval)
        planned: dict[str, Touch] = {**touches, main.name: main.at(noise)}
        plan = cls(
            unit=unit,
            epsilon=epsilon,
            delta=delta,
            touches=tuple(planned[request.name] for request in requests),
            main=main.name,
            declared_size=declared_size,
            interval=interval,
        )
        accounting.cross_check(plan.mechanisms, plan.delta, plan.interval)
        return plan

    @property
    def mechanisms(self) -> tuple[accounting.Mechanism, ...]:
        """What is priced, touch by touch."""
        return tuple(touch.mechanism for touch in self.touches)

    @functools.cached_property
    def planned_epsilon(self) -> float:
        """Epsilon of all attempts, rounded up to 4 decimals, but not beyond a target that is kept.

        *Guarantee:* an upper bound. *Does not cover:* attempts beyond the plan.
        """
        return self._stated(accounting.epsilon(self.mechanisms, self.delta, self.interval))

    def epsilon_of(self, executed: Mapping[str, int]) -> float:
        """Epsilon of the attempts that were made, rounded up; a touch that is not named was not reached.

        *Guarantee:* an upper bound if `executed` counts every intent, finished or not. *Does not cover:* touches that
        the ledger does not hold.

        Raises:
            InternalError: a touch is not in the plan, or a count is not a whole number >= 0.
        """
        mechanisms = []
        for name, count in executed.items():
            if name not in self.attempts() or isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise InternalError(f"{count!r} attempts at {name!r} do not fit a plan of {sorted(self.attempts())}.")
        for touch in self.touches:
            if count := executed.get(touch.name, 0):
                mechanisms.append(touch.after(count))
        return self._stated(accounting.epsilon(mechanisms, self.delta, self.interval))

    def claimed_epsilon(self, executed: Mapping[str, int]) -> float:
        """What a statement claims: the larger of planned and executed.

        *Guarantee:* an upper bound, as `epsilon_of`. *Does not cover:* as `epsilon_of`.

        Raises:
            InternalError: as `epsilon_of`.
        """
        return max(self.planned_epsilon, self.epsilon_of(executed))

    def shares(self) -> dict[str, float]:
        """Each touch's share of mu^2, where mu is the Gaussian-DP parameter of the target.

        An auxiliary touch of n releases has n / (noise_multiplier mu)^2, exact but for the discreteness of its noise,
        auxiliary training what the central limit theorem of Gaussian DP says; the main touch has the rest.

        *Guarantee:* none; for a forecast. *Does not cover:* the price, which is `planned_epsilon`.
        """
        mu = accounting.gaussian_mu(self.epsilon, self.delta)
        shares = {touch.name: (mu_of(touch.mechanism) / mu) ** 2 for touch in self.touches if touch.name != self.main}
        rest = 1 - math.fsum(shares.values())
        return {touch.name: shares.get(touch.name, rest) for touch in self.touches}

    def attempts(self) -> dict[str, int]:
        """Touch name to the attempts that the plan buys."""
        return {touch.name: touch.attempts for touch in self.touches}

    def rdp(self, orders: Sequence[float]) -> dict[str, float]:
        """Renyi divergence of all attempts by order, for the ledger; orders at which it is infinite are left out.

        *Guarantee:* upper bounds. *Does not cover:* a choice of the order after the fact.
        """
        values = {repr(float(order)): accounting.rdp(self.mechanisms, order) for order in orders}
        return {order: value for order, value in values.items() if math.isfinite(value)}

    def describe(self) -> list[PlanRow]:
        """One row a touch, for a forecast; opens no private file."""
        shares = self.shares()
        return [
            PlanRow(
                touch.name,
                _WHAT[touch.kind],
                touch.sampling_rate if isinstance(touch, TrainingTouch) else None,
                touch.attempts,
                touch.noise_multiplier,
                shares[touch.name],
            )
            for touch in self.touches
        ]

    def in_words(self) -> list[str]:
        """The guarantee and a line a touch, for people.

        *Guarantee:* public values of the plan only. *Does not cover:* what was executed; the statement says that.
        """
        lines = [f"Guarantee: epsilon {self.planned_epsilon:g}, delta {self.delta:g} for one {self.unit}"]
        for row in self.describe():
            rate = "" if row.sampling_rate is None else f", sampling rate {row.sampling_rate:.4g}"
            lines.append(
                f"  {row.name}: {row.what}, {row.attempts} attempt(s){rate}, noise multiplier "
                f"{row.noise_multiplier:g}, {row.share:.0%} of mu^2"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; `from_json` restores it exactly, floats to the last bit."""
        touches = [{"kind": touch.kind, **dataclasses.asdict(touch)} for touch in self.touches]
        return {"format": _FORMAT, **dataclasses.asdict(self), "touches": touches}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Restores what `to_json` gave.

        *Guarantee:* every number passes the same checks as in a new plan. *Does not cover:* whether it is the plan that
        the ledger holds: compare `sha256`.

        Raises:
            UserError: it is not such a plan.
        """
        kinds = {touch.kind: touch for touch in get_args(Touch)}
        try:
            fields = dict(value)
            if fields.pop("format") != _FORMAT:
                raise UserError("This plan was written by another version of Sfumato; finish its run with that one.")
            touches = [dict(touch) for touch in fields.pop("touches")]
            return cls(touches=tuple(kinds[touch.pop("kind")](**touch) for touch in touches), **fields)
        except (TypeError, KeyError, ValueError) as error:
            raise UserError("This is not a plan that Sfumato wrote, or it was changed; start a new run.") from error

    def sha256(self) -> str:
        """SHA-256 of the canonical JSON form, 64 hexadecimal digits."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def _stated(self, epsilon: float) -> float:
        stated = accounting.round_up_epsilon(epsilon)
        return min(stated, self.epsilon) if epsilon <= self.epsilon else stated


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        check_name(name)
    if not names or len({re.sub(r"[ _]", "-", name).lower() for name in names}) < len(names):
        raise UserError(f"A plan needs touches whose names differ in more than case, spaces, - and _; given: {names}.")


def _check_budget(unit: str, epsilon: float, delta: float, declared_size: int | None) -> None:
    if unit not in get_args(Unit):
        raise UserError(f"unit is {unit!r}; it must be image or person.")
    positive("epsilon", epsilon, accounting.LARGEST_EPSILON)
    accounting.check_delta(delta)
    if declared_size is not None and delta * whole("declared size", declared_size) >= 1:
        raise UserError(
            f"delta is {delta:g}, which is not below 1 / {declared_size}, the declared number of records: choose a"
            " smaller delta."
        )


def _main_of(requests: tuple[Request, ...]) -> Request:
    main = [request for request in requests if request.share is None]
    if len(main) != 1:
        raise UserError(
            f"{len(main)} of the requested touches have no share of the budget; exactly one must, the main touch."
        )
    shares = [positive("share", request.share, 1.0) for request in requests if request.share is not None]
    if math.fsum(shares) >= 1:
        raise UserError(f"The shares of the auxiliary touches are {shares}; together they must stay below 1.")
    return main[0]


def _auxiliary_noise(request: Request, share: float, mu: float) -> float:
    """The noise at which the touch has about `share` of mu^2, rounded up."""
    return accounting.round_up_noise(noise_for(request.at(1.0).mechanism, mu * math.sqrt(share)))
