"""A lower bound on the epsilon of each touch, from many runs on two worst-case neighbours.

One neighbour holds a record that does all that one record may; the other lacks it. A touch runs many times on either,
through the trusted core, and each outcome is reduced to its log-likelihood ratio, the best test there is. The test,
"above a threshold" on one neighbour or "below" it on the other, is chosen on pilot runs and judged on fresh ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from sfumato.audit.bounds import GATE, SHOWN, Verdict, epsilon_of_rates
from sfumato.audit.canaries import PLAIN, DiracLearner, Report, canary_numbers, gaussian_evidence
from sfumato.audit.standins import CANARY, SHAPES, numbered, open_run
from sfumato.privacy.histogram import noisy_histogram
from sfumato.privacy.noise import Noise
from sfumato.privacy.plan import (
    HistogramRequest,
    HistogramTouch,
    Plan,
    Request,
    SumRequest,
    SumTouch,
    Touch,
    TrainingRequest,
    TrainingTouch,
)
from sfumato.privacy.records import Rows
from sfumato.privacy.sums import noisy_sum
from sfumato.privacy.training import private_training

OTHERS = 3
"""Records that both neighbours hold."""
COARSE = 1e-3
"""Interval of the plans, which is enough for one release each and saves seconds."""
PILOT = 0.25
"""Share of the runs on which the test is chosen."""
REQUESTS: tuple[Request, ...] = (
    HistogramRequest("noisy histogram", cells=2, rounds=1),
    SumRequest("noisy sum", clip_norm=3.0, attempts=1),
    TrainingRequest("private training", sampling_rate=0.5, steps=1, clip_norm=2.0),
)
Evidence = NDArray[np.float64]


class Threshold(NamedTuple):
    """Says "present" at or above a threshold, or "absent" at or below it."""

    says_present: bool
    level: float

    def counts(self, present: Evidence, absent: Evidence) -> tuple[int, int]:
        """How often it says so rightly and wrongly."""
        if self.says_present:
            return int((present >= self.level).sum()), int((absent >= self.level).sum())
        return int((absent <= self.level).sum()), int((present <= self.level).sum())


def audit_touches(
    epsilon: float,
    delta: float,
    runs: int,
    folder: Path,
    noise: Noise,
    *,
    tests: int = len(REQUESTS),
    report: Report = lambda *_: None,
) -> list[Verdict]:
    """Each kind of touch, planned alone at (epsilon, delta), on `runs` runs a neighbour.

    Args:
        epsilon, delta: what each touch is calibrated to, and claims.
        runs: on either neighbour, pilot runs included.
        folder: temporary.
        noise: `Noise`, or `TestNoise` for touches without protection.
        tests: of the whole audit, for the gate.
        report: progress.
    """
    found = []
    for request in REQUESTS:
        plan = Plan.calibrate((request,), epsilon=epsilon, delta=delta, unit="image", interval=COARSE)
        touch = plan.touches[0]
        sides = []
        for name, gone in (("present", 0), ("absent", 1)):
            report(f"{touch.name}, record {name}", 0, runs)
            place = folder / f"{touch.name.replace(' ', '-')}-{name}"
            sides.append(_outcomes(touch, plan, runs, gone, place, noise))
            report(f"{touch.name}, record {name}", runs, runs)
        found.append(judge(touch.name, plan, sides[0], sides[1], tests))
    return found


def judge(name: str, plan: Plan, present: Evidence, absent: Evidence, tests: int) -> Verdict:
    """Chooses a test on the first runs and counts what it gets right on the rest."""
    pilot = max(1, int(PILOT * len(present)))
    test = choose(present[:pilot], absent[:pilot], plan.delta)
    trials = len(present) - pilot
    hits, alarms = test.counts(present[pilot:], absent[pilot:])

    def bound(confidence: float) -> float:
        return epsilon_of_rates(hits, alarms, trials, plan.delta, confidence)

    ceiling = epsilon_of_rates(trials, 0, trials, plan.delta, SHOWN)
    facts = {"runs": 2 * trials, "pilot_runs": 2 * pilot, "hits": hits, "alarms": alarms}
    gate = bound(1 - (1 - GATE) / tests)
    return Verdict(name, plan.epsilon, plan.delta, bound(SHOWN), gate, ceiling, gate > plan.epsilon, facts)


def choose(present: Evidence, absent: Evidence, delta: float) -> Threshold:
    """The test with the best bound on these runs."""
    levels = np.unique(np.quantile(np.concatenate((present, absent)), np.linspace(0, 1, 201)))
    trials, best, found = len(present), -math.inf, Threshold(True, float(levels[0]))
    for says_present in (True, False):
        counts = np.array([Threshold(says_present, level).counts(present, absent) for level in levels])
        least = stats.beta.ppf((1 - SHOWN) / 2, np.maximum(counts[:, 0], 1), trials - counts[:, 0] + 1) - delta
        most = stats.beta.isf((1 - SHOWN) / 2, counts[:, 1] + 1, np.maximum(trials - counts[:, 1], 1))
        worth = np.where((counts[:, 0] > 0) & (least > 0), np.maximum(least, 1e-12) / most, 0.0)
        if worth.max() > best:
            best, found = float(worth.max()), Threshold(says_present, float(levels[worth.argmax()]))
    return found


def _outcomes(touch: Touch, plan: Plan, runs: int, gone: int, folder: Path, noise: Noise) -> Evidence:
    """Log-likelihood ratios for record 0; `gone` records from the front are missing."""
    pictures = numbered(OTHERS + 1, PLAIN)[gone:]
    if isinstance(touch, TrainingTouch):  # every step is a run
        touch = TrainingTouch(
            touch.name, touch.sampling_rate, runs, touch.noise_multiplier, touch.clip_norm, touch.rows, touch.slack
        )
        plan = Plan(unit="image", epsilon=plan.epsilon, delta=plan.delta, touches=(touch,), main=touch.name)
    session = open_run(pictures, plan, folder, noise, shape=PLAIN, classes=(*SHAPES, CANARY))
    if isinstance(touch, TrainingTouch):
        learner = DiracLearner(OTHERS + 1, touch)
        for _ in private_training(session, touch.name, learner, divisor=1.0, chunk=OTHERS + 1):
            pass
        sure = gaussian_evidence(np.concatenate(learner.values), touch.noise_multiplier)
        evidence: Evidence = np.logaddexp(np.log1p(-touch.sampling_rate), np.log(touch.sampling_rate) + sure)
        return evidence
    once: Callable[[int], float]
    match touch:
        case HistogramTouch():

            def once(run: int) -> float:
                cells = (OTHERS + 1) * touch.cells
                counts = noisy_histogram(session.records, touch, run, _votes(touch), cells, noise)
                return float(gaussian_evidence(counts[: touch.cells].astype(np.float64), touch.scale).sum())

        case SumTouch():

            def once(run: int) -> float:
                total = noisy_sum(session.records, touch, run, _vectors(touch), (1, OTHERS + 1), noise)
                return float(gaussian_evidence(total[0, :1] / touch.clip_norm, touch.noise_multiplier)[0])

    return np.array([once(run + 1) for run in range(runs)])


def _votes(touch: HistogramTouch) -> Callable[[Rows], Tensor]:
    def votes(rows: Rows) -> Tensor:
        _, numbers = canary_numbers(rows)
        return numbers[:, None] * touch.cells + torch.arange(touch.cells)

    return votes


def _vectors(touch: SumTouch) -> Callable[[Rows], tuple[Tensor, Tensor]]:
    def vectors(rows: Rows) -> tuple[Tensor, Tensor]:
        _, numbers = canary_numbers(rows)
        return torch.zeros_like(numbers), 5 * touch.clip_norm * torch.eye(OTHERS + 1)[numbers]

    return vectors
