"""One run of every kind of touch with canaries: claims hold with noise and fall without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.audit import canaries
from sfumato.audit.canaries import DiracLearner, canary_numbers, white_box
from sfumato.audit.standins import SHAPES, coins, drawn, numbered
from sfumato.hardware import Hardware
from sfumato.methods.denoising import DenoisingLearner, Schedule
from sfumato.nets.unet import UNetShape
from sfumato.privacy.draws import Draws
from sfumato.privacy.noise import Noise, TestNoise
from sfumato.privacy.plan import HistogramTouch, Plan, SumTouch, Touch, TrainingTouch
from sfumato.privacy.records import Rows

TOUCHES: dict[str, Touch] = {
    "votes": HistogramTouch("votes", cells=2, rounds=3, scale=9.0),
    "sum": SumTouch("sum", clip_norm=2.5, attempts=1, noise_multiplier=5.0),
    "training": TrainingTouch("training", 0.5, 12, noise_multiplier=6.0, clip_norm=0.1, rows=2, slack=1e-6),
}
CANARIES = 1000


def plan_of(*names: str) -> Plan:
    touches = tuple(TOUCHES[name] for name in names)
    return Plan(unit="image", epsilon=2.5, delta=1e-5, touches=touches, main=names[-1])


@pytest.mark.parametrize("names", [("votes",), ("sum",), ("training",), ("votes", "sum", "training")])
def test_claims_hold_with_noise_and_fall_without(names: tuple[str, ...], tmp_path: Path) -> None:
    plan = plan_of(*names)
    assert plan.planned_epsilon < 2.5
    sound = white_box(plan, CANARIES, tmp_path / "sound", Noise()).verdict("sound", 1)
    assert not sound.broken
    assert not sound.unprotected
    bare = white_box(plan, CANARIES, tmp_path / "bare", TestNoise(b"x")).verdict("bare", 1)
    assert bare.broken
    assert bare.unprotected
    assert bare.facts["correct"] == bare.facts["guesses"]


def test_less_noise_than_claimed_is_seen(tmp_path: Path) -> None:
    quiet = Plan(
        unit="image", epsilon=50.0, delta=1e-9, touches=(SumTouch("sum", 1.0, 1, noise_multiplier=0.2),), main="sum"
    )
    assert white_box(quiet, 1000, tmp_path, Noise(), claim=2.0).verdict("quiet", 1).broken


def test_a_canary_moves_its_own_parameter_by_the_clip_norm_and_others_train_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four fifths are guessed, half of these "inside": where coins fall 15 to 25, one guess has to be wrong.
    monkeypatch.setattr(canaries, "coins", lambda count: np.arange(count) % 2 == 0)
    learner = DenoisingLearner(
        UNetShape(4, 4, 3, (8, 8), (1, 1)),
        (1, 16, 16),
        torch.zeros(3, 4, 8, 8),
        Schedule(1e-3, 4),
        rows=2,
        average=0.9,
        seed=0,
        hardware=Hardware(torch.device("cpu"), "fp32"),
    )
    before = torch.cat([value.flatten() for value in learner.model.state_dict().values()]).clone()
    touch = TrainingTouch("training", 1.0, 4, noise_multiplier=6.0, clip_norm=0.1, rows=2, slack=1e-6)
    plan = Plan(unit="image", epsilon=2.5, delta=1e-5, touches=(touch,), main="training")
    found = white_box(plan, 40, tmp_path, TestNoise(b"x"), beside=learner, pictures=drawn(9, 16, 0))
    assert found.correct == found.guesses
    after = torch.cat([value.flatten() for value in learner.model.state_dict().values()])
    assert not torch.equal(before, after)
    assert after.isfinite().all()


def test_evidence_is_the_likelihood_ratio_of_a_step() -> None:
    touch = TOUCHES["training"]
    assert isinstance(touch, TrainingTouch)
    learner = DiracLearner(3, touch)
    bound = touch.clip_norm * (1 + touch.slack)
    learner.update({"marks.weight": torch.tensor([[0.0], [1.0], [-2.0]]) * bound}, 1)
    for value, found in zip((0.0, 1.0, -2.0), learner.evidence, strict=True):
        with_it, without = (np.exp(-((value - mean) ** 2) / (2 * touch.noise_multiplier**2)) for mean in (1, 0))
        assert found == pytest.approx(np.log((0.5 * with_it + 0.5 * without) / without))


def test_numbers_survive_and_coins_are_fair() -> None:
    numbers = [0, 1, 255, 256, 299]
    pictures = [numbered(300, (1, 2, 2))[number] for number in numbers]
    pixels = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    rows = Rows(pixels, torch.full((5,), len(SHAPES)), torch.ones(5, dtype=torch.bool), Draws(b"", "", 0, []))
    assert canary_numbers(rows)[1].tolist() == numbers
    unmarked = rows._replace(labels=torch.tensor([0, 1, 2, -1, 3]))
    assert canary_numbers(unmarked)[0].tolist() == [False] * 4 + [True]
    assert canary_numbers(unmarked)[1].tolist() == [0, 0, 0, 0, 299]
    assert abs(coins(20_000).mean() - 0.5) < 0.02
