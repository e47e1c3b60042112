"""Presets: what is given wins, groups are filled one by one, and nothing that was given is changed."""

from __future__ import annotations

from sfumato.methods.presets import filled

PRESETS = {"small": {}, "large": {"steps": 100, "sampler": {"steps": 50, "churn": 1.0}}}


def test_what_is_given_wins() -> None:
    given = {"preset": "large", "steps": 7, "sampler": {"churn": 0.0}}
    assert filled(PRESETS, given, "small") == {
        "preset": "large",
        "steps": 7,
        "sampler": {"steps": 50, "churn": 0.0},
    }
    assert given == {"preset": "large", "steps": 7, "sampler": {"churn": 0.0}}
    assert PRESETS["large"]["sampler"] == {"steps": 50, "churn": 1.0}


def test_the_default_is_for_settings_that_name_none() -> None:
    assert filled(PRESETS, {"steps": 1}, "small") == {"steps": 1}
    assert filled(PRESETS, {}, "large")["steps"] == 100


def test_what_names_no_preset_is_left_to_validation() -> None:
    assert filled(PRESETS, {"preset": "huge"}, "small") == {"preset": "huge"}
    assert filled(PRESETS, ["no", "settings"], "small") == ["no", "settings"]
