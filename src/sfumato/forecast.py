"""What a run would cost, before it costs anything; from public settings alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from sfumato.config import EVOLUTION, RunConfig
from sfumato.hardware import Hardware, choose_hardware
from sfumato.methods.denoising import cost_of
from sfumato.methods.labelcheck import LABEL_CHECK
from sfumato.methods.privimage_settings import FINE_TUNING, WARM_START
from sfumato.methods.published import QUERY_MULTIPLIER, renyi_multiplier
from sfumato.privacy.plan import Plan, TrainingTouch
from sfumato.run import make_plan
from sfumato.speed import Speed, duration, seconds_beside_training, settled


class AnyForecast(Protocol):
    """What every method's forecast can do."""

    def to_json(self) -> dict[str, Any]:
        """All of it, for scripts."""


def forecast_of(config: RunConfig, hardware: Hardware | None = None) -> AnyForecast:
    """Prices a run of any method; opens no private file."""
    if config.method in EVOLUTION:
        from sfumato.forecast_evolution import forecast_evolution

        return forecast_evolution(config)
    if config.method == "spectral":
        from sfumato.forecast_spectral import forecast_spectral

        return forecast_spectral(config, hardware)
    return forecast(config, hardware)


@dataclass(frozen=True)
class Forecast:
    """What a run would buy and need.

    Attributes:
        plan: the calibrated touches.
        parameters: trained parameters.
        multiply_adds: of one forward pass of one picture.
        operations: floating-point operations of private training; a step costs about three forward passes.
        renyi_multiplier: noise multiplier of training that Renyi accounting asks for, as in the published runs; the
            plan's, from privacy loss distributions, is smaller for the same guarantee.
        noise_per_step: Euclidean norm of the noise in the mean gradient, whose signal has norm at most the clip norm.
        rows_per_second: measured here on random images.
        training_minutes: expected duration of private training on this machine.
        total_minutes: the same of the whole run, from intake to sampling.
        memory_megabytes: what a chunk keeps for its backward pass, in float32, a gradient and a sum, on every core: the
            largest need of private training.
        notes: warnings from public values.
    """

    plan: Plan
    parameters: int
    multiply_adds: int
    operations: float
    renyi_multiplier: float
    noise_per_step: float
    rows_per_second: float
    training_minutes: float
    total_minutes: float
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
            "multiply_adds": self.multiply_adds,
            "operations": self.operations,
            "renyi_multiplier": self.renyi_multiplier,
            "noise_per_step": self.noise_per_step,
            "rows_per_second": self.rows_per_second,
            "training_minutes": self.training_minutes,
            "total_minutes": self.total_minutes,
            "memory_megabytes": self.memory_megabytes,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        (ours,) = (touch.noise_multiplier for touch in self.plan.touches if touch.name == FINE_TUNING)
        lines = [
            *self.plan.in_words(),
            f"Noise multiplier of training: {ours:.4g}; Renyi accounting, which priced the papers' runs, asks for "
            f"{self.renyi_multiplier:.4g}",
            f"Network: {self.parameters:,} trained parameters, {self.multiply_adds / 1e6:,.0f} million multiply-adds a "
            f"picture, {self.operations:.2g} operations in private training; noise of norm {self.noise_per_step:.3g} "
            "per step in a mean gradient of norm at most 1",
            f"Speed: {self.rows_per_second:,.0f} rows a second here, so about {duration(self.training_minutes)} of "
            f"private training and {duration(self.total_minutes)} in all; {self.memory_megabytes:,.0f} MB for "
            "activations and gradients",
        ]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def forecast(config: RunConfig, hardware: Hardware | None = None, speed: Speed | None = None) -> Forecast:
    """Prices a run; tries the machine's speed on random images if it is not given."""
    config, speed = settled(config, hardware or choose_hardware(), speed)
    plan, method, image = make_plan(config), config.privimage, config.image.spec().shape
    by_name = {touch.name: touch for touch in plan.touches}
    touch = by_name[FINE_TUNING]
    assert isinstance(touch, TrainingTouch)
    size = config.public_size
    batch = touch.sampling_rate * size if size else method.batch
    notes = []
    if config.public is not None:
        notes.append("The time includes public pretraining, but not the reading of public images.")
    if size is None:
        notes.append("No size was declared: rate, delta and divisor are the preset's.")
    elif batch / size > 0.5:
        notes.append("More than half of the records take part in every step; such a small set learns little.")
    noise = touch.noise_multiplier * (1 + touch.slack) / batch * speed.parameters**0.5
    if noise > 1:
        notes.append("The noise is larger than any gradient can be: use more records, fewer steps or more epsilon.")
    multiply_adds, kept = cost_of(method.shape(image, len(config.classes or ())), image)
    queried = config.public is not None and method.selection == "semantic"
    others = [by_name[name].mechanism for name in (WARM_START, LABEL_CHECK) if name in by_name]
    training = batch * method.draws * method.steps / speed.rows_per_second
    return Forecast(
        plan=plan,
        parameters=speed.parameters,
        multiply_adds=multiply_adds,
        operations=6.0 * multiply_adds * batch * method.draws * method.steps,
        renyi_multiplier=renyi_multiplier(
            touch.sampling_rate,
            touch.steps,
            config.epsilon,
            config.delta,
            QUERY_MULTIPLIER if queried else None,
            others,
        ),
        noise_per_step=noise,
        rows_per_second=speed.rows_per_second,
        training_minutes=training / 60,
        total_minutes=(training + seconds_beside_training(config, speed)) / 60,
        memory_megabytes=torch.get_num_threads() * (method.chunk * method.draws * kept + 12 * speed.parameters) / 1e6,
        notes=tuple(notes),
    )
