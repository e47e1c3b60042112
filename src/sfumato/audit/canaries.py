"""One-run auditing with Dirac canaries: the attacker sees every released value of a run, and knows all but the coins.

Each canary moves a place of its own, in every touch, by all that one record may: a cell of a histogram, a coordinate of
a sum, a parameter of a model. So canaries do not disturb each other, and one run tells as much as one run a canary
would (Steinke, Nasr and Jagielski 2023, section 6; Nasr et al. 2023 for the gradients). The engine needs no hook: a
canary is a record whose gradient happens to be a Dirac vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfumato.audit.bounds import OneRun, stricter_delta
from sfumato.audit.standins import CANARY, SHAPES, Picture, coins, numbered, open_run
from sfumato.privacy import accounting
from sfumato.privacy.noise import Noise
from sfumato.privacy.plan import HistogramTouch, Plan, SumTouch, TrainingTouch
from sfumato.privacy.records import Rows
from sfumato.privacy.session import Session
from sfumato.privacy.training import Learner, private_training

PLAIN = (1, 2, 2)
"""Image shape of runs that hold canaries only."""
_SLOPE = 1e6  # of a canary's loss: far beyond any clip norm
Report = Callable[[str, int, int | None], None]


def white_box(
    plan: Plan,
    canaries: int,
    folder: Path,
    noise: Noise,
    *,
    beside: Learner | None = None,
    pictures: list[Picture] | None = None,
    claim: float | None = None,
    report: Report = lambda *_: None,
) -> OneRun:
    """Runs all touches of `plan` through the trusted core, with canaries put in by coins, and guesses the coins.

    Args:
        plan: of unit image; the claim is its epsilon and delta.
        canaries: m.
        folder: of the run; temporary.
        noise: `Noise`, or `TestNoise` for a run without protection.
        beside: a learner of ordinary pictures, which trains in the same steps; its first classes are `SHAPES`.
        pictures: what it learns from; all of one shape.
        claim: epsilon to be held against, if it is not the plan's.
        report: progress.
    """
    pictures = pictures or []
    shape = pictures[0].pixels.shape if pictures else PLAIN
    shape = (shape[0], shape[1], shape[2])
    inside = coins(canaries)
    included = [canary for canary, chosen in zip(numbered(canaries, shape), inside, strict=True) if chosen]
    session = open_run([*pictures, *included], plan, folder, noise, shape=shape, classes=(*SHAPES, CANARY))
    scores = np.zeros(canaries)
    for touch in plan.touches:
        match touch:
            case HistogramTouch():
                scores += _votes(session, touch, canaries, report)
            case SumTouch():
                scores += _sums(session, touch, canaries)
            case TrainingTouch():
                scores += _gradients(session, touch, canaries, beside, report)
    if claim is not None:
        return OneRun.of(scores, inside, claim, plan.delta)
    return OneRun.of(scores, inside, plan.epsilon, plan.delta, stricter_claim(plan))


def stricter_claim(plan: Plan) -> float:
    """Epsilon of a plan at a thousandth of its delta, which its accountant claims no less."""
    return accounting.epsilon(plan.mechanisms, stricter_delta(plan.delta), plan.interval)


def canary_numbers(rows: Rows) -> tuple[Tensor, Tensor]:
    """Which rows show a canary, bool `(N,)`, and its number, int64 `(N,)`; 0 for others."""
    marked = rows.labels == len(SHAPES)
    digits = rows.images.flatten(1)[:, :4].long() * torch.tensor([1, 2**8, 2**16, 2**24])
    return marked, torch.where(marked, digits.sum(1), 0)


def gaussian_evidence(values: NDArray[np.float64], noise_multiplier: float) -> NDArray[np.float64]:
    """Log-likelihood ratio of N(1, s^2) to N(0, s^2); of the discrete Gaussians too, whose normalisers agree."""
    return (2 * values - 1) / (2 * noise_multiplier**2)


def _votes(session: Session, touch: HistogramTouch, canaries: int, report: Report) -> NDArray[np.float64]:
    def votes(rows: Rows) -> Tensor:
        marked, numbers = canary_numbers(rows)
        ballot = numbers[:, None] * touch.cells + torch.arange(touch.cells)
        return torch.where(marked[:, None], ballot, -1)

    found = np.zeros(canaries)
    for number in range(touch.rounds):
        counts = session.noisy_histogram(touch.name, votes, canaries * touch.cells).astype(np.float64)
        found += gaussian_evidence(counts, touch.scale).reshape(canaries, touch.cells).sum(1)
        report(f"{touch.name}: rounds", number + 1, touch.rounds)
    return found


def _sums(session: Session, touch: SumTouch, canaries: int) -> NDArray[np.float64]:
    def vectors(rows: Rows) -> tuple[Tensor, Tensor]:
        marked, numbers = canary_numbers(rows)
        vector = torch.zeros(len(numbers), canaries)
        vector[torch.arange(len(numbers)), numbers] = torch.where(marked, 4 * touch.clip_norm, 0.0)  # will be clipped
        return torch.zeros_like(numbers), vector

    total = session.noisy_sum(touch.name, vectors, (1, canaries))[0]
    return gaussian_evidence(total / touch.clip_norm, touch.noise_multiplier)


def _gradients(
    session: Session, touch: TrainingTouch, canaries: int, beside: Learner | None, report: Report
) -> NDArray[np.float64]:
    learner = DiracLearner(canaries, touch, beside)
    for step in private_training(session, touch.name, learner, divisor=1.0, chunk=256 if beside is None else 128):
        report(f"{touch.name}: steps", step, touch.steps)
    return learner.evidence


class Marked(nn.Module):
    """A parameter for each canary, beside the network of another learner."""

    def __init__(self, canaries: int, network: nn.Module | None) -> None:
        super().__init__()
        self.marks = nn.Embedding(canaries, 1)
        self.network = network


class DiracLearner:
    """A `Learner` that weighs, step by step, the evidence for each canary in the noisy gradient of its parameter.

    A step adds a canary with the sampling rate q, so its evidence is log(1 - q + q e^l), where l is that of a release
    that surely adds it. The clip norm is divided out.
    """

    def __init__(self, canaries: int, touch: TrainingTouch, beside: Learner | None = None) -> None:
        self.model = Marked(canaries, beside.model if beside is not None else None)
        self.evidence = np.zeros(canaries)
        self.values: list[NDArray[np.float64]] = []
        self._touch, self._beside = touch, beside

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        """A canary's gradient is its own coordinate, any other record's that of the learner beside."""
        assert isinstance(model, Marked)
        marked, numbers = canary_numbers(rows)
        steep = _SLOPE * model.marks(numbers)[:, 0]
        if self._beside is None or model.network is None:
            return torch.where(marked, steep, 0.0 * steep)
        known = rows._replace(labels=torch.where(marked, -1, rows.labels))
        return torch.where(marked, steep, self._beside.loss(model.network, known))

    def update(self, gradient: Mapping[str, Tensor], step: int) -> None:
        """Takes the evidence of a noisy sum; `divisor` is 1."""
        bound, rate = self._touch.clip_norm * (1 + self._touch.slack), self._touch.sampling_rate
        values = gradient["marks.weight"][:, 0].double().numpy() / bound
        sure = gaussian_evidence(values, self._touch.noise_multiplier)
        absent = math.log1p(-rate) if rate < 1 else -math.inf
        self.evidence += np.logaddexp(absent, math.log(rate) + sure)
        self.values.append(values[:1].copy())
        if self._beside is not None:
            part = {name.removeprefix("network."): v for name, v in gradient.items() if name.startswith("network.")}
            self._beside.update(part, step)

    def state(self) -> dict[str, Tensor]:
        """What moves; an audit is not resumed."""
        return {"marks": self.model.marks.weight.detach()[:1]} if self._beside is None else self._beside.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """What moves."""
        if self._beside is not None:
            self._beside.load_state(state)
