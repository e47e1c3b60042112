"""The audit of the trusted core as a whole: sensitivity, every touch, one-run canaries. Public stand-ins only."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato import __version__
from sfumato.audit.bounds import GATE, SHOWN, Verdict
from sfumato.audit.canaries import Report, white_box
from sfumato.audit.sensitivity import brute_force
from sfumato.audit.touches import REQUESTS, audit_touches
from sfumato.errors import UserError
from sfumato.privacy.noise import Noise, TestNoise
from sfumato.privacy.plan import Plan, TrainingRequest

DELTA = 1e-6
RUNS = 4000
CANARIES = 5000
LEAST_RUNS, LEAST_CANARIES = 200, 100
RATE, STEPS = 0.5, 64
"""Of the private training that canaries audit: a bound near the ideal one in seconds, as few records are left out."""


def audit_core(
    epsilons: Sequence[float],
    *,
    delta: float = DELTA,
    runs: int = RUNS,
    canaries: int = CANARIES,
    protected: bool = True,
    report: Report = lambda *_: None,
) -> dict[str, Any]:
    """Attacks the trusted core at each epsilon; opens no private file and no ledger of the user's.

    Args:
        epsilons: what is claimed.
        delta: what is claimed with it.
        runs: of each touch on either of two neighbours.
        canaries: in the one run of private training.
        protected: False takes the noise away, to see whether the audit would notice.
        report: progress.

    Returns:
        `sensitivity` and `bounds`, each entry with `broken`; `broken` for all of them.

    Raises:
        UserError: too few runs or canaries to find anything, or epsilons that cannot be planned.
    """
    if runs < LEAST_RUNS or canaries < LEAST_CANARIES:
        raise UserError(
            f"An audit with {runs} runs and {canaries} canaries finds nothing; give at least {LEAST_RUNS} runs and"
            f" {LEAST_CANARIES} canaries."
        )
    if not epsilons:
        raise UserError("Give at least one epsilon.")
    noise = Noise() if protected else TestNoise(b"an audit of what is not private")
    tests = len(epsilons) * (len(REQUESTS) + 1)
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory(prefix="sfumato-audit-") as name:
        folder = Path(name)
        report("sensitivity", 0, 1)
        sensitivity = brute_force(folder / "folder")
        report("sensitivity", 1, 1)
        for number, epsilon in enumerate(epsilons):
            place = folder / str(number)
            verdicts += audit_touches(epsilon, delta, runs, place, noise, tests=tests, report=report)
            run = white_box(training_plan(epsilon, delta), canaries, place / "canaries", noise, report=report)
            verdicts.append(run.verdict("canaries in private training", tests))
    return {
        "software": f"sfumato {__version__}",
        "protected": protected,
        "delta": delta,
        "confidence": {"shown": SHOWN, "gate": GATE, "tests": tests},
        "sensitivity": [one.to_json() for one in sensitivity],
        "bounds": [one.to_json() for one in verdicts],
        "broken": any(one.broken for one in sensitivity) or any(one.broken for one in verdicts),
    }


def training_plan(epsilon: float, delta: float) -> Plan:
    """Private training alone, at (epsilon, delta)."""
    request = TrainingRequest("private training", sampling_rate=RATE, steps=STEPS, clip_norm=1.0)
    return Plan.calibrate((request,), epsilon=epsilon, delta=delta, unit="image", interval=1e-3)
