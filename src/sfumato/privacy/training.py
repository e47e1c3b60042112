"""Touch 3: private training. T noisy sums of clipped gradients on Poisson samples (DP-SGD, Abadi et al. 2016).

The caller brings a `Learner`: a model, a loss per row, and what to do with a noisy gradient. It never sees a loss, a
batch or its size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from sfumato.privacy.gradients.engine import ClippedGradients, Clipping
from sfumato.privacy.plan import TrainingTouch
from sfumato.privacy.records import Rows
from sfumato.privacy.session import Session


class Learner(Protocol):
    """What private training trains.

    `state` must hold everything that the next step depends on (weights, optimiser, averages), because it is all that
    survives a crash; it is formed from noisy gradients only.
    """

    @property
    def model(self) -> nn.Module:
        """The module whose trained parameters receive gradients."""

    def loss(self, rows: Rows) -> Tensor:
        """One loss per row, `(R K,)`; row by row, with randomness from `rows.draws` alone."""

    def update(self, gradient: Mapping[str, Tensor], step: int) -> None:
        """Takes one optimiser step with the noisy mean gradient of each trained parameter; `step` counts from 1."""

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave."""


def private_training(
    session: Session,
    name: str,
    learner: Learner,
    *,
    divisor: float,
    chunk: int = 128,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Iterator[int]:
    """Runs the planned training, or what a crash left of it; yields the number of attempts used after each step.

    Args:
        session: the run's access to its records.
        name: the planned touch.
        learner: what is trained; brought to its last durable state first.
        divisor: public constant that the noisy sum is divided by, usually the expected batch size.
        chunk: records per forward pass; changes speed and memory, never the result beyond rounding. Halved after an
            out-of-memory error, with the same records, draws and noise.
        precision: of forward and backward passes.

    Guarantee:
        Step t adds, for each record chosen with probability `sampling_rate`, a vector of norm at most
        `clip_norm (1 + slack)` to the sum, then noise of standard deviation `noise_multiplier clip_norm (1 + slack)`
        once, whatever the number of chunks. At most `steps` intents are written. A step that a crash interrupts is
        lost, not repeated. Nothing but the noisy sum leaves this function: no loss, no batch size.

    Does not cover:
        The time a step takes, which tells about the size of its batch (the threat model says so).
    """
    touch = session.touch(name, TrainingTouch)
    engine = ClippedGradients(
        learner.model,
        Clipping(touch.clip_norm, touch.clipping),
        rows=touch.rows,
        slack=touch.slack,
        precision=precision,
    )
    made = session.attempts_made(name)
    if (latest := session.latest(name)) is not None:
        learner.load_state(load(latest.read_bytes()))
    while made < touch.steps:
        attempt = session.begin(name)
        chosen = np.flatnonzero(session.noise.poisson_mask(session.records._size(), touch.sampling_rate))
        while True:
            try:
                total = _clipped_sum(session, engine, learner, touch, attempt, chosen, chunk)
                break
            except torch.OutOfMemoryError:
                if chunk == 1:
                    raise
                chunk //= 2
        deviation = touch.noise_multiplier * touch.clip_norm * (1 + touch.slack)
        noise = torch.from_numpy(session.noise.gaussian(total.numel(), deviation))
        gradient = ((total + noise.to(total.device)) / divisor).float()
        learner.update(engine.shaped(gradient), attempt)
        session.finish(name, attempt, save(learner.state(), {"attempt": str(attempt)}))
        if latest is not None:
            latest.unlink()
        made, latest = attempt, session.file(name, attempt)
        yield attempt


def _clipped_sum(
    session: Session,
    engine: ClippedGradients,
    learner: Learner,
    touch: TrainingTouch,
    attempt: int,
    chosen: np.ndarray[tuple[int], np.dtype[np.int64]],
    chunk: int,
) -> Tensor:
    """The un-noised sum over the chosen records. Private: for `private_training` and the sensitivity tests."""
    engine.reset()
    device = next(learner.model.parameters()).device
    for rows, _ in session.records._chunks(chosen, chunk, touch.rows, touch.name, attempt):
        rows = rows._replace(
            images=rows.images.to(device), labels=rows.labels.to(device), present=rows.present.to(device)
        )
        engine.add(lambda rows=rows: learner.loss(rows), rows.present)  # type: ignore[misc]
    return engine.total
