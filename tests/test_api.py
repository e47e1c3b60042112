"""The Python interface, as its users type it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import sfumato as sf
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.privacy.ledger import Ledger
from tests.small_set import CLASSES, SMALL, draw_folder


def images(tmp_path: Path, **changes: object) -> sf.PrivateImages:
    folder = draw_folder(tmp_path / "private")
    facts = {"dataset": "api", "public_size": 90, "classes": CLASSES, "size": (16, 16)} | changes
    return sf.PrivateImages(folder, **facts)  # type: ignore[arg-type]


def method(**changes: object) -> sf.PrivImage:
    return sf.PrivImage(**({"epsilon": 8.0, "delta": 1e-5, "count": 12} | SMALL | changes))  # type: ignore[arg-type]


def test_the_whole_way(tmp_path: Path) -> None:
    private = images(tmp_path)
    assert method().forecast(private).plan.planned_epsilon <= 8
    assert not Ledger.open("api").entries()
    model = method().fit(private, tmp_path / "run")
    assert "differential privacy" in model.statement
    samples = model.sample(6, seed=3)
    out = sf.release(samples, tmp_path / "release")
    assert len(list(out.rglob("*.png"))) == 6
    again = sf.load(tmp_path / "run").sample(6, seed=3)
    assert np.array_equal(again.pixels, samples.pixels)
    noted = [entry for entry in Ledger.open("api").entries() if entry["kind"] == "release"]
    assert [entry["release"] for entry in noted] == [json.loads((out / "privacy.json").read_text())["release_id"]]


def test_minutes_choose_the_steps(tmp_path: Path) -> None:
    private = images(tmp_path)
    fast, slow = (method(minutes=minutes).forecast(private) for minutes in (0.2, 1.0))
    assert fast.plan.attempts()["fine-tuning"] < slow.plan.attempts()["fine-tuning"]
    assert slow.training_minutes < 1.0


def test_bare_images_are_not_released(tmp_path: Path) -> None:
    with pytest.raises(PrivacyRefusal, match="carry no guarantee"):
        sf.release(np.zeros((2, 1, 8, 8), np.uint8), tmp_path / "release")  # type: ignore[arg-type]


def test_classes_are_declared_in_one_way(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not both"):
        images(tmp_path, classes_are_public=True)
    assert images(tmp_path, classes=None, classes_are_public=True).settings()["classes"] == list(CLASSES)


def test_a_repr_tells_nothing(tmp_path: Path) -> None:
    assert repr(images(tmp_path)) == "PrivateImages(dataset='api')"
