"""The label check: a classifier learned through one touch, and pictures drawn anew until it agrees."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.privacy.memory_source import Picture
from tests.privacy.runs import session

from sfumato.methods.labelcheck import LABEL_CHECK, LabelCheck, LabelCheckConfig, _Learner, learn_check, noise
from sfumato.nets.scattering import Scattering
from sfumato.privacy.accounting import gaussian_mu
from sfumato.privacy.draws import Draws
from sfumato.privacy.plan import TrainingTouch
from sfumato.privacy.records import Rows
from sfumato.privacy.session import Session

IMAGE, FASHION = (1, 8, 8), (1, 28, 28)


def drawn(number: int, label: str | None) -> Picture:
    """A bar, upright for "a" and lying for "b", somewhere."""
    canvas = torch.zeros(8, 8, dtype=torch.uint8)
    canvas[1 + number // 2 % 6] = 100 + number % 150
    pixels = (canvas.T if label == "a" else canvas)[None].contiguous().numpy()
    return Picture(f"image-{number:04d}.png", pixels, label)


BARS = [drawn(number, "ab"[number % 2]) for number in range(60)]


def touch(steps: int = 30, noise_multiplier: float = 0.1) -> TrainingTouch:
    return TrainingTouch(LABEL_CHECK, 0.5, steps, noise_multiplier, clip_norm=1.0, rows=1, slack=1e-6)


def opened(folder: Path, pictures: list[Picture] = BARS, **changes: float) -> Session:
    return session(folder, pictures=pictures, touches=(touch(**changes),))  # type: ignore[arg-type]


def learned(one: Session, tries: int = 4, heard: list[tuple[int, int]] | None = None) -> LabelCheck:
    config = LabelCheckConfig(share=0.1, batch=30, tries=tries)
    heard = [] if heard is None else heard
    return learn_check(config, one, IMAGE, 2, size=60, progress=lambda done, of: heard.append((done, of)))


def bars(labels: list[int]) -> torch.Tensor:
    """Pictures in [-1, 1] that show these labels."""
    pixels = [drawn(2 * number + 6, "ab"[label]).pixels for number, label in enumerate(labels)]
    return torch.stack([torch.from_numpy(one) for one in pixels if one is not None]).float() / 127.5 - 1


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> LabelCheck:
    return learned(opened(tmp_path_factory.mktemp("check")))


def test_it_learns_to_tell_the_classes_apart(check: LabelCheck) -> None:
    labels = torch.arange(12) % 2
    assert check.classifier(bars(labels.tolist())).argmax(1).tolist() == labels.tolist()


def test_noise_is_what_keeps_it_from_learning(tmp_path: Path) -> None:
    """The same training under so much noise that nothing is left: what it learns comes through the touch alone."""
    labels = torch.arange(12) % 2
    right = [
        int((learned(opened(tmp_path / str(number), noise_multiplier=1e4)).classifier(bars(labels.tolist())).argmax(1)
             == labels).sum())
        for number in range(4)
    ]  # fmt: skip
    assert min(right) < 10


def test_an_interrupted_check_goes_on(tmp_path: Path) -> None:
    """Stopped in the middle and opened again it makes the steps that are left, from the state it had."""
    heard: list[tuple[int, int]] = []

    def stop(done: int, _: int) -> None:
        if done == 17:
            raise KeyboardInterrupt

    config = LabelCheckConfig(share=0.1, batch=30)
    with pytest.raises(KeyboardInterrupt):
        learn_check(config, opened(tmp_path), IMAGE, 2, size=60, progress=stop)
    found = learned(opened(tmp_path), heard=heard)
    assert heard == [(step, 30) for step in range(18, 31)]
    again = learned(opened(tmp_path))
    assert all(torch.equal(value, again.state()[name]) for name, value in found.state().items())
    assert found.classifier(bars([0, 1])).argmax(1).tolist() == [0, 1]


def test_records_of_no_class_teach_nothing() -> None:
    """Without a label a record has no loss, and so no gradient."""
    learner = _Learner(IMAGE, 2, 1.0, 10)
    images = ((bars([0, 1, 1]) + 1) * 127.5).round().to(torch.uint8)
    draws = Draws(bytes(32), LABEL_CHECK, 1, [bytes(16)] * 3)
    rows = Rows(images, torch.tensor([0, -1, 1]), torch.ones(3, dtype=torch.bool), draws)
    losses = learner.loss(learner.model, rows)
    assert losses.tolist() == pytest.approx([math.log(2), 0.0, math.log(2)])
    losses[1].backward()  # type: ignore[no-untyped-call]
    assert all(not value.grad.any() for value in learner.model.parameters() if value.grad is not None)


def test_what_disagrees_is_drawn_anew(check: LabelCheck) -> None:
    """A generator that errs at every second picture, but never at the same twice."""
    labels, asked = torch.arange(40) % 2, []

    def draw(part: torch.Tensor) -> torch.Tensor:
        wrong = torch.arange(len(part)) % 4 == 0 if not asked else torch.zeros(len(part), dtype=torch.bool)
        asked.append(len(part))
        return bars(torch.where(wrong, 1 - part, part).tolist())

    pictures = check.agreed(labels, draw)
    assert asked == [40, 10]
    assert check.classifier(pictures).argmax(1).tolist() == labels.tolist()


def test_what_agrees_at_once_is_kept(check: LabelCheck) -> None:
    labels = torch.tensor([0, 1, 1, 0])
    first = bars(labels.tolist())
    assert torch.equal(check.agreed(labels, lambda part: first.clone()), first)


@pytest.mark.parametrize("tries", [2, 4])
def test_after_all_tries_the_likeliest_stays(check: LabelCheck, tries: int) -> None:
    """A generator that draws the wrong class each time, ever less clearly, then more clearly again."""
    limited = LabelCheck(check.classifier, tries)
    wrong, asked = bars([1]), []

    def draw(part: torch.Tensor) -> torch.Tensor:
        assert part.tolist() == [0]
        faint = [0.9, 0.4, 0.7, 0.8][len(asked)]
        asked.append(faint)
        return faded(faint)

    def faded(faint: float) -> torch.Tensor:
        return -1 + faint * (wrong + 1) + 0.1 * (1 - faint) * (bars([0]) + 1)

    kept = limited.agreed(torch.tensor([0]), draw)
    assert len(asked) == tries
    odds = [float(check.classifier(faded(faint)).log_softmax(1)[0, 0]) for faint in asked]
    assert float(check.classifier(kept).log_softmax(1)[0, 0]) == pytest.approx(max(odds), rel=1e-5)
    assert max(odds) < math.log(0.5)  # it never agreed


def test_the_share_follows_from_public_values() -> None:
    """The more noise the classifier would have, the larger its share, until it would learn nothing at all."""

    def share(epsilon: float, size: int | None, classes: int = 10) -> float | None:
        return LabelCheckConfig().settled(FASHION, classes, size, gaussian_mu(epsilon, 1e-5)).share

    assert share(10.0, 60_000) == 0.02
    assert 0.04 < (share(1.0, 60_000) or 0) < 0.06
    assert share(1.0, 20_000) == 0.1
    assert share(1.0, 2_000) == 0.0
    assert share(1.0, None) == share(1.0, 60_000, classes=0) == share(1.0, 60_000, classes=1) == 0.0
    assert LabelCheckConfig(share=0.3).settled(FASHION, 10, None, 1.0).share == 0.3
    assert LabelCheckConfig(share=0.3).spent(1) == LabelCheckConfig().spent(10) == 0.0


def test_the_noise_that_decides_the_share() -> None:
    """sqrt(P) / (mu n), with the biases among the parameters."""
    assert noise(FASHION, 10, 60_000, 0.5) == pytest.approx(math.sqrt(834 * 10) / 30_000)
    assert Scattering(FASHION).dimensions == 833


def test_the_request() -> None:
    request = LabelCheckConfig(share=0.05).request(60_000)
    assert (request.name, request.share, request.steps, request.rows) == (LABEL_CHECK, 0.05, 100, 1)
    assert request.sampling_rate == pytest.approx(2048 / 60_000)
    assert LabelCheckConfig(share=0.05).sampling_rate(1000) == 0.25
    assert LabelCheckConfig(share=0.05).sampling_rate(None) == 0.03


def test_settings_that_cannot_be() -> None:
    for bad in ({"share": 1.0}, {"tries": 1}, {"steps": 0}, {"rounds": 3}):
        with pytest.raises(ValidationError):
            LabelCheckConfig.model_validate(bad)
