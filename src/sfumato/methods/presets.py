"""Presets: values for whatever a user does not set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def filled(presets: Mapping[str, Mapping[str, Any]], given: Any, default: str) -> Any:
    """What is given, and the chosen preset's value for what is not; groups of settings one by one.

    Args:
        presets: by name.
        given: settings as a user wrote them, the preset's name among them under "preset"; anything that is no mapping,
            or names no preset, is returned as it is, for validation to refuse.
        default: preset of settings that name none.
    """
    preset = presets.get(given.get("preset", default)) if isinstance(given, dict) else None
    if preset is None:
        return given
    merged = dict(preset) | given
    for name, values in preset.items():
        if isinstance(values, dict) and isinstance(given.get(name), dict):
            merged[name] = values | given[name]
    return merged
