"""The label check: a classifier learned through one touch, and pictures sorted by what it sees in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from tests.privacy.memory_source import Picture
from tests.privacy.runs import session

from sfumato.errors import PrivacyRefusal
from sfumato.methods.labelcheck import (
    LABEL_CHECK,
    LOOKED_AT,
    LabelCheck,
    LabelCheckConfig,
    _Learner,
    filled_up,
    learn_check,
    noise,
)
from sfumato.nets.scattering import KEPT, ScatteringClassifier
from sfumato.privacy.accounting import gaussian_mu
from sfumato.privacy.draws import Draws
from sfumato.privacy.gradients.engine import rounding_slack
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


def learned(folder: Path, told: Callable[[int, int], None] = lambda *_: None, **changes: float) -> LabelCheck:
    """The check of the run in `folder`, whose public pictures are dead leaves."""
    config, one = LabelCheckConfig(share=0.1, batch=30), opened(folder, **changes)
    return learn_check(config, one, IMAGE, 2, size=60, public=nothing, folder=folder, seed=0, progress=told)


def nothing() -> torch.Tensor:
    """No public pictures."""
    return torch.empty(0, *IMAGE, dtype=torch.uint8)


def bars(labels: list[int]) -> torch.Tensor:
    """Pictures that show these labels."""
    pixels = [drawn(2 * number + 6, "ab"[label]).pixels for number, label in enumerate(labels)]
    return torch.stack([torch.from_numpy(one) for one in pixels if one is not None])


def seen(check: LabelCheck, pictures: torch.Tensor) -> torch.Tensor:
    """Log-odds of the classes."""
    odds: torch.Tensor = check.classifier(pictures / 127.5 - 1).log_softmax(1)
    return odds


def untaught() -> ScatteringClassifier:
    classifier = ScatteringClassifier(IMAGE, 2)
    classifier.look_at([filled_up(nothing(), seed=0) / 127.5 - 1], seed=0)
    return classifier


@pytest.fixture(scope="module")
def check() -> LabelCheck:
    """The same one in every run, learnt without noise: what is asked of the sorter does not hang on chance."""
    classifier, labels = untaught(), torch.arange(2).repeat_interleave(20)
    pictures = torch.cat([strength * bars(labels.tolist()) for strength in (0.3, 0.6, 1.0)])
    descent = torch.optim.SGD(classifier.parameters(), lr=1.0)
    for _ in range(100):
        descent.zero_grad()
        F.cross_entropy(classifier(pictures / 127.5 - 1), labels.repeat(3)).backward()  # type: ignore[no-untyped-call]
        descent.step()
    return LabelCheck(classifier.requires_grad_(False), tries=4)


def test_it_learns_to_tell_the_classes_apart(tmp_path: Path) -> None:
    labels = torch.arange(12) % 2
    assert shown(learned(tmp_path), bars(labels.tolist())) == labels.tolist()


def test_noise_is_what_keeps_it_from_learning(tmp_path: Path) -> None:
    """The same training under so much noise that nothing is left: what it learns comes through the touch alone."""
    labels, right = [number % 2 for number in range(12)], []
    for number in range(4):
        drowned = learned(tmp_path / str(number), noise_multiplier=1e4)
        right.append(sum(map(int.__eq__, shown(drowned, bars(labels)), labels)))
    assert min(right) < 10


def stopping(done: int, _: int) -> None:
    if done == 17:
        raise KeyboardInterrupt


def test_an_interrupted_check_goes_on(tmp_path: Path) -> None:
    """Stopped in the middle and opened again it makes the steps that are left, from the state it had."""
    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path, stopping)
    heard: list[tuple[int, int]] = []
    found = learned(tmp_path, lambda done, of: heard.append((done, of)))
    assert heard == [(step, 30) for step in range(18, 31)]
    again = learned(tmp_path)
    assert all(torch.equal(value, again.state()[name]) for name, value in found.state().items())
    assert shown(found, bars([0, 1])) == [0, 1]


def test_weights_are_of_no_use_for_other_features(tmp_path: Path) -> None:
    """Chosen again, by another machine say, the coordinates could be others: half a training is not gone on with."""
    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path, stopping)
    (tmp_path / "label-check.safetensors").unlink()
    with pytest.raises(PrivacyRefusal, match=r"label-check\.safetensors"):
        learned(tmp_path)


def test_public_pictures_by_lot_and_leaves_where_they_are_few() -> None:
    few = torch.randint(256, (9, *IMAGE), dtype=torch.uint8)
    shown_few = filled_up(few, seed=0)
    assert shown_few.shape == (LOOKED_AT, *IMAGE)
    assert set(map(bytes, few.numpy())) == set(map(bytes, shown_few[:9].numpy()))
    assert len({bytes(one) for one in shown_few.numpy()}) == LOOKED_AT
    many = torch.arange(LOOKED_AT + 60).to(torch.int16).view(torch.uint8).reshape(-1, 1, 1, 2)
    chosen = filled_up(many, seed=0).view(torch.int16).flatten()
    assert len(set(chosen.tolist())) == LOOKED_AT
    assert int((chosen >= LOOKED_AT).sum()) > 30


def test_records_of_no_class_teach_nothing() -> None:
    """Without a label a record has no loss, and so no gradient."""
    learner, images = _Learner(untaught(), 1.0, 10, torch.Tensor.float), bars([0, 1, 1])
    draws = Draws(bytes(32), LABEL_CHECK, 1, [bytes(16)] * 3)
    rows = Rows(images, torch.tensor([0, -1, 1]), torch.ones(3, dtype=torch.bool), draws)
    losses = learner.loss(learner.model, rows)
    assert losses.tolist() == pytest.approx([math.log(2), 0.0, math.log(2)])
    losses[1].backward()  # type: ignore[no-untyped-call]
    assert all(not value.grad.any() for value in learner.model.parameters() if value.grad is not None)


def shown(check: LabelCheck, pictures: torch.Tensor) -> list[int]:
    return seen(check, pictures).argmax(1).tolist()


def test_pictures_are_released_as_what_they_show(check: LabelCheck) -> None:
    """A generator that draws the other class half of the time: nothing is thrown away, all go where they belong."""
    labels, asked = torch.arange(40) % 2, []

    def draw(part: torch.Tensor) -> torch.Tensor:
        asked.append(len(part))
        return bars([int(label) ^ (number // 2 % 2) for number, label in enumerate(part)])

    pictures = check.sorter().fill(labels, draw)
    assert shown(check, pictures) == labels.tolist()
    assert asked == [40]
    drawn = draw(labels)
    assert sorted(map(bytes, pictures.numpy())) == sorted(map(bytes, drawn.numpy()))


def test_too_few_of_a_class_are_drawn_anew_and_the_others_wait(check: LabelCheck) -> None:
    """A generator whose every "a" is a "b" at first."""
    labels, asked = torch.tensor([0, 1, 0, 1]), []

    def draw(part: torch.Tensor) -> torch.Tensor:
        asked.append(part.tolist())
        return bars([1] * len(part) if len(asked) == 1 else part.tolist())

    sorter = check.sorter()
    assert shown(check, sorter.fill(labels, draw)) == [0, 1, 0, 1]
    assert asked == [[0, 1, 0, 1], [0, 0]]
    assert shown(check, sorter.fill(torch.tensor([1, 1]), draw)) == [1, 1]  # the two that waited
    assert len(asked) == 2
    assert shown(check, sorter.fill(torch.tensor([1]), draw)) == [1]
    assert asked[2:] == [[1]]


@pytest.mark.parametrize("tries", [1, 4])
def test_after_all_tries_the_nearest_is_taken_once(check: LabelCheck, tries: int) -> None:
    """A generator that knows one class only, fainter or clearer."""
    limited, asked = LabelCheck(check.classifier, tries), []
    strengths = torch.linspace(0.3, 0.9, 6)

    def draw(part: torch.Tensor) -> torch.Tensor:
        asked.append(len(part))
        return (strengths[: len(part), None, None, None] * bars([1] * len(part))).to(torch.uint8)

    pictures = limited.sorter().fill(torch.tensor([0, 0, 1, 1, 1, 0]), draw)
    assert asked == [6] + [3] * (tries - 1)
    assert shown(check, pictures) == [1] * 6
    if tries == 1:  # all six are given, each once; the three for "a" are the likeliest of those that "b" left
        assert len({bytes(one) for one in pictures.numpy()}) == 6
        odds = seen(check, pictures)[:, 0]
        assert float(odds[0]) >= float(odds[1]) >= float(odds[5])


def test_as_many_places_as_waiting_pictures_allow(check: LabelCheck) -> None:
    """Over many calls, places are filled by class, whatever share of the pictures shows it."""
    torch.manual_seed(0)
    sorter, drawn = LabelCheck(check.classifier, 30).sorter(), 0

    def draw(part: torch.Tensor) -> torch.Tensor:
        nonlocal drawn
        drawn += len(part)
        return bars([int(torch.rand(()) < 0.7) for _ in part])

    for _ in range(10):
        labels = torch.randint(2, (20,))
        assert shown(check, sorter.fill(labels, draw)) == labels.tolist()
    assert 200 <= drawn < 400


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
    assert noise(FASHION, 10, 60_000, 0.5) == pytest.approx(math.sqrt((KEPT + 1) * 10) / 30_000)
    assert noise(IMAGE, 2, 60_000, 0.5) == pytest.approx(math.sqrt((9 * 4 * 4 + 1) * 2) / 30_000)


def test_the_request() -> None:
    request = LabelCheckConfig(share=0.05).request(60_000)
    assert (request.name, request.share, request.steps, request.rows) == (LABEL_CHECK, 0.05, 100, 1)
    assert request.sampling_rate == pytest.approx(2048 / 60_000)
    assert request.slack == rounding_slack(2048) > 1e-6
    assert LabelCheckConfig(share=0.05).sampling_rate(1000) == 0.25
    assert LabelCheckConfig(share=0.05).sampling_rate(None) == 0.03


def test_settings_that_cannot_be() -> None:
    for bad in ({"share": 1.0}, {"tries": 0}, {"steps": 0}, {"rounds": 3}):
        with pytest.raises(ValidationError):
            LabelCheckConfig.model_validate(bad)
