"""What the lines of a ledger mean: charges, the cap and its filter, runs and their attempts, the rules of each line.

All rules live in `Book.apply`. A writer passes a line through it before the line is written and a reader after it is
read, so replaying a ledger repeats every check that its writers passed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from sfumato.errors import PrivacyRefusal, UserError
from sfumato.privacy._chain import Entry

NOT_PRIVATE = "NOT PRIVATE"


@dataclass(frozen=True)
class Charge:
    """What one plan costs: the run is (`epsilon`, `delta`)-DP and, at each order of `rdp`, Renyi-DP with that value.

    Args:
        epsilon: finite, >= 0.
        delta: in [0, 1].
        rdp: Renyi order (above 1, as a string) to the RDP there (finite, >= 0); None if unknown.

    *Guarantee:* holds well-formed numbers.
    *Does not cover:* whether they are true of the run; that is the accounting's.
    """

    epsilon: float
    delta: float
    rdp: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        _check_budget(self)
        if self.rdp is not None:
            rdp = {_order_name(float(order)): float(value) for order, value in self.rdp.items()}
            orders_hold = len(rdp) == len(self.rdp) and all(1 < float(order) < math.inf for order in rdp)
            if not orders_hold or not all(0 <= value < math.inf for value in rdp.values()):
                raise UserError("rdp must map distinct orders above 1 to finite values >= 0; leave other orders out.")
            object.__setattr__(self, "rdp", rdp)

    def __str__(self) -> str:
        return f"epsilon {self.epsilon!r} and delta {self.delta!r}"

    def rdp_at(self, order: float) -> float | None:
        """The RDP at `order`, or None if unknown."""
        return None if self.rdp is None else self.rdp.get(_order_name(order))


@dataclass(frozen=True)
class Cap:
    """What may be spent on a data set in all, and the one rule by which it is counted.

    Args:
        epsilon: finite, >= 0.
        delta: in [0, 1]; above 0 for `renyi`.
        filter: `sum` adds the runs' epsilons and deltas (basic composition). `renyi` adds their RDP at `order`, and
            stops before it exceeds the RDP that converts to (epsilon, delta) there (Feldman & Zrnic 2021; conversion:
            Canonne, Kamath & Steinke 2020, Proposition 12).
        order: the Renyi order, above 1; None for `sum`.

    *Guarantee:* the runs admitted together, each of which may be planned after seeing what the others released, are
    (epsilon, delta)-DP for one record of the ledger's unit.
    *Does not cover:* a filter or order chosen after seeing a release (`Ledger.set_cap` refuses it); a cap raised later.
    """

    epsilon: float
    delta: float
    filter: Literal["sum", "renyi"] = "sum"
    order: float | None = None

    def __post_init__(self) -> None:
        _check_budget(self)
        if self.filter == "sum" and self.order is None:
            return
        if self.filter != "renyi" or self.order is None or not 1 < self.order < math.inf or self.delta == 0:
            raise UserError("A cap has filter `sum` and no order, or `renyi` with an order above 1 and delta above 0.")
        object.__setattr__(self, "order", float(self.order))
        if self.rdp_budget() <= 0:
            raise UserError(
                f"No RDP at order {self.order} converts to epsilon {self.epsilon} and delta {self.delta}: "
                "give a higher order, epsilon or delta."
            )

    def __str__(self) -> str:
        words = f"epsilon {self.epsilon!r} and delta {self.delta!r}"
        if self.order is None:
            return words
        return f"{words} (RDP {float(self.rdp_budget()):.6g} at order {_order_name(self.order)})"

    def rdp_budget(self) -> Fraction:
        """epsilon + log(a / (a - 1)) + (log delta + log a) / (a - 1) at order a, less more than its rounding error."""
        assert self.order is not None
        first = self.epsilon + math.log(self.order / (self.order - 1))
        log_delta, log_order, scale = math.log(self.delta), math.log(self.order), self.order - 1
        slack = 1e-13 * (first + (log_order - log_delta) / scale)
        return Fraction(first + (log_delta + log_order) / scale) - Fraction(slack)

    def admits(self, charges: Iterable[Charge]) -> bool:
        """Whether all of `charges` may stand together. Sums are exact, of the decimals as written: 0.1 + 0.2 is 0.3."""
        charges = list(charges)
        if self.order is None:
            epsilon, delta = _sum(c.epsilon for c in charges), _sum(c.delta for c in charges)
            return epsilon <= _exact(self.epsilon) and delta <= _exact(self.delta)
        rdp = self._rdp(charges)
        return rdp is not None and rdp <= self.rdp_budget()

    def counted(self, charges: Iterable[Charge]) -> str:
        """What `charges` add up to by the cap's filter, in words."""
        charges = list(charges)
        if self.order is None:
            return str(total_of(charges))
        rdp = self._rdp(charges)
        return "an RDP that is not known" if rdp is None else f"RDP {float(rdp):.6g}"

    def raised_for(self, charges: Iterable[Charge]) -> Cap | None:
        """The cap with epsilon and delta raised until it admits `charges`; None if they cannot be counted its way."""
        charges = list(charges)
        if self.order is None:
            total = total_of(charges)
            return Cap(max(total.epsilon, self.epsilon), max(total.delta, self.delta))
        rdp = self._rdp(charges)
        if rdp is None:
            return None
        lack = max(0.0, float(rdp - self.rdp_budget()))
        return Cap(math.ceil(1000 * (self.epsilon + lack) + 1e-3) / 1000, self.delta, "renyi", self.order)

    def _rdp(self, charges: list[Charge]) -> Fraction | None:
        assert self.order is not None
        rdp = [charge.rdp_at(self.order) for charge in charges]
        known = [value for value in rdp if value is not None]
        return _sum(known) if len(known) == len(rdp) else None


@dataclass
class Run:
    """One plan and what became of it; `done` maps each touch to its durable attempts and their values' SHA-256.

    *Guarantee:* as handed out by `Ledger.runs`, a faithful copy of the ledger's lines.
    *Does not cover:* what happens after the copy was made.
    """

    run_id: str
    charge: Charge
    planned: dict[str, int]
    plan_sha256: str
    unit: str
    fingerprint: str
    not_private: bool
    status: Literal["standing", "finished", "given back"] = "standing"
    used: dict[str, int] = field(default_factory=dict)
    done: dict[str, dict[int, str]] = field(default_factory=dict)
    releases: list[str] = field(default_factory=list)

    @property
    def counts(self) -> bool:
        """Whether the run's charge is spent."""
        return self.status != "given back" and not self.not_private


class Book:
    """The state that a ledger's lines add up to, and the rules by which each line is admitted.

    Args:
        dataset: the name that the ledger must carry; None takes any.

    *Guarantee:* a line that breaks a rule is refused before it changes anything.
    *Does not cover:* durability and order, which are the chain's.
    """

    def __init__(self, dataset: str | None = None) -> None:
        self.dataset = dataset
        self.public_id: str | None = None
        self.cap: Cap | None = None
        self.cap_is_implicit = False
        self.runs: dict[str, Run] = {}
        self.imports: list[Charge] = []
        self.looks = 0

    def charges(self) -> list[Charge]:
        """Everything that is spent: the runs that count, and imports."""
        return [run.charge for run in self.runs.values() if run.counts] + self.imports

    @property
    def cap_is_open(self) -> bool:
        """Whether the next plan sets the cap: nobody chose one, and nothing is spent."""
        return (self.cap is None or self.cap_is_implicit) and not self.charges()

    def run(self, run_id: str, *allowed: str) -> Run:
        """The run, if its status is one of `allowed` (none given: any); else PrivacyRefusal."""
        run = self.runs.get(run_id)
        if run is None:
            raise PrivacyRefusal(f"Run {run_id} has no plan in this ledger, so it may not touch the data.")
        if allowed and run.status not in allowed:
            raise PrivacyRefusal(f"Run {run_id} is {run.status}: plan a new run.")
        return run

    def apply(self, entry: Entry) -> None:
        """Takes one line in.

        Raises:
            PrivacyRefusal: the line would break the guarantee.
            UserError: its fields are malformed or its kind is unknown.
        """
        try:
            self._apply(entry)
        except (KeyError, TypeError, ValueError, OverflowError) as fault:
            raise UserError(f"A ledger line is malformed ({type(fault).__name__}: {fault}).") from fault

    def _apply(self, entry: Entry) -> None:
        kind = entry["kind"]
        if (kind == "open") != (self.public_id is None):
            raise PrivacyRefusal("A ledger begins with its one `open` line.")
        match entry:
            case {"kind": "open"}:
                if self.dataset not in (None, entry["dataset"]):
                    raise UserError(f"This is the ledger of data set {entry['dataset']}, not of {self.dataset}.")
                self.dataset, self.public_id = entry["dataset"], entry["public_id"]
            case {"kind": "cap"}:
                cap = Cap(entry["epsilon"], entry["delta"], entry["filter"], entry["order"])
                self._set_cap(cap, entry["implicit"])
            case {"kind": "plan"}:
                self._plan(entry)
            case {"kind": "give_back", "run": run_id}:
                run = self.run(run_id, "standing")
                if run.used:
                    raise PrivacyRefusal(f"Run {run_id} may have touched the data already, so its charge stays.")
                run.status = "given back"
            case {"kind": "import"}:
                self.imports.append(Charge(entry["epsilon"], entry["delta"], entry["rdp"]))
            case {"kind": "look"}:
                self.looks += 1
            case {"kind": "intent", "run": run_id, "touch": touch, "attempt": attempt}:
                run = self.run(run_id, "standing")
                planned, used = run.planned.get(touch, 0), run.used.get(touch, 0)
                if attempt != used + 1 or attempt > planned:
                    raise PrivacyRefusal(
                        f"Run {run_id} bought {planned} attempts at touch `{touch}` and has used {used}: none is left."
                    )
                run.used[touch] = attempt
            case {"kind": "done", "run": run_id, "touch": touch, "attempt": attempt, "sha256": digest}:
                run = self.run(run_id, "standing")
                _check_sha256(digest)
                if not 1 <= attempt <= run.used.get(touch, 0) or attempt in run.done.get(touch, {}):
                    raise PrivacyRefusal(f"Attempt {attempt} at touch `{touch}` has no intent, or is done already.")
                run.done.setdefault(touch, {})[attempt] = digest
            case {"kind": "finished", "run": run_id}:
                self.run(run_id, "standing").status = "finished"
            case {"kind": "release", "run": run_id, "release": release_id}:
                run = self.run(run_id, "standing", "finished")
                if run.not_private:
                    raise PrivacyRefusal(f"Run {run_id} is {NOT_PRIVATE}: nothing made from it may be released.")
                run.releases.append(release_id)
            case _:
                raise UserError(f"Lines of kind `{kind}` are unknown to this version of Sfumato: use a newer one.")

    def _set_cap(self, cap: Cap, implicit: bool) -> None:
        charges = self.charges()
        if implicit and not self.cap_is_open:
            raise PrivacyRefusal("Only a first run may set the cap by itself.")
        if self.cap and charges and (cap.filter, cap.order) != (self.cap.filter, self.cap.order):
            raise PrivacyRefusal(
                f"Something is spent under a cap of {self.cap}, which fixes how it counts: another choice now could "
                "depend on what was released. Change epsilon or delta only."
            )
        if not cap.admits(charges):
            raise PrivacyRefusal(
                f"Data set {self.dataset} has already spent {cap.counted(charges)}, more than a cap of {cap} allows. "
                f"{self._remedy(cap, charges)}"
            )
        self.cap, self.cap_is_implicit = cap, implicit

    def _plan(self, entry: Entry) -> None:
        run = Run(
            run_id=entry["run"],
            charge=Charge(entry["epsilon"], entry["delta"], entry["rdp"]),
            planned=entry["attempts"],
            plan_sha256=entry["plan_sha256"],
            unit=entry["unit"],
            fingerprint=entry["fingerprint"],
            not_private=entry["stamp"] == NOT_PRIVATE,
        )
        _check_sha256(run.plan_sha256)
        if run.run_id in self.runs:
            raise UserError(f"Run {run.run_id} has a plan already: resume it, or give the new run another name.")
        if not run.planned or not all(type(number) is int and number >= 1 for number in run.planned.values()):
            raise UserError(f"attempts must map each touch to a whole number of at least 1, not {run.planned}.")
        if run.counts:
            self._filter(run)
        self.runs[run.run_id] = run

    def _filter(self, run: Run) -> None:
        units = {other.unit for other in self.runs.values() if other.counts} - {run.unit}
        if units:
            raise PrivacyRefusal(
                f"The runs on data set {self.dataset} protect one {units.pop()} each and this plan one {run.unit}: "
                "their budgets do not add up. Plan it with the same unit."
            )
        charges, wanted = self.charges(), [*self.charges(), run.charge]
        if self.cap is None:
            raise PrivacyRefusal(
                f"Data set {self.dataset} has spent {total_of(charges)} elsewhere and has no cap. "
                f"{self._remedy(Cap(0.0, 0.0), wanted)}"
            )
        if not self.cap.admits(wanted):
            raise PrivacyRefusal(
                f"Data set {self.dataset} has spent {self.cap.counted(charges)} of its cap of {self.cap}, which does "
                f"not allow this plan for {self.cap.counted([run.charge])}. Plan a cheaper run. "
                f"{self._remedy(self.cap, wanted)}"
            )

    def _remedy(self, cap: Cap, charges: list[Charge]) -> str:
        raised = cap.raised_for(charges)
        order = "" if cap.order is None else f" --filter renyi --order {_order_name(cap.order)}"
        if raised is None:
            return f"No cap with{order} can count charges that do not state their RDP there."
        return (
            f"`sfumato ledger cap {self.dataset} --epsilon {raised.epsilon!r} --delta {raised.delta!r}{order}` "
            "sets a cap that would do."
        )


def total_of(charges: Iterable[Charge]) -> Charge:
    """The sum of `charges`: epsilon and delta rounded up (delta at most 1), RDP at the orders that each one knows.

    *Guarantee:* basic composition of all of them, adaptively chosen or not, at the (epsilon, delta) returned.
    *Does not cover:* charges of different units.
    """
    charges = list(charges)
    tables = [charge.rdp or {} for charge in charges]
    shared = [order for order in (tables[0] if tables else {}) if all(order in table for table in tables)]
    rdp = {order: _rounded_up(_sum(table[order] for table in tables)) for order in shared}
    delta = _rounded_up(_sum(charge.delta for charge in charges))
    return Charge(_rounded_up(_sum(charge.epsilon for charge in charges)), min(1.0, delta), rdp or None)


def _check_budget(budget: Charge | Cap) -> None:
    epsilon, delta = float(budget.epsilon), float(budget.delta)
    if not (0 <= epsilon < math.inf and 0 <= delta <= 1):
        raise UserError(f"epsilon must be finite and >= 0 and delta within [0, 1]; got {epsilon} and {delta}.")
    object.__setattr__(budget, "epsilon", epsilon)
    object.__setattr__(budget, "delta", delta)


def _check_sha256(digest: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise UserError(f"A SHA-256 has 64 hexadecimal digits; got {digest!r}.")


def _order_name(order: float) -> str:
    return repr(order).removesuffix(".0")


def _exact(value: float) -> Fraction:
    """The decimal that `value` is written as, so that what the ledger shows is what is summed."""
    return Fraction(repr(value))


def _sum(values: Iterable[float]) -> Fraction:
    return sum(map(_exact, values), Fraction())


def _rounded_up(total: Fraction) -> float:
    value = float(total)
    return value if _exact(value) >= total else math.nextafter(value, math.inf)
