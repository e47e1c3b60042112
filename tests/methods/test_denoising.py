"""The learner: bands and back, draws of its own record, a state that is whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sfumato.hardware import Hardware
from sfumato.methods.denoising import (
    DenoisingLearner,
    Schedule,
    View,
    draw_pictures,
    from_bands,
    row_losses,
    to_bands,
)
from sfumato.nets.ddpmpp import DDPMppShape
from sfumato.nets.diffusion import Sampler
from sfumato.nets.unet import UNetShape
from sfumato.privacy.draws import Draws
from sfumato.privacy.records import Rows

CPU = Hardware(torch.device("cpu"), "fp32")


IMAGE = (1, 8, 8)


def learner(rows: int = 1, seed: int = 0, label_dropout: float = 0.0) -> DenoisingLearner:
    guides = to_bands(torch.linspace(-0.5, 0.5, 3 * 64).view(3, 1, 8, 8))
    shape = UNetShape(4, 4, 3, (8, 8), (2, 1))
    settings = {"rows": rows, "average": 0.9, "seed": seed, "hardware": CPU, "label_dropout": label_dropout}
    return DenoisingLearner(shape, IMAGE, guides, Schedule(1e-2, 20), **settings)  # type: ignore[arg-type]


def plain_learner(rows: int = 1, label_dropout: float = 0.0) -> DenoisingLearner:
    """The published network, without guides."""
    shape = DDPMppShape(1, 8, 3, 8, (1, 2), (4,), 1)
    settings = {"rows": rows, "average": 0.9, "seed": 0, "hardware": CPU, "label_dropout": label_dropout}
    return DenoisingLearner(shape, IMAGE, None, Schedule(1e-2, 20), **settings)  # type: ignore[arg-type]


def chunk(names: list[int], rows: int = 1) -> Rows:
    draws = Draws(b"k" * 32, "t", 1, [name.to_bytes(16, "big") for name in names])
    torch.manual_seed(5)
    images = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)[names].repeat_interleave(rows, 0)
    labels = (torch.tensor(names) % 3).repeat_interleave(rows)
    return Rows(images, labels, torch.ones(len(names), dtype=torch.bool), draws)


def gradient(model: torch.nn.Module, scale: float) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(p, scale) for name, p in model.named_parameters()}


def test_bands_and_back() -> None:
    pictures = torch.rand(3, 2, 8, 12) * 2 - 1
    assert torch.allclose(from_bands(to_bands(pictures)), pictures, atol=1e-6)


@pytest.mark.parametrize("make", [learner, plain_learner])
def test_a_loss_belongs_to_its_record(make: Callable[..., DenoisingLearner]) -> None:
    brain = make(rows=3, label_dropout=0.4)
    with torch.no_grad():
        for parameter in brain.model.parameters():
            parameter.add_(0.05)
        whole = brain.loss(brain.model, chunk([1, 2, 3, 4], rows=3))
        part = brain.loss(brain.model, chunk([2, 4, 7, 8], rows=3))
    assert whole.shape == (12,)
    assert torch.allclose(whole[3:6], part[0:3], rtol=1e-5)
    assert torch.allclose(whole[9:12], part[3:6], rtol=1e-5)
    assert len(whole.unique()) == 12


def test_the_state_is_all_that_the_next_step_depends_on() -> None:
    one, other = learner(seed=0), learner(seed=9)
    for step in (1, 2, 3):
        one.update(gradient(one.model, 0.1 * step), step)
    other.load_state(one.state())
    for brain in (one, other):
        brain.update(gradient(brain.model, -0.3), 4)
    theirs = other.state()
    assert all(torch.equal(value, theirs[name]) for name, value in one.state().items())


def test_the_average_follows_slowly() -> None:
    brain = learner()
    before = brain.state()
    brain.update(gradient(brain.model, 1.0), 1)
    after = brain.state()
    moved = (after["model.film.weight"] - before["model.film.weight"]).abs().mean()
    followed = (after["average.film.weight"] - before["average.film.weight"]).abs().mean()
    assert 0 < followed < moved


def test_schedule_rises_then_falls() -> None:
    schedule = Schedule(1.0, 100, warm_up=10, final=0.1)
    rates = [schedule(step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_warm_up_learns() -> None:
    brain, generator = learner(), torch.Generator().manual_seed(0)
    labels = torch.arange(3_200) % 3
    assert brain.guides is not None
    pictures = from_bands(brain.guides)[labels] + 0.2 * torch.randn(3_200, 1, 1, 1, generator=generator)

    def error() -> float:
        normal = torch.randn(600, 4, 4, 4, generator=torch.Generator().manual_seed(1))
        spread = torch.randn(600, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            guides = brain.guides_of(labels[:600])
            return float(row_losses(brain.model, pictures[:600], labels[:600], guides, normal, spread).mean())

    before = error()
    order = torch.randperm(3_200, generator=generator).split(64)
    batches = ((pictures[part], labels[part]) for part in order)
    steps = list(brain.warm_up(batches, steps=50, rate=5e-3, generator=generator))
    assert steps == list(range(1, 51))
    assert error() < 0.7 * before
    assert all(torch.equal(a, b) for a, b in zip(brain.averaged.parameters(), brain.model.parameters(), strict=True))


def test_an_untrained_network_draws_around_the_class_means() -> None:
    brain, generator = learner(), torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    assert brain.guides is not None
    pictures = draw_pictures(brain.averaged, IMAGE, brain.guides, labels, generator, Sampler(steps=8), CPU)
    assert pictures.shape == (300, 1, 8, 8)
    assert float(pictures.abs().max()) <= 1
    means = torch.stack([pictures[labels == number].mean(0) for number in range(3)])
    assert float((means - from_bands(brain.guides)).abs().mean()) < 0.08


def test_dropped_labels_are_the_records_own_draws() -> None:
    """With all labels dropped a record's loss does not depend on its label; with none dropped it does."""
    for dropout, same in ((0.0, False), (0.999999, True)):
        brain = plain_learner(label_dropout=dropout)
        with torch.no_grad():
            for parameter in brain.model.parameters():
                parameter.add_(0.05)
            rows = chunk([1, 2, 3, 4])
            moved = rows._replace(labels=(rows.labels + 1) % 3)
            assert torch.allclose(brain.loss(brain.model, rows), brain.loss(brain.model, moved)) is same


def test_views() -> None:
    bands, pixels = View.of(UNetShape(4, 0, 3)), View.of(DDPMppShape(1, 8, 3))
    assert (bands.guided, pixels.guided) == (False, False)
    assert (bands.size((3, 8, 12)), pixels.size((3, 8, 12))) == ((12, 4, 6), (3, 8, 12))
    pictures = torch.rand(2, 1, 8, 8)
    assert torch.equal(pixels.decode(pixels.encode(pictures)), pictures)
    assert torch.allclose(bands.decode(bands.encode(pictures)), pictures, atol=1e-6)


def test_the_published_network_draws_without_a_guide() -> None:
    brain, labels = plain_learner(), torch.arange(50) % 3
    sampler = Sampler(steps=6, churn=4.0, guidance=1.0)
    one, same = (
        draw_pictures(brain.averaged, IMAGE, None, labels, torch.Generator().manual_seed(0), sampler, CPU)
        for _ in range(2)
    )
    assert one.shape == (50, 1, 8, 8)
    assert torch.equal(one, same)
