"""What a statement says follows from the plan and the ledger, on the safe side."""

from __future__ import annotations

import json

import pytest

from sfumato.privacy import accounting
from sfumato.privacy.plan import HistogramTouch, Plan, SumTouch, TrainingTouch
from sfumato.privacy.statement import NOT_COVERED, PrivacyStatement, _percent_up

PLAN = Plan(
    unit="image",
    epsilon=8.0,
    delta=1e-5,
    touches=(
        HistogramTouch("votes", cells=2, rounds=3, scale=9.0),
        SumTouch("class means", clip_norm=1.0, attempts=2, noise_multiplier=6.0),
        TrainingTouch("training", 0.05, 40, noise_multiplier=1.3, clip_norm=1.0, rows=1, slack=1e-6),
    ),
    main="training",
    declared_size=20_000,
)
EXECUTED = {"votes": 3, "class means": 1, "training": 40}


def statement(**changes: object) -> PrivacyStatement:
    facts = {"plan": PLAN, "executed": EXECUTED, "release_id": "r1", "ledger": ("id", 12, "f" * 64), **changes}
    return PrivacyStatement(**facts)  # type: ignore[arg-type]


def test_the_price_is_of_all_attempts_that_were_bought() -> None:
    bought = accounting.epsilon(PLAN.mechanisms, PLAN.delta)
    assert statement().epsilon >= bought
    assert statement(executed={}).epsilon >= bought
    assert statement().epsilon == statement(executed={}).epsilon


def test_more_than_was_planned_costs_more() -> None:
    more = statement(executed={**EXECUTED, "training": 400})
    assert more.epsilon > statement().epsilon
    assert more.to_json()["epsilon"] == more.epsilon


def test_the_sentences_hold_the_facts() -> None:
    text = statement().render()
    for fact in (f"({statement().epsilon:g}, 1e-05)", "one image", "adding or removing one", "40 steps", "1.3",
                 "3 noisy histogram", "declared as 20000", "floating point", "at most"):  # fmt: skip
        assert fact in text
    assert all(item in text for item in NOT_COVERED)
    assert "all images of one person" in statement(plan=_for_people()).render()


def _for_people() -> Plan:
    return Plan(unit="person", epsilon=8.0, delta=1e-5, touches=PLAN.touches, main="training")


def test_looks_and_other_runs_are_confessed() -> None:
    assert "consulted" not in statement().render()
    assert "Un-noised measurements were consulted" in statement(looks=1).render()
    assert "one of 3 runs" in statement(runs=3, total=(9.0, 3e-5)).render()


def test_test_noise_is_never_dressed_up() -> None:
    fake = statement(not_private=True)
    assert fake.render().startswith("NOT PRIVATE")
    assert "differential" not in fake.render()
    assert fake.to_json()["not_private"] is True


def test_the_attacker_is_not_flattered() -> None:
    power = statement().to_json()["attacker"]["most_recognised"]
    assert 0.05 < power < 1
    stronger = Plan(
        unit="image", epsilon=8.0, delta=1e-5, main="training",
        touches=(TrainingTouch("training", 0.05, 40, 0.7, clip_norm=1.0, rows=1, slack=1e-6),),
    )  # fmt: skip
    assert statement(plan=stronger, executed={}).to_json()["attacker"]["most_recognised"] > power


@pytest.mark.parametrize(("share", "text"), [(0.05, "5 %"), (0.0501, "5.1 %"), (0.31049, "31.1 %"), (1.0, "100 %")])
def test_percentages_are_rounded_up(share: float, text: str) -> None:
    assert _percent_up(share) == text


def test_released_values_are_facts_and_not_sentences() -> None:
    value = statement(released={"public_classes": {"a": [["b", 7]]}}).to_json()
    assert value["released"] == {"public_classes": {"a": [["b", 7]]}}
    assert value["text"] == statement().to_json()["text"]
    assert statement().to_json()["released"] == {}


def test_json_is_complete_and_prices_itself_again() -> None:
    value = json.loads(json.dumps(statement(declared={"classes": ["a"]}, public_inputs=("None.",)).to_json()))
    plan = Plan.from_json(value["plan"])
    assert plan == PLAN
    assert plan.sha256() == value["plan_sha256"]
    assert plan.claimed_epsilon(value["executed"]) == value["epsilon"]
    assert value["unit"] == "image"
    assert value["neighbouring_relation"] == "add-or-remove-one"
    assert value["declared"] == {"size": 20_000, "classes": ["a"]}
    assert value["data_set"]["ledger_line"] == 12
