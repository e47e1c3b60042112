"""Touch 3: what a record adds to a step, what a crash costs, and where noise is added."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.privacy.noise import Noise, TestNoise
from sfumato.privacy.plan import TrainingTouch
from sfumato.privacy.records import Rows
from sfumato.privacy.training import Crew, private_training
from tests.privacy import runs
from tests.privacy.memory_source import Picture
from tests.privacy.runs import TinyLearner


def step_sum(folder: Path, pictures: list[Picture], unit: str, chunk: int = 4, workers: int = 2) -> Tensor:
    """The un-noised clipped sum over all records at step 3."""
    session = runs.session(folder, pictures=pictures, unit=unit, noise=TestNoise())
    everyone = np.arange(session.records._size())
    with contextlib.closing(
        Crew(TinyLearner(), session.touch("training", TrainingTouch), chunk, "fp32", workers)
    ) as crew:
        return crew.clipped_sum(session.records, 3, everyone).clone()


@pytest.mark.parametrize("unit", ["image", "person"])
@pytest.mark.parametrize("workers", [1, 2])
def test_one_record_moves_a_step_by_at_most_the_clip_norm(unit: str, workers: int, tmp_path: Path) -> None:
    pictures = runs.PICTURES[:14]
    whole = step_sum(tmp_path / "all", pictures, unit, workers=workers)
    norms = []
    for gone in sorted({p.identity if unit == "image" else str(p.person) for p in pictures}):
        rest = [p for p in pictures if gone not in (p.identity, p.person)]
        fewer = step_sum(tmp_path / gone, rest, unit, workers=workers)
        norms.append(float((whole - fewer).norm()))
        assert norms[-1] <= 1 + 1e-6
    assert max(norms) > 0.99


def test_chunks_and_threads_change_nothing_but_rounding(tmp_path: Path) -> None:
    small = step_sum(tmp_path / "a", runs.PICTURES, "image", chunk=3, workers=3)
    large = step_sum(tmp_path / "b", runs.PICTURES, "image", chunk=64, workers=1)
    assert torch.allclose(small, large, rtol=1e-5, atol=1e-6)


def train(
    folder: Path, learner: TinyLearner, stop_after: int | None = None, noise: Noise | None = None, **kw: int
) -> None:
    for step in private_training(runs.session(folder, noise=noise), "training", learner, divisor=15.0, **kw):
        if step == stop_after:
            return


def test_all_steps_are_taken_once(tmp_path: Path) -> None:
    learner = TinyLearner()
    train(tmp_path, learner)
    assert learner.steps == [1, 2, 3, 4, 5, 6]
    train(tmp_path, learner)
    assert learner.steps == [1, 2, 3, 4, 5, 6]


def test_an_interrupted_training_goes_on_where_it_was(tmp_path: Path) -> None:
    straight, first, second = TinyLearner(), TinyLearner(), TinyLearner()
    train(tmp_path / "straight", straight, noise=TestNoise(b"n"))
    train(tmp_path / "broken", first, stop_after=3, noise=TestNoise(b"n"))
    train(tmp_path / "broken", second, noise=TestNoise(b"n"))
    assert first.steps + second.steps == [1, 2, 3, 4, 5, 6]
    state = torch.cat([value.flatten() for value in first.state().values()])
    assert not torch.equal(state, torch.cat([value.flatten() for value in second.state().values()]))
    assert second.state().keys() == straight.state().keys()


class Dies(TinyLearner):
    """Is killed inside the given step, before its value is durable."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def update(self, gradient: dict[str, Tensor], step: int) -> None:  # type: ignore[override]
        if step == self.at:
            raise KeyboardInterrupt
        super().update(gradient, step)


def test_each_kill_costs_one_step_and_no_more(tmp_path: Path) -> None:
    taken = []
    for at in (1, 3, 4, 99):
        learner = Dies(at)
        with contextlib.suppress(KeyboardInterrupt):
            train(tmp_path, learner)
        taken += learner.steps
    assert taken == [2, 5, 6]
    attempts = runs.session(tmp_path)._ledger.attempts("run")["training"]
    assert (attempts.used, attempts.done, attempts.planned) == (6, 3, 6)


def test_a_state_is_restored_before_the_next_step(tmp_path: Path) -> None:
    first = TinyLearner()
    train(tmp_path, first, stop_after=2)
    second = TinyLearner()
    generator = private_training(runs.session(tmp_path), "training", second, divisor=15.0)
    before = second.state()
    seen: dict[str, Tensor] = {}
    second.update = lambda gradient, step: seen.update(second.state())  # type: ignore[method-assign]
    next(generator)
    assert all(torch.equal(seen[key], value) for key, value in first.state().items())
    assert not all(torch.equal(before[key], value) for key, value in first.state().items())


class Zero(TinyLearner):
    """Its gradients are zero, so that updates are noise alone."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        return super().loss(model, rows) * 0

    def update(self, gradient: dict[str, Tensor], step: int) -> None:  # type: ignore[override]
        self.seen.append(torch.cat([value.flatten() for value in gradient.values()]))


def test_noise_is_added_once_a_step_at_the_planned_scale(tmp_path: Path) -> None:
    for chunk in (1, 64):
        learner = Zero()
        for run in range(4):
            train(tmp_path / f"{chunk}-{run}", learner, chunk=chunk)
        noise = torch.cat(learner.seen) * 15.0
        assert len(noise) == 4 * 6 * 195
        assert abs(float(noise.std()) / 2.0 - 1) < 0.05
        assert len(noise.unique()) > 0.999 * len(noise)  # float32 values may meet by chance


def test_an_empty_batch_is_a_step_of_noise(tmp_path: Path) -> None:
    class Nobody(Noise):
        def poisson_mask(self, count: int, rate: float) -> np.ndarray:  # type: ignore[type-arg]
            return np.zeros(count, dtype=np.bool_)

    learner = Zero()
    train(tmp_path, learner, noise=Nobody())
    assert len(learner.seen) == 6
    assert all(value.std() > 0.01 for value in learner.seen)


def test_running_out_of_memory_redraws_nothing(tmp_path: Path) -> None:
    class Hungry(TinyLearner):
        failures = 0

        def loss(self, model: nn.Module, rows: Rows) -> Tensor:
            if len(rows.present) > 4:
                self.failures += 1
                raise torch.OutOfMemoryError
            return super().loss(model, rows)

    class Counting(TestNoise):
        masks = 0

        def poisson_mask(self, count: int, rate: float) -> np.ndarray:  # type: ignore[type-arg]
            self.masks += 1
            return super().poisson_mask(count, rate)

    hungry, plain, noise = Hungry(), TinyLearner(), Counting(b"x")
    train(tmp_path / "hungry", hungry, chunk=16, noise=noise)
    train(tmp_path / "plain", plain, chunk=4, noise=TestNoise(b"x"))
    assert hungry.failures >= 2
    assert noise.masks == 6
    assert all(torch.equal(hungry.state()[key], value) for key, value in plain.state().items())


def test_one_state_is_kept(tmp_path: Path) -> None:
    train(tmp_path, TinyLearner())
    assert [file.name for file in (tmp_path / "touches").iterdir()] == ["training.6"]
