"""What a run would cost, before it costs anything; from public settings alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from sfumato.config import RunConfig
from sfumato.hardware import Hardware, choose_hardware
from sfumato.methods.denoising import DenoisingLearner, Schedule
from sfumato.methods.privimage import network_shape
from sfumato.privacy.draws import Draws
from sfumato.privacy.gradients.engine import ClippedGradients, Clipping
from sfumato.privacy.plan import Plan, TrainingTouch
from sfumato.privacy.records import Rows
from sfumato.run import make_plan

_TRIALS = 8


@dataclass(frozen=True)
class Forecast:
    """What a run would buy and need.

    Attributes:
        plan: the calibrated touches.
        parameters: trained parameters.
        noise_per_step: Euclidean norm of the noise in the mean gradient, whose signal has norm at most the clip norm.
        rows_per_second: measured here on random images.
        training_minutes: expected duration of private training on this machine.
        memory_megabytes: per-record gradients of a chunk on every core, the largest need of private training.
        notes: warnings from public values.
    """

    plan: Plan
    parameters: int
    noise_per_step: float
    rows_per_second: float
    training_minutes: float
    memory_megabytes: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, for scripts."""
        return {
            "epsilon": self.plan.planned_epsilon,
            "delta": self.plan.delta,
            "plan": self.plan.to_json(),
            "shares": self.plan.shares(),
            "parameters": self.parameters,
            "noise_per_step": self.noise_per_step,
            "rows_per_second": self.rows_per_second,
            "training_minutes": self.training_minutes,
            "memory_megabytes": self.memory_megabytes,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [
            f"Guarantee: epsilon {self.plan.planned_epsilon:g}, delta {self.plan.delta:g} for one {self.plan.unit}"
        ]
        for row in self.plan.describe():
            rate = "" if row.sampling_rate is None else f", sampling rate {row.sampling_rate:.4g}"
            lines.append(
                f"  {row.name}: {row.what}, {row.attempts} attempt(s){rate}, noise multiplier "
                f"{row.noise_multiplier:g}, {row.share:.0%} of mu^2"
            )
        lines += [
            f"Network: {self.parameters:,} trained parameters; noise of norm {self.noise_per_step:.3g} per step in a "
            "mean gradient of norm at most 1",
            f"Speed: {self.rows_per_second:,.0f} rows a second here, so about {self.training_minutes:.1f} minutes of "
            f"private training and {self.memory_megabytes:,.0f} MB for gradients",
        ]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def forecast(config: RunConfig, hardware: Hardware | None = None) -> Forecast:
    """Prices a run and measures a few steps on random images."""
    plan, method, hardware = make_plan(config), config.privimage, hardware or choose_hardware()
    (touch,) = (touch for touch in plan.touches if isinstance(touch, TrainingTouch))
    size = config.public_size
    batch = touch.sampling_rate * size if size else method.batch
    image = (config.image.channels, config.image.height, config.image.width)
    classes = len(config.classes or ())
    shape = network_shape(method, image, classes)
    guides = torch.zeros(max(classes, 1), 4 * image[0], image[1] // 2, image[2] // 2)
    learner = DenoisingLearner(
        shape, guides, Schedule(1e-3, 1), rows=method.draws, average=0.9, seed=0, hardware=hardware
    )
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    rate = _rows_per_second(learner, image, classes, method.chunk)
    notes = []
    if size is None:
        notes.append("No size was declared: rate, delta and divisor are the preset's.")
    elif batch / size > 0.5:
        notes.append("More than half of the records take part in every step; such a small set learns little.")
    noise = touch.noise_multiplier * (1 + touch.slack) / batch * parameters**0.5
    if noise > 1:
        notes.append("The noise is larger than any gradient can be: use more records, fewer steps or more epsilon.")
    return Forecast(
        plan=plan,
        parameters=parameters,
        noise_per_step=noise,
        rows_per_second=rate,
        training_minutes=batch * method.draws * method.steps / rate / 60,
        memory_megabytes=torch.get_num_threads() * method.chunk * parameters * 4 / 1e6,
        notes=tuple(notes),
    )


def _rows_per_second(learner: DenoisingLearner, image: tuple[int, int, int], classes: int, chunk: int) -> float:
    engine = ClippedGradients(
        learner.model, Clipping(1.0), rows=learner.rows, slack=1.0, precision=learner.hardware.precision
    )
    labels = torch.arange(chunk * learner.rows) % max(classes, 1) if classes else -torch.ones(chunk * learner.rows)
    draws = Draws(bytes(32), "speed trial", 0, [bytes(16)] * chunk)
    pictures = torch.randint(0, 256, (chunk * learner.rows, *image), dtype=torch.uint8)
    rows = Rows(pictures, labels.long(), torch.ones(chunk, dtype=torch.bool), draws)
    engine.add(lambda: learner.loss(learner.model, rows), rows.present)
    begun = time.perf_counter()
    for _ in range(_TRIALS):
        engine.add(lambda: learner.loss(learner.model, rows), rows.present)
    return _TRIALS * chunk * learner.rows / (time.perf_counter() - begun)
