"""From what an attack got right to a lower bound on epsilon, with confidence.

A bound above the claim disproves the claim. A bound below it proves nothing: another attack may do better.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sfumato.errors import InternalError
from sfumato.privacy import accounting

SHOWN = 0.95
"""Confidence of the bounds that are shown."""
GATE = 0.999
"""Confidence, of all bounds of one audit together, at which a bound above the claim fails the audit."""
STRICTER = 0.001
"""Part of the claimed delta at which the gate looks too: in theorem 5.2 delta alone allows errors of 2 m delta / r, so
that at the claimed delta no bound is left at very high confidence."""
PARTS, EVEN = (0.9, 0.1), (0.5, 0.5)
"""How two numbers of guesses share the error, for bounds that are shown and at the gate: where no noise is what the
gate must see, the second number sees it, and needs the error."""
_LARGEST = 60.0
_SATURATED = 0.9


def stricter_delta(delta: float) -> float:
    """A thousandth of `delta`, but no less than can be accounted for."""
    return max(STRICTER * delta, accounting.SMALLEST_DELTA)


class Interval(NamedTuple):
    """Bounds on a probability."""

    low: float
    high: float


def clopper_pearson(hits: int, trials: int, confidence: float) -> Interval:
    """Exact two-sided bounds on a probability from `hits` in `trials` (Clopper and Pearson 1934)."""
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(stats.beta.isf(tail, hits + 1, trials - hits))
    return Interval(low, high)


def epsilon_of_rates(hits: int, alarms: int, trials: int, delta: float, confidence: float) -> float:
    """A lower bound on epsilon from one test that was fixed beforehand, with `trials` runs on either neighbour.

    Under (epsilon, delta), P[hit] <= e^epsilon P[alarm] + delta. Either probability is bounded at half the error.

    Args:
        hits: runs on the first neighbour for which the test says "first".
        alarms: runs on the second neighbour for which it says so.
        trials: runs on each.
        delta: as claimed.
        confidence: that the bound is one.
    """
    one_sided = confidence  # each of the two one-sided bounds errs with probability (1 - confidence) / 2
    least, most = clopper_pearson(hits, trials, one_sided).low, clopper_pearson(alarms, trials, one_sided).high
    return max(0.0, math.log((least - delta) / most)) if least > delta else 0.0


def one_run_p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Upper bound on P[at least `correct` of `guesses` right] for any attack on any (epsilon, delta)-DP mechanism.

    Theorem 5.2 of Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run" (arXiv 2305.08846):
    f(v) + 2 m delta max_i (f(v - i) - f(v)) / i, where f(v) = P[Binomial(r, e^epsilon / (1 + e^epsilon)) >= v].

    Args:
        canaries: m, each put in or left out by a fair coin of its own.
        guesses: r of them about which the attack says "in" or "out"; it abstains on the others.
        correct: v of the guesses.
        epsilon, delta: the claim that is tested, under adding or removing one record.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise InternalError(f"{correct} right of {guesses} guesses on {canaries} canaries cannot be")
    rate = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, rate))
    if correct == 0:
        return 1.0
    below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, rate))  # P[v - i <= B < v], i from 1
    steepest = float((below / np.arange(1, correct + 1)).max())
    return min(1.0, tail + 2 * canaries * delta * steepest)


def one_run_epsilon(canaries: int, guesses: int, correct: int, delta: float, confidence: float) -> float:
    """The largest epsilon that one run refutes at `confidence`; 0 if it refutes none."""
    error = 1 - confidence
    low, high = 0.0, _LARGEST
    if one_run_p_value(canaries, guesses, correct, low, delta) > error:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        refuted = one_run_p_value(canaries, guesses, correct, middle, delta) <= error
        low, high = (middle, high) if refuted else (low, middle)
    return low


@functools.lru_cache
def fixed_guesses(canaries: int, epsilon: float, delta: float) -> tuple[int, ...]:
    """How many guesses are made, from public values alone: two numbers, both even, both tested.

    The first is best against one Gaussian release that costs exactly (epsilon, delta). The second, four in five of
    the canaries, is best against no protection at all, where by chance fewer than half of them are in, or out.
    """
    return tuple(sorted({_best(canaries, epsilon, delta), 2 * int(0.4 * canaries)}))


def _best(canaries: int, epsilon: float, delta: float) -> int:
    mu = accounting.gaussian_mu(epsilon, delta)
    most, found = -1.0, 2
    for guesses in sorted({2 * round(2 ** (power / 4)) for power in range(4 * 16)}):
        if guesses > canaries:
            break
        correct = math.floor(guesses * _accuracy(guesses / canaries, mu))
        if (bound := one_run_epsilon(canaries, guesses, correct, delta, SHOWN)) > most:
            most, found = bound, guesses
    return found


def _accuracy(share: float, mu: float) -> float:
    """Of guesses on the outer `share` of scores that are N(+-mu / 2, 1) with equal odds."""

    def tail(at: float) -> float:
        return float(stats.norm.sf(at - mu / 2) + stats.norm.sf(at + mu / 2)) / 2

    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) > share / 2 else (low, middle)
    return float(stats.norm.sf(low - mu / 2)) / (2 * tail(low))


@dataclass(frozen=True)
class OneRun:
    """What an attack guessed right about the canaries of one run.

    Attributes:
        canaries: m.
        guesses: numbers of guesses, fixed beforehand.
        correct: how many of each were right.
        epsilon, delta: the claim.
        stricter: epsilon that is claimed at a thousandth of delta, if that is known.
    """

    canaries: int
    guesses: tuple[int, ...]
    correct: tuple[int, ...]
    epsilon: float
    delta: float
    stricter: float | None = None

    @classmethod
    def of(
        cls,
        scores: NDArray[np.float64],
        coins: NDArray[np.bool_],
        epsilon: float,
        delta: float,
        stricter: float | None = None,
    ) -> OneRun:
        """Guesses "in" for the highest scores `(m,)` and "out" for as many lowest, and counts who was right.

        Args:
            scores: the higher, the likelier in.
            coins: who was in.
            epsilon, delta: the claim, which decides the numbers of guesses.
            stricter: epsilon that is claimed at a thousandth of delta.
        """
        order = np.argsort(scores, kind="stable")
        guesses = fixed_guesses(len(scores), epsilon, delta)
        correct = tuple(
            int(coins[order[len(order) - half :]].sum() + (~coins[order[:half]]).sum())
            for half in (number // 2 for number in guesses)
        )
        return cls(len(scores), guesses, correct, epsilon, delta, stricter)

    def bound(self, confidence: float, delta: float | None = None, parts: tuple[float, float] = PARTS) -> float:
        """The best bound of all numbers of guesses, at the claimed delta or another; `parts` share the error."""
        shares = parts if len(self.guesses) == len(parts) else (1.0,)
        delta = self.delta if delta is None else delta
        return max(
            one_run_epsilon(self.canaries, guesses, correct, delta, 1 - (1 - confidence) * part)
            for guesses, correct, part in zip(self.guesses, self.correct, shares, strict=True)
        )

    @property
    def ceiling(self) -> float:
        """What guesses without a mistake would show."""
        return OneRun(self.canaries, self.guesses, self.guesses, self.epsilon, self.delta).bound(SHOWN)

    @property
    def ideal(self) -> float:
        """What is to be expected against one Gaussian release that costs exactly the claim."""
        mu = accounting.gaussian_mu(self.epsilon, self.delta)
        right = tuple(math.floor(r * _accuracy(r / self.canaries, mu)) for r in self.guesses)
        return OneRun(self.canaries, self.guesses, right, self.epsilon, self.delta).bound(SHOWN)

    def verdict(self, name: str, tests: int) -> Verdict:
        """Held against its claim, as one of `tests` of an audit."""
        error = (1 - GATE) / tests / (1 if self.stricter is None else 2)
        shown, gate = self.bound(SHOWN), self.bound(1 - error, parts=EVEN)
        refuted = gate > self.epsilon
        facts: dict[str, Any] = {
            "canaries": self.canaries,
            "guesses": list(self.guesses),
            "correct": list(self.correct),
            "ideal": round(self.ideal, 4),
        }
        if self.stricter is not None:
            other = self.bound(1 - error, stricter_delta(self.delta), EVEN)
            facts["stricter"] = {"claim": self.stricter, "gate": other}
            refuted = refuted or other > self.stricter
        return Verdict(name, self.epsilon, self.delta, shown, gate, self.ceiling, refuted, facts)


@dataclass(frozen=True)
class Verdict:
    """One bound beside what is claimed.

    Attributes:
        name: what was attacked.
        claim, delta: the guarantee claimed for it.
        bound: lower bound on epsilon at 95 %.
        gate: lower bound at 99.9 % for all tests of the audit together (Bonferroni).
        ceiling: what the attack would show at 95 % without a single mistake.
        broken: the claim is refuted at 99.9 %, here or at another delta.
        facts: what it rests on.
    """

    name: str
    claim: float
    delta: float
    bound: float
    gate: float
    ceiling: float
    broken: bool
    facts: dict[str, Any]

    @property
    def unprotected(self) -> bool:
        """Whether the attack finds nearly all there is to find, as if there were no protection."""
        return self.bound >= _SATURATED * self.ceiling

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "name": self.name,
            "claim": self.claim,
            "delta": self.delta,
            "bound": round(self.bound, 4),
            "gate": round(self.gate, 4),
            "ceiling": round(self.ceiling, 4),
            "broken": self.broken,
            "unprotected": self.unprotected,
            **self.facts,
        }
