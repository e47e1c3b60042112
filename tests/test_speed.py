"""The speed trial: minutes become steps before the first touch, and no private file is opened for it."""

from __future__ import annotations

import pytest

from sfumato.config import validated
from sfumato.errors import UserError
from sfumato.hardware import choose_hardware
from sfumato.speed import READ_PER_SECOND, Speed, in_time, measure_speed, seconds_beside_training, with_steps
from tests.small_set import settings

SPEED = Speed(parameters=1000, rows_per_second=500.0, pictures_per_second=50.0)


def test_the_steps_fill_the_minutes() -> None:
    config = validated(settings(minutes=2.0))
    chosen = with_steps(config, SPEED)
    steps = chosen.privimage.steps
    training = steps * chosen.privimage.batch / SPEED.rows_per_second
    total = training + seconds_beside_training(chosen, SPEED)
    assert 0.92 * 120 < total <= 0.94 * 120
    assert chosen.privimage.model_copy(update={"steps": 0}) == config.privimage.model_copy(update={"steps": 0})
    assert with_steps(chosen, SPEED) == chosen


def test_what_takes_time_beside_training() -> None:
    config = validated(settings(minutes=2.0, count=200, public_size=4000))
    warm_up = config.privimage.warm_steps * 256 / 500
    assert seconds_beside_training(config, SPEED) == pytest.approx(4000 / READ_PER_SECOND + warm_up + 200 / 50)


def test_public_images_take_time() -> None:
    method = {"pretraining": {"steps": 100, "batch": 50}, "semantic": {"steps": 10}}
    alone = validated(settings(public_size=4000, privimage=method))
    taught = validated(settings(public_size=4000, privimage=method, public={"folders": ["somewhere"]}))
    speed = SPEED._replace(votes_per_second=1000.0)
    more = seconds_beside_training(taught, speed) - seconds_beside_training(alone, speed)
    assert more == pytest.approx(100 * 50 / 500 + (3 * 10 * 128 + 4000) / 1000)


def test_more_draws_mean_fewer_steps() -> None:
    one, four = (
        with_steps(validated(settings(minutes=5.0, privimage={"draws": draws, "batch": 40, "warm_steps": 0})), SPEED)
        for draws in (1, 4)
    )
    assert one.privimage.steps // 4 == four.privimage.steps


def test_too_few_minutes_are_refused() -> None:
    with pytest.raises(UserError, match=r"0.001 minutes are too few .* at least 0\.\d are needed"):
        with_steps(validated(settings(minutes=0.001)), SPEED)


def test_without_minutes_nothing_changes() -> None:
    config = validated(settings())
    assert in_time(config) is config


def test_a_trial_on_this_machine() -> None:
    config = validated(settings(minutes=1.0))
    speed = measure_speed(config, choose_hardware())
    assert speed.rows_per_second > 10
    assert speed.pictures_per_second > 1
    assert in_time(config).privimage.steps != config.privimage.steps
    assert speed.votes_per_second == float("inf")
    taught = validated(settings(public={"folders": ["somewhere"]}))
    assert 10 < measure_speed(taught, choose_hardware()).votes_per_second < float("inf")
    without_classes = validated(settings(classes=None, classes_origin=None))
    assert 0 < measure_speed(without_classes, choose_hardware()).parameters < speed.parameters
