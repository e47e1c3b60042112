"""Plans: calibrated within the budget, priced from what was executed, stored without losing a bit."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.errors import InternalError, PrivacyRefusal, UserError
from sfumato.privacy import accounting
from sfumato.privacy.gradients.engine import rounding_slack
from sfumato.privacy.plan import (
    HistogramRequest,
    HistogramTouch,
    Plan,
    Request,
    SumRequest,
    SumTouch,
    TrainingRequest,
    TrainingTouch,
)

COARSE = 1e-3
VOTES = HistogramRequest("votes", cells=1, rounds=9)
CLASSES = HistogramRequest("classes", cells=2, rounds=2, share=0.04)
MEANS = SumRequest("class means", clip_norm=1.5, attempts=2, share=0.06)
TRAINING = TrainingRequest("fine-tuning", sampling_rate=0.05, steps=200, clip_norm=1.0, rows=4)


def calibrated(requests: list[Request] | None = None, **changes: Any) -> Plan:
    arguments: dict[str, Any] = {"epsilon": 1.0, "delta": 1e-6, "unit": "image", "interval": COARSE} | changes
    return Plan.calibrate([CLASSES, MEANS, TRAINING] if requests is None else requests, **arguments)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return calibrated(unit="person", declared_size=30_000)


def histogram(name: str = "votes", **changes: Any) -> HistogramTouch:
    arguments: dict[str, Any] = {"cells": 1, "rounds": 9, "scale": 12.0} | changes
    return HistogramTouch(name, **arguments)


def simple(**changes: Any) -> Plan:
    arguments: dict[str, Any] = {"unit": "image", "epsilon": 1.5, "delta": 1e-6, "main": "votes"}
    return Plan(**arguments | {"touches": (histogram(),)} | changes)


# --- calibration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-6), (10.0, 1e-5), (0.3, 1e-9)])
@pytest.mark.parametrize(
    "requests",
    [[VOTES], [TRAINING], [CLASSES, MEANS, TRAINING], [MEANS, VOTES], [SumRequest("means", 1.0, 2)]],
    ids=lambda requests: "+".join(request.name for request in requests),
)
def test_a_calibrated_plan_stays_within_its_budget(requests: list[Request], epsilon: float, delta: float) -> None:
    plan = calibrated(requests, epsilon=epsilon, delta=delta)
    assert [touch.name for touch in plan.touches] == [request.name for request in requests]
    price = accounting.epsilon(plan.mechanisms, delta, COARSE)
    assert 0.98 * epsilon < price <= plan.planned_epsilon <= epsilon
    assert sum(plan.shares().values()) == pytest.approx(1)
    for request in requests:
        if request.share is not None:
            assert 0.99 * request.share < plan.shares()[request.name] <= request.share


def test_the_noise_of_auxiliary_touches(plan: Plan) -> None:
    mu = accounting.gaussian_mu(1.0, 1e-6)
    classes, means, training = plan.touches
    assert isinstance(training, TrainingTouch)
    assert classes.noise_multiplier == accounting.round_up_noise(math.sqrt(2 * 2) / (math.sqrt(0.04) * mu))
    assert means.noise_multiplier == accounting.round_up_noise(math.sqrt(2) / (math.sqrt(0.06) * mu))
    less = dataclasses.replace(training, noise_multiplier=0.99 * training.noise_multiplier)
    mechanisms = (classes.mechanism, means.mechanism, less.mechanism)
    assert accounting.epsilon(mechanisms, plan.delta, COARSE) > plan.epsilon


SECOND = TrainingRequest("second training", sampling_rate=0.03, steps=100, clip_norm=1.0, share=0.05)


def test_auxiliary_training_is_priced_with_all_the_rest() -> None:
    """Its noise follows from its share, rounded up; what it costs is in the composed price, to the last step."""
    mu = accounting.gaussian_mu(1.0, 1e-6)
    plan, alone = calibrated([SECOND, TRAINING]), calibrated([TRAINING])
    second, training = plan.touches
    assert isinstance(second, TrainingTouch)
    noise = 1 / math.sqrt(math.log1p(0.05 * mu**2 / (0.03**2 * 100)))
    assert second.noise_multiplier == accounting.round_up_noise(noise)
    assert training.noise_multiplier > alone.touches[0].noise_multiplier
    exact = accounting.epsilon((second.mechanism, training.mechanism), plan.delta, COARSE)
    assert plan.planned_epsilon == pytest.approx(exact, abs=1e-4)
    assert exact <= 1.0
    without = accounting.epsilon((training.mechanism,), plan.delta, COARSE)
    assert plan.epsilon_of({"fine-tuning": 200}) == pytest.approx(without, abs=1e-4)
    assert without < exact - 0.005
    assert plan.shares() == {
        "second training": pytest.approx(0.05, rel=1e-3),
        "fine-tuning": pytest.approx(0.95, abs=1e-3),
    }
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
def test_a_share_of_training_costs_what_a_gaussian_of_that_share_does(share: float) -> None:
    """The central limit theorem by which shares are told is close to the exact price."""
    mu = accounting.gaussian_mu(1.0, 1e-6)
    touch = calibrated([dataclasses.replace(SECOND, share=share), TRAINING]).touches[0]
    exact = accounting.gaussian_mu(accounting.epsilon((touch.mechanism,), 1e-6, COARSE), 1e-6)
    assert exact == pytest.approx(math.sqrt(share) * mu, rel=0.1)


def test_calibration_is_cross_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "rdp_epsilon", lambda *_: 0.5)
    with pytest.raises(InternalError, match="disagree"):
        calibrated([VOTES])


def test_calibration_needs_one_main_touch() -> None:
    with pytest.raises(UserError, match="2 of the requested touches have no share"):
        calibrated([VOTES, TRAINING])
    with pytest.raises(UserError, match="2 of the requested touches have no share"):
        calibrated([dataclasses.replace(SECOND, share=None), TRAINING])
    with pytest.raises(UserError, match="0 of the requested touches have no share"):
        calibrated([CLASSES])
    with pytest.raises(UserError, match="stay below 1"):
        calibrated([dataclasses.replace(CLASSES, share=0.5), dataclasses.replace(MEANS, share=0.5), VOTES])
    for bad in (0.0, -0.1, 1.5, math.nan):
        with pytest.raises(UserError, match="share"):
            calibrated([dataclasses.replace(CLASSES, share=bad), VOTES])


def test_calibration_refuses_what_no_noise_can_meet() -> None:
    greedy = HistogramRequest("classes", cells=1, rounds=1, share=0.95)  # discrete noise this small costs extra
    with pytest.raises(PrivacyRefusal, match="smaller shares"):
        calibrated([greedy, TRAINING], epsilon=7.0, delta=1e-5)


# --- prices -------------------------------------------------------------------------------------------------------


def test_what_was_executed(plan: Plan) -> None:
    attempts = plan.attempts()
    assert attempts == {"classes": 2, "class means": 2, "fine-tuning": 200}
    assert plan.epsilon_of({}) == 0
    assert plan.epsilon_of(attempts) == plan.planned_epsilon
    fewer, more = attempts | {"fine-tuning": 100}, attempts | {"fine-tuning": 300}
    assert 0 < plan.epsilon_of({"classes": 1}) < plan.epsilon_of(fewer) < plan.planned_epsilon < plan.epsilon_of(more)
    for name, count in attempts.items():
        assert plan.epsilon_of({name: count - 1}) < plan.epsilon_of({name: count}) < plan.epsilon_of({name: count + 1})
    assert plan.claimed_epsilon(fewer) == plan.planned_epsilon
    assert plan.claimed_epsilon(more) == plan.epsilon_of(more) > plan.epsilon
    strange: Any
    for strange in ({"votes": 1}, {"classes": -1}, {"classes": 1.0}, {"classes": True}):
        with pytest.raises(InternalError):
            plan.epsilon_of(strange)


def test_a_stated_epsilon_is_rounded_up_but_not_beyond_a_target_that_is_kept() -> None:
    exact = accounting.epsilon(simple().mechanisms, 1e-6)
    assert simple().planned_epsilon == accounting.round_up_epsilon(exact) > exact
    just_kept, just_missed = exact + 1e-7, exact - 1e-7
    assert simple(epsilon=just_kept).planned_epsilon == just_kept
    assert simple(epsilon=just_missed).planned_epsilon == accounting.round_up_epsilon(exact) > just_missed


def test_a_slack_takes_no_part_in_the_price() -> None:
    touch = TrainingTouch("t", 0.1, 10, 2.0, 1.0, 1, slack=0.01)
    assert touch.mechanism == dataclasses.replace(touch, slack=0.0).mechanism == accounting.Training(2.0, 0.1, 10)


def test_renyi_divergences_for_the_ledger(plan: Plan) -> None:
    values = plan.rdp((2.0, 8))
    assert list(values) == ["2.0", "8.0"]
    assert values["8.0"] == accounting.rdp(plan.mechanisms, 8.0) > values["2.0"] > 0


def test_description(plan: Plan) -> None:
    rows = plan.describe()
    assert [(row.name, row.what, row.sampling_rate, row.attempts) for row in rows] == [
        ("classes", "noisy histogram", None, 2),
        ("class means", "noisy sum", None, 2),
        ("fine-tuning", "private training", 0.05, 200),
    ]
    assert [row.noise_multiplier for row in rows] == [touch.noise_multiplier for touch in plan.touches]
    assert {row.name: row.share for row in rows} == plan.shares()
    assert rows[2].share == pytest.approx(0.9, abs=0.002)


# --- storing ------------------------------------------------------------------------------------------------------


def test_a_plan_survives_storage(plan: Plan) -> None:
    text = json.dumps(plan.to_json(), indent=2, allow_nan=False)
    restored = Plan.from_json(json.loads(text))
    assert restored == plan
    assert restored.sha256() == plan.sha256()
    assert restored.planned_epsilon == plan.planned_epsilon


POSITIVE = st.floats(0.11, 9e4)


@settings(max_examples=60)
@given(POSITIVE, POSITIVE, st.floats(1e-9, 1.0), st.floats(0, 0.5), st.integers(1, 10**9), st.floats(1e-12, 0.99))
def test_storage_keeps_every_bit(
    noise: float, norm: float, rate: float, slack: float, count: int, delta: float
) -> None:
    plan = Plan(
        unit="person",
        epsilon=1 / 3,
        delta=delta,
        touches=(
            HistogramTouch("a", count, count, noise),
            SumTouch("b", norm, count, noise),
            TrainingTouch("c", rate, count, noise, norm, count, slack, "flat"),
        ),
        main="c",
        declared_size=None,
    )
    restored = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert restored == plan
    assert restored.sha256() == plan.sha256()


def test_what_is_grouped_is_covered() -> None:
    slack = rounding_slack(1000, 1300)
    assert TrainingTouch("t", 0.1, 10, 2.0, 1.0, 1, slack, grouped=1300).grouped == 1300
    with pytest.raises(UserError, match="does not cover the rounding of 1400"):
        TrainingTouch("t", 0.1, 10, 2.0, 1.0, 1, slack, grouped=1400)
    with pytest.raises(UserError, match="does not cover"):
        TrainingRequest("t", 0.1, 10, 1.0, grouped=1300).at(2.0)


def test_every_field_is_in_the_hash(plan: Plan) -> None:
    seen = {plan.sha256()}
    changes: list[dict[str, Any]] = [
        {"unit": "image"},
        {"epsilon": 1.1},
        {"delta": 2e-6},
        {"declared_size": None},
        {"interval": 1e-4},
        {"main": "classes"},
        {"accountant_version": "0"},
        {"touches": plan.touches[::-1]},
    ]
    for change in changes:
        seen.add(dataclasses.replace(plan, **change).sha256())
    classes, means, training = plan.touches
    assert isinstance(training, TrainingTouch)
    others = {"name": "other", "sampling_rate": 0.5, "clipping": "flat", "grouped": 1}
    for field in dataclasses.fields(TrainingTouch):
        old = getattr(training, field.name)
        new: Any = others.get(field.name) or type(old)(old * 2)
        changed = dataclasses.replace(training, **{field.name: new})
        seen.add(dataclasses.replace(plan, touches=(classes, means, changed), main="classes").sha256())
    assert len(seen) == 1 + 8 + len(dataclasses.fields(TrainingTouch))


def test_equal_plans_have_one_hash() -> None:
    assert simple(epsilon=2).sha256() == simple(epsilon=2.0).sha256()
    assert simple(touches=[histogram(scale=12)]).sha256() == simple().sha256()


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: stored | {"format": "sfumato-plan-0"},
        lambda stored: stored | {"secret": 1},
        lambda stored: {key: value for key, value in stored.items() if key != "delta"},
        lambda stored: stored | {"touches": [{"kind": "peek", "name": "votes"}]},
        lambda stored: stored | {"touches": [stored["touches"][0] | {"scale": -1}]},
        lambda stored: stored | {"touches": [stored["touches"][0] | {"rounds": 9.5}]},
        lambda stored: stored | {"touches": "votes"},
        lambda stored: stored | {"relation": "replace-one"},
        lambda stored: "votes",
    ],
)
def test_a_damaged_plan_is_refused(damage: Any) -> None:
    with pytest.raises(UserError):
        Plan.from_json(damage(simple().to_json()))


# --- validation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0}, "epsilon is 0; it must be a number above 0 and at most 100"),
        ({"epsilon": 1e9}, "epsilon is 1000000000.0; it must be a number above 0 and at most 100"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"delta": 0.0}, "delta is 0.0; it must be a number at least 1e-12"),
        ({"delta": 1e-13}, "delta is 1e-13"),
        ({"delta": 1.0}, "must be below 1"),
        ({"declared_size": 1_000_000}, "not below 1 / 1000000"),
        ({"declared_size": 0}, "declared size"),
        ({"unit": "album"}, "must be image or person"),
    ],
)
def test_budgets_out_of_range(changes: dict[str, Any], message: str) -> None:
    for make in (simple, lambda **changes: calibrated([VOTES], **changes)):
        with pytest.raises(UserError, match=message):
            make(**changes)


def test_a_declared_size_that_delta_suits() -> None:
    assert simple(declared_size=999_999).declared_size == 999_999


@pytest.mark.parametrize("name", ["", " a", "1a", "a/b", "a.b", "ü", "a\n", "a" * 41, None])
def test_names_that_are_no_names(name: Any) -> None:
    with pytest.raises(UserError, match="cannot name a touch"):
        histogram(name)
    with pytest.raises(UserError, match="cannot name a touch"):
        calibrated([dataclasses.replace(VOTES, name=name)])


@pytest.mark.parametrize("names", [("a", "a"), ("a b", "a-b"), ("A", "a"), ()])
def test_names_must_differ(names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="names differ"):
        simple(touches=tuple(histogram(name) for name in names), main="a")


def test_the_main_touch_is_one_of_the_plan() -> None:
    with pytest.raises(UserError, match="'other' is none"):
        simple(main="other")


@pytest.mark.parametrize(
    "make",
    [
        lambda: histogram(scale=math.inf),
        lambda: histogram(cells=0),
        lambda: histogram(rounds=2.5),
        lambda: SumTouch("s", 0.0, 1, 1.0),
        lambda: SumTouch("s", 1.0, 0, 1.0),
        lambda: SumTouch("s", 1.0, 1, math.nan),
        lambda: TrainingTouch("t", 0.0, 10, 1.0, 1.0, 1, 0.0),
        lambda: TrainingTouch("t", 1.1, 10, 1.0, 1.0, 1, 0.0),
        lambda: TrainingTouch("t", 0.1, 10, 1.0, -1.0, 1, 0.0),
        lambda: TrainingTouch("t", 0.1, 10, 1.0, 1.0, 0, 0.0),
        lambda: TrainingTouch("t", 0.1, 10, 1.0, 1.0, 1, -1e-9),
        lambda: TrainingTouch("t", 0.1, 10, 1.0, 1.0, 1, 1.0),
        lambda: TrainingTouch("t", 0.1, 10, 1.0, 1.0, 1, 0.0, "none"),  # type: ignore[arg-type]
    ],
)
def test_touches_refuse_bad_numbers(make: Any) -> None:
    with pytest.raises(UserError):
        make()


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        simple().delta = 0.1  # type: ignore[misc]
