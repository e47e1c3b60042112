"""Touch 3: what a record adds to a step, what a crash costs, and where noise is added."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfumato.errors import PrivacyRefusal
from sfumato.privacy.gradients import engine, kernels
from sfumato.privacy.gradients.engine import rounding_slack
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
    return runs.sum_of_step(session, TinyLearner(), chunk, workers)


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


def grouped_squares(self: kernels.Linear, *_: object) -> Tensor:
    weight = torch.einsum("rtp,rtd->rpd", self.gradient.double(), self.activation.double())
    return weight.square().sum((1, 2)) + self.gradient.double().sum(1).square().sum(1)


def grouped_add(
    self: kernels.Linear, weights: Tensor, total: Tensor, _: object, __: int, grouped: bool, room: bool, overwrite: bool
) -> None:
    """As AMX adds short sequences: a share's weight has 8 bits if the plan allows groups."""
    if overwrite:
        total.zero_()
    rounded = (weights.float().view(torch.int32) & -(2**16)).view(torch.float32).double() if grouped else weights
    scaled, gradient = self.gradient.double() * rounded[:, None, None], self.gradient.double()
    total[self.weight_at : self.weight_at + 192] += torch.einsum(
        "rtp,rtd->pd", scaled, self.activation.double()
    ).ravel()
    total[self.bias_at : self.bias_at + 3] += (gradient * weights[:, None, None]).sum((0, 1))


@pytest.mark.parametrize("room", [1, 6, 12, 13, 30])
def test_no_record_s_share_hangs_on_how_many_others_there_are(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without one of 13 records, and room to group so many: shares are formed alike on both sides of it."""
    monkeypatch.setattr(engine, "_SMALL", 0)
    monkeypatch.setattr(kernels, "level", lambda precision: 2)
    monkeypatch.setattr(kernels.Linear, "squares", grouped_squares)
    monkeypatch.setattr(kernels.Linear, "add", grouped_add)
    slack = rounding_slack(12, room)
    touch = TrainingTouch("training", 0.5, 6, 2.0, 1.0, 2, slack, grouped=room)

    def total(folder: str, pictures: list[Picture]) -> Tensor:
        session = runs.session(tmp_path / folder, pictures=pictures, noise=TestNoise(), touches=(touch,))
        with contextlib.closing(Crew(TinyLearner(), touch, 4, "bf16", 2)) as crew:
            return crew.clipped_sum(session.records, 3, np.arange(session.records._size())).clone()

    whole = total("all", runs.PICTURES[:13])
    for gone in range(13):
        moved = whole - total(str(gone), [*runs.PICTURES[:gone], *runs.PICTURES[gone + 1 : 13]])
        assert 0.9 < float(moved.norm()) <= 1 + slack


def test_chunks_and_threads_change_nothing_but_rounding(tmp_path: Path) -> None:
    small = step_sum(tmp_path / "a", runs.PICTURES, "image", chunk=3, workers=3)
    large = step_sum(tmp_path / "b", runs.PICTURES, "image", chunk=64, workers=1)
    assert torch.allclose(small, large, rtol=1e-5, atol=1e-6)


def test_a_step_s_noise_and_update_take_time() -> None:
    learner = TinyLearner()
    touch = TrainingTouch("training", 0.5, 6, 2.0, 1.0, 1, 1e-6)
    before = learner.model[1].weight.clone()
    with contextlib.closing(Crew(learner, touch, 2, "fp32", 1)) as crew:
        assert 0 < crew.seconds_beside(learner) < 1
    assert learner.steps == [1]
    assert not torch.equal(before, learner.model[1].weight)


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
                if self.failures % 2:
                    raise torch.OutOfMemoryError
                torch.empty(2**58)  # what PyTorch raises on a processor
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


class Shared(TinyLearner):
    """Records meet in its loss, in a way that gradients do not show."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        images = rows.images.float()
        if self.how == "chance":
            images = images + 50 * torch.rand_like(images)
        if self.how == "mean":
            images = images - images.mean(0)
        losses = super().loss(model, rows._replace(images=images))
        if self.how == "labels":
            losses = losses * (1 + (rows.labels == 0).sum())
        if self.how == "scale":
            losses = losses / losses.detach().mean()
        return losses


@pytest.mark.parametrize("how", ["chance", "mean", "labels", "scale"])
def test_records_that_meet_outside_of_gradients_are_refused(how: str, tmp_path: Path) -> None:
    with pytest.raises(PrivacyRefusal, match="which other records"):
        train(tmp_path, Shared(how))
    train(tmp_path / "fine", Shared("not at all"))


def test_one_state_is_kept(tmp_path: Path) -> None:
    train(tmp_path, TinyLearner())
    assert [file.name for file in (tmp_path / "touches").iterdir()] == ["training.6"]


TOGETHER = """
import sys, torch, torch.distributed as distributed
from pathlib import Path
from sfumato.privacy.noise import Noise, TestNoise
from sfumato.privacy.training import private_training
from tests.privacy import runs
from tests.privacy.test_training import Zero

rank, folder, kind = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
if rank:
    distributed.barrier()  # the first makes the run
pictures = runs.PICTURES[: 29 if rank and kind == "differ" else 30]
noise = Noise() if kind == "zero" else TestNoise(b"n" if rank == 0 else b"of no use")
session = runs.session(folder / "run", noise=noise, pictures=pictures)
if not rank:
    distributed.barrier()
learner = Zero() if kind == "zero" else runs.TinyLearner()
for step in private_training(session, "training", learner, divisor=15.0, chunk=4):
    if kind == "stops" and step == 3:
        break
seen = torch.stack(learner.seen) if kind == "zero" else torch.cat([v.flatten() for v in learner.state().values()])
torch.save(seen, folder / f"{rank}.pt")
distributed.barrier()
distributed.destroy_process_group()  # its threads may not outlive the program
"""


def train_together(folder: Path, kind: str, program: str = TOGETHER) -> list[Tensor]:
    """What two processes have at the end."""
    (folder / "meeting").unlink(missing_ok=True)
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(folder), kind],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(errors))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The same masks and sums; one ledger, one value; a resumption goes on in both."""
    alone = TinyLearner()
    train(tmp_path / "alone", alone, noise=TestNoise(b"n"), chunk=4)
    expected = torch.cat([value.flatten() for value in alone.state().values()])
    first, second = train_together(tmp_path, "trains")
    assert torch.equal(first, second)
    assert torch.allclose(first, expected, rtol=1e-5, atol=1e-6)
    attempts = runs.session(tmp_path / "run", noise=TestNoise())._ledger.attempts("run")["training"]
    assert (attempts.used, attempts.done) == (6, 6)
    assert [file.name for file in (tmp_path / "run" / "touches").iterdir()] == ["training.6"]

    (other := tmp_path / "other").mkdir()
    broken, same = train_together(other, "stops")
    assert torch.equal(broken, same)
    resumed, also = train_together(other, "trains")
    assert torch.equal(resumed, also)
    assert not torch.equal(resumed, broken)
    attempts = runs.session(other / "run", noise=TestNoise())._ledger.attempts("run")["training"]
    assert (attempts.used, attempts.done) == (6, 6)


def test_two_processes_add_noise_once(tmp_path: Path) -> None:
    first, second = train_together(tmp_path, "zero")
    assert torch.equal(first, second)
    noise = first.flatten() * 15.0
    assert len(noise) == 6 * 195
    assert abs(float(noise.std()) / 2.0 - 1) < 0.1  # twice would be 1.41


def test_processes_with_different_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="read different folders"):
        train_together(tmp_path, "differ")
