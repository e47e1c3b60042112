"""Breaks that leave every figure plausible: what is passed to whom, and what depends on whom."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.privacy import noise as noise_module
from sfumato.privacy import training
from sfumato.privacy.noise import Noise, TestNoise
from sfumato.privacy.plan import SumTouch, TrainingTouch
from sfumato.privacy.records import Rows
from sfumato.privacy.sums import grid_sum
from tests.privacy import runs
from tests.privacy.memory_source import held, picture

TOUCH = runs.TOUCHES[2]
assert isinstance(TOUCH, TrainingTouch)


class Watched(TestNoise):
    """Notes what it is asked for; includes the first `batch` records; noise is a constant."""

    def __init__(self, batch: int) -> None:
        super().__init__(b"")
        self.batch = batch
        self.rates: list[float] = []
        self.deviations: list[float] = []

    def poisson_mask(self, count: int, rate: float) -> NDArray[np.bool_]:
        self.rates.append(rate)
        return np.arange(count) < self.batch

    def gaussian(self, count: int, standard_deviation: float) -> NDArray[np.float64]:
        self.deviations.append(standard_deviation)
        return np.full(count, 3.0)


class Still(runs.TinyLearner):
    """Its gradients are zero: updates are noise over the divisor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def loss(self, model: torch.nn.Module, rows: Rows) -> Tensor:
        return super().loss(model, rows) * 0

    def update(self, gradient: Mapping[str, Tensor], step: int) -> None:
        self.seen.append(torch.cat([value.flatten() for value in gradient.values()]))


@pytest.mark.parametrize("count", [9, 30])
@pytest.mark.parametrize("batch", [0, 3, 9])
def test_rate_noise_and_divisor_are_the_planned_ones_whoever_is_there(count: int, batch: int, tmp_path: Path) -> None:
    noise, learner = Watched(batch), Still()
    session = runs.session(tmp_path, noise=noise, pictures=runs.PICTURES[:count])
    for _ in training.private_training(session, "training", learner, divisor=15.0, chunk=2):
        pass
    assert noise.rates == [TOUCH.sampling_rate] * TOUCH.steps
    assert noise.deviations == [TOUCH.noise_multiplier * TOUCH.clip_norm * (1 + TOUCH.slack)] * TOUCH.steps
    assert all(torch.equal(each, torch.full_like(each, np.float32(3.0 / 15.0))) for each in learner.seen)


def test_processes_share_the_records_of_a_step_and_no_record_is_in_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[int, list[int]] = {}

    class Pretends(training.Team):
        rank_now = 0

        def __init__(self) -> None:
            self.rank, self.size = Pretends.rank_now, 2

        def told(self, values: Tensor) -> Tensor:
            return torch.ones_like(values) if values.dtype == torch.bool else values

        def told_bytes(self, data: bytes) -> bytes:
            return data

        def sum(self, values: Tensor) -> Tensor:
            return values

    def note(self: training.Crew, records: object, attempt: int, chosen: NDArray[np.int64]) -> Tensor:
        taken.setdefault(Pretends.rank_now, []).extend(chosen.tolist())
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "Team", Pretends)
    monkeypatch.setattr(training.Crew, "clipped_sum", note)
    for rank in (0, 1):
        Pretends.rank_now = rank
        session = runs.session(tmp_path / str(rank), unit="person")
        with pytest.raises(KeyboardInterrupt):
            next(training.private_training(session, "training", runs.TinyLearner(), divisor=15.0))
    assert sorted(taken[0] + taken[1]) == list(range(7))  # each of seven persons, with all images, in one process


@pytest.mark.parametrize("clip_norm", [0.5, 3.0, 100.0])
def test_a_vector_is_clipped_whoever_else_is_there(clip_norm: float, tmp_path: Path) -> None:
    pictures = [picture(number) for number in range(7)]
    touch = SumTouch("sum", clip_norm=clip_norm, attempts=1, noise_multiplier=2.0)

    def vectors(rows: Rows) -> tuple[Tensor, Tensor]:
        flat = rows.images.flatten(1).float()
        return torch.zeros(len(flat), dtype=torch.int64), flat / 255 * flat[:, :1] / 64  # of very different lengths

    alone = [grid_sum(held([one], tmp_path), touch, 1, vectors, (1, 64)) for one in pictures]
    assert np.array_equal(grid_sum(held(pictures, tmp_path), touch, 1, vectors, (1, 64)), sum(alone))


@pytest.mark.parametrize("count", [32, 1_000, 1_000_000])
def test_every_random_byte_is_the_kernels(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream expanded from a short seed passes every test of its law, and can be searched."""
    asked = []

    def urandom(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    monkeypatch.setattr(noise_module.os, "urandom", urandom)
    assert len(Noise().bytes(count)) == count
    assert sum(asked) >= min(count, 32)
    assert Noise().bytes(count) == Noise().bytes(count)  # nothing else goes in
