"""The private stage: what a record adds is bounded, its own, and made of its coarse band alone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from tests.methods.spectral_parts import CPU, IMAGE, known, pictures
from tests.privacy.memory_source import Picture, held

from sfumato.methods.coarse import CoarseLearner, coarse_network, condition_of, set_sizes
from sfumato.methods.denoising import Schedule
from sfumato.nets.adapters import Trained
from sfumato.nets.autoregressive import Condition, ScaleGPT
from sfumato.privacy.draws import Draws
from sfumato.privacy.plan import TrainingTouch
from sfumato.privacy.records import Rows
from sfumato.privacy.training import Crew

SETS: tuple[Trained, ...] = get_args(Trained)
CLASSES = Condition("class", 2)


def learner(trained: Trained = "full", condition: Condition = CLASSES, seed: int = 0) -> CoarseLearner:
    kind = Condition("text", 5) if condition.kind == "text" else Condition()
    model = known(kind)
    vectors = torch.eye(2, 5) if condition.kind == "text" else None
    return CoarseLearner(
        coarse_network(model.network, condition), model.tokenizer, vectors, Schedule(1e-2, 9),
        trained=trained, rank=4, average=0.9, label_dropout=0.3, seed=seed, hardware=CPU,
    )  # fmt: skip


def rows(names: list[int], images: np.ndarray | None = None) -> Rows:
    images = pictures(30, seed=3)[names] if images is None else images
    draws = Draws(b"k" * 32, "t", 1, [name.to_bytes(16, "big") for name in names])
    return Rows(torch.from_numpy(images), torch.tensor(names) % 2, torch.ones(len(names), dtype=torch.bool), draws)


@pytest.mark.parametrize("condition", [Condition(), CLASSES, Condition("text", 5)], ids=lambda c: c.kind)
def test_the_coarse_model_begins_as_the_public_one(condition: Condition) -> None:
    model = known(Condition("text", 5) if condition.kind == "text" else Condition())
    tokens = model.tokenizer.encode(torch.from_numpy(pictures(6)), 1)
    made = coarse_network(model.network, condition)
    expected = model.network.losses(tokens, model.network.condition.nothing(6))
    assert torch.allclose(made.losses(tokens, condition.nothing(6)), expected, atol=1e-5)
    if condition.kind == "class":  # a class is nothing special yet
        assert torch.allclose(made.losses(tokens, torch.tensor([0, 1] * 3)), expected, atol=1e-5)


@pytest.mark.parametrize("condition", [Condition(), CLASSES, Condition("text", 5)], ids=lambda c: c.kind)
def test_a_loss_belongs_to_its_record(condition: Condition) -> None:
    brain = learner(condition=condition)
    with torch.no_grad():
        for value in brain.model.parameters():
            value.add_(0.1 * torch.randn_like(value))
        whole = brain.loss(brain.model, rows([1, 2, 3, 4, 5, 6]))
        part = brain.loss(brain.model, rows([6, 9, 2]))
    assert torch.allclose(whole[[5, 1]], part[[0, 2]], rtol=1e-5)
    assert len(whole.unique()) == 6


def test_nothing_but_the_coarse_band_of_a_record_is_used() -> None:
    """Whatever leaves the means of 2x2 blocks as they are changes no bit of the loss."""
    brain, images = learner(), np.clip(pictures(30, seed=3), 40, 210)[:4]
    swing = (np.indices((8, 8)).sum(0) % 2 * 60 - 30).astype(np.int64)
    changed = (images + swing).astype(np.uint8)
    with torch.no_grad():
        losses = [brain.loss(brain.model, rows([1, 2, 3, 4], which)) for which in (images, changed)]
    assert torch.equal(*losses)
    assert np.abs(changed.astype(int) - images).min() == 30


@pytest.mark.parametrize("trained", SETS)
def test_one_record_moves_the_sum_by_at_most_the_bound(trained: Trained, tmp_path: Path) -> None:
    """Neighbouring folders: the difference is what the record itself adds, and never more than the bound."""
    shown = [Picture(f"{n:02}.png", pixels, "ab"[n % 2]) for n, pixels in enumerate(pictures(20, seed=5))]
    shown.append(Picture("99.png", np.full(IMAGE, 255, np.uint8) * (np.indices((8, 8)).sum(0) % 4 < 2), "a"))
    brain = learner(trained)
    touch = TrainingTouch("training", 1.0, 1, 1.0, 0.05, 1, 1e-6, "flat")
    sums = []
    for name, folder in (("all", shown), ("less", shown[:-1]), ("alone", shown[-1:])):
        records = held(folder, tmp_path / name, classes=("a", "b"))
        with contextlib.closing(Crew(brain, touch, 8, "fp32", workers=1)) as crew:
            sums.append(crew.clipped_sum(records, 1, np.arange(len(folder))).clone())
    moved = float((sums[0] - sums[1]).norm())
    assert 0.01 < moved <= 0.05 * (1 + 1e-6)
    assert torch.allclose(sums[0] - sums[1], sums[2], atol=1e-5)


@pytest.mark.parametrize("trained", SETS)
def test_what_is_frozen_stays_public(trained: Trained) -> None:
    brain = learner(trained)
    before = {name: value.clone() for name, value in brain.model.named_parameters()}
    moving = {name for name, value in brain.model.named_parameters() if value.requires_grad}
    for step in (1, 2):
        brain.update({name: torch.randn_like(before[name]) for name in moving}, step)
    for name, value in brain.model.named_parameters():
        assert torch.equal(value, before[name]) == (name not in moving), name
    kept = {name.split(".", 1)[1].removesuffix(".exp_avg_sq").removesuffix(".exp_avg").removesuffix(".step")
            for name in brain.state()}  # fmt: skip
    assert kept == moving


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_the_state_is_all_that_the_next_step_depends_on(trained: Trained) -> None:
    one, other = learner(trained), learner(trained, seed=9)
    torch.manual_seed(1)
    names = {name: value for name, value in one.model.named_parameters() if value.requires_grad}
    gradients = [{name: torch.randn_like(value) for name, value in names.items()} for _ in range(3)]
    for step in (1, 2):
        one.update(gradients[step], step)
    other.load_state(one.state())
    for brain in (one, other):
        brain.update(gradients[0], 3)
    theirs = other.state()
    assert all(torch.equal(value, theirs[name]) for name, value in one.state().items())
    tokens, labels = torch.randint(16, (4, 4)), torch.tensor([0, 1, -1, 0])
    done = one.finished()
    assert torch.allclose(done.losses(tokens, labels), one.averaged.losses(tokens, labels), atol=1e-5)
    plain = ScaleGPT(16, 1, 4, done.shape, CLASSES)
    plain.load_state_dict(done.state_dict())


def test_sizes_of_sets() -> None:
    sizes = set_sizes(coarse_network(known().network, CLASSES), 4)
    assert sizes["full"] == max(sizes.values())
    assert min(sizes, key=lambda kind: sizes[kind]) == "norms"


def test_what_a_model_is_told() -> None:
    labels, vectors = torch.tensor([1, -1, 0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert condition_of(Condition(), labels, None).tolist() == [-1, -1, -1]
    assert condition_of(CLASSES, labels, None).tolist() == [1, -1, 0]
    assert condition_of(Condition("text", 2), labels, vectors).tolist() == [[3, 4], [0, 0], [1, 2]]
