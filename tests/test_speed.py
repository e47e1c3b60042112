"""The speed trial: minutes become steps before the first touch, and no private file is opened for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sfumato import speed
from sfumato.config import RunConfig, read_config, validated
from sfumato.errors import UserError
from sfumato.forecast import forecast
from sfumato.hardware import choose_hardware
from sfumato.methods.privimage_settings import FINE_TUNING
from sfumato.run import make_plan
from sfumato.speed import (
    READ_PER_SECOND,
    Speed,
    in_time,
    measure_speed,
    seconds_beside_training,
    settled,
    wide_pays,
    with_steps,
)
from tests.small_set import settings

SPEED = Speed(parameters=1000, rows_per_second=500.0, pictures_per_second=50.0)


def test_the_steps_fill_the_minutes() -> None:
    config = validated(settings(minutes=2.0))
    chosen = with_steps(config, SPEED)
    steps = chosen.privimage.steps
    training = steps * chosen.privimage.batch / SPEED.rows_per_second
    total = training + seconds_beside_training(chosen, SPEED)
    assert 0.88 * 120 < total <= 0.9 * 120
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


def test_a_slow_network_is_tried_on_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial of all that a step takes would take hours; what it tells is about what the whole trial does."""
    config = validated(settings(privimage={"draws": 8, "sampler": {"steps": 60}}))
    whole = measure_speed(config, choose_hardware())
    monkeypatch.setattr(speed, "_PATIENCE", 0.05)
    tried = []
    crew = speed.Crew.rows_per_second
    monkeypatch.setattr(speed.Crew, "rows_per_second", lambda *given: tried.append(given[1:]) or crew(*given))
    quick = measure_speed(config, choose_hardware())
    assert all(chunks == 1 for _, chunks in tried)
    assert len(tried[-1][0].labels) < config.privimage.chunk * 8
    assert whole.parameters == quick.parameters
    assert 0.05 < quick.rows_per_second / whole.rows_per_second < 20
    assert 0.05 < quick.pictures_per_second / whole.pictures_per_second < 20


def test_the_forecast_of_a_published_run() -> None:
    """What its authors priced, by their accounting and by ours; and in which time this machine would have it."""
    recipe = Path(__file__).parents[1] / "recipes" / "privimage-fashion-mnist.yaml"
    slow = Speed(1_485_217, 20.0, 0.5)
    found = forecast(read_config(recipe, {"epsilon": 1.0}), speed=slow)
    assert found.renyi_multiplier == pytest.approx(14.611, rel=5e-3)
    (ours,) = (touch.noise_multiplier for touch in found.plan.touches)
    assert 0.9 < ours / found.renyi_multiplier < 0.96
    assert found.multiply_adds == pytest.approx(603e6, rel=0.01)
    assert found.training_minutes == pytest.approx(3929 * 32 * 2100 / 20 / 60, rel=0.05)
    assert "hours of private training" in str(found)
    rows, cores = 8 * 32, torch.get_num_threads()
    assert 10e6 * rows * cores < 1e6 * found.memory_megabytes < 30e6 * rows * cores


def test_renyi_accounting_pays_for_the_warm_start_too() -> None:
    config = validated(settings(public_size=60_000, privimage={"batch": 1024, "steps": 50, "warm_share": 0.4}))
    found = forecast(config, speed=SPEED)
    (ours,) = (touch.noise_multiplier for touch in found.plan.touches if touch.name == FINE_TUNING)
    assert ours < found.renyi_multiplier < 1.2 * ours


def test_more_draws_mean_fewer_steps() -> None:
    one, four = (
        with_steps(validated(settings(minutes=5.0, privimage={"draws": draws, "batch": 40, "warm_steps": 0})), SPEED)
        for draws in (1, 4)
    )
    assert one.privimage.steps // 4 == four.privimage.steps


def test_too_few_minutes_are_refused() -> None:
    with pytest.raises(UserError, match=r"0.001 minutes are too few .* at least 0\.\d are needed"):
        with_steps(validated(settings(minutes=0.001)), SPEED)


def test_without_minutes_nothing_changes_but_the_share_of_the_label_check() -> None:
    """90 records are too few to learn it from; what a user sets stays."""
    config = validated(settings())
    found = in_time(config)
    assert found.privimage.check.share == 0.0
    unsettled = found.privimage.model_copy(update={"check": config.privimage.check})
    assert found.model_copy(update={"privimage": unsettled}) == config
    assert in_time(validated(settings(privimage={"check": {"share": 0.1}}))).privimage.check.share == 0.1


def test_the_label_check_takes_time_and_budget() -> None:
    """Its training, its look at what is drawn, and what is drawn anew; its share is not training's."""
    without, checked = (
        settled(free(minutes=40.0, epsilon=1.0, privimage={"check": {"share": share}}), choose_hardware(), QUICK)[0]
        for share in (0.0, 0.05)
    )
    speed = QUICK._replace(checks_per_second=100.0)
    more = seconds_beside_training(checked, speed) - seconds_beside_training(without, speed)
    count = checked.count
    assert more == pytest.approx((100 * 2048 + 1.3 * count) / 100.0 + 0.3 * count / speed.pictures_per_second)
    left = [config.privimage.training_mu(1.0, False, 3) ** 2 for config in (without, checked)]
    assert left[0] - left[1] == pytest.approx(0.05, abs=0.01)


def test_shares_that_leave_nothing_for_training_are_refused_in_words() -> None:
    greedy = free(epsilon=1.0, privimage={"warm_share": 0.95, "check": {"share": 0.1}})
    with pytest.raises(UserError, match="together they must stay below 1"):
        make_plan(in_time(greedy))


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


def free(**changes: object) -> RunConfig:
    """A run that leaves batch, steps and draws open."""
    image = {"height": 28, "width": 28}
    return validated(settings(**{"public_size": 60_000, "image": image, "privimage": {}} | changes))


QUICK = Speed(parameters=98_000, rows_per_second=3000.0, pictures_per_second=1000.0, votes_per_second=1e5)


@pytest.mark.parametrize("minutes", [10.0, 40.0])
def test_what_was_left_open_fills_the_minutes(minutes: float) -> None:
    config, speed = settled(free(minutes=minutes, epsilon=10.0), choose_hardware(), QUICK)
    assert speed == QUICK
    method = config.privimage
    training = method.batch * method.steps * method.draws / speed.rows_per_second
    total = training + seconds_beside_training(config, speed)
    assert 0.85 * 60 * minutes < total <= 0.95 * 60 * minutes


def test_epsilon_decides_what_time_is_spent_on() -> None:
    weak, strong = (settled(free(minutes=40.0, epsilon=e), choose_hardware(), QUICK)[0].privimage for e in (10.0, 1.0))
    assert weak.steps > 5 * strong.steps
    assert weak.draws == 1 < strong.draws
    assert 0.99 < weak.average < 0.999
    assert strong.chunk * strong.draws <= 256


def test_the_less_budget_the_more_of_it_shows_the_class_means() -> None:
    ten = list("abcdefghij")
    weak, strong = (in_time(free(epsilon=e, classes=ten)).privimage.warm_share for e in (10.0, 1.0))
    assert weak == 0.04
    assert strong == 0.25
    single = in_time(free(epsilon=1.0, classes=ten, privimage={"warm_attempts": 1})).privimage.warm_share
    assert 0.15 < single < 0.25
    assert in_time(free(epsilon=1.0, classes=ten, privimage={"warm_share": 0.1})).privimage.warm_share == 0.1


def test_what_a_user_sets_stays() -> None:
    method = {"batch": 512, "width": [8, 8]}
    given = validated(settings(public_size=60_000, minutes=10.0, privimage=method))
    config, _ = settled(given, choose_hardware(), QUICK)
    assert (config.privimage.batch, config.privimage.draws, config.privimage.width) == (512, 1, (8, 8))
    lessons = free(minutes=40.0, privimage={"pretraining": {"steps": 7}}, public={"folders": ["somewhere"]})
    assert settled(lessons, choose_hardware(), QUICK)[0].privimage.pretraining.steps == 7


def test_longer_runs_have_longer_lessons() -> None:
    config, _ = settled(free(minutes=40.0, public={"folders": ["somewhere"]}), choose_hardware(), QUICK)
    assert config.privimage.pretraining.steps == int(0.15 * 2400 * 3000 / 256)


def test_without_minutes_epsilon_still_decides() -> None:
    weak, strong = (in_time(free(epsilon=e)).privimage for e in (10.0, 0.3))
    assert (weak.batch, weak.steps, weak.draws, weak.average) == (2048, 160, 1, 0.95)
    assert strong.batch < 1000
    assert strong.draws > 1


def test_the_larger_network_is_for_weak_noise_and_much_time() -> None:
    weak = free(minutes=40.0, epsilon=10.0, privimage={"warm_share": 0.04})
    assert wide_pays(weak, 5e6, 223_000)
    assert not wide_pays(weak, 5e5, 223_000)
    assert not wide_pays(free(minutes=40.0, epsilon=1.0), 5e6, 223_000)
