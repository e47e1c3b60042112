"""Class shares within a run: bought by a touch that the plan prices, or declared; they decide the released labels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from tests.small_set import CLASSES, SMALL, draw_folder, plan_of, settings

from sfumato import run
from sfumato.config import validated
from sfumato.errors import UserError
from sfumato.methods.shares import CLASS_SHARES


def labels_of_release(out: Path) -> Counter[str]:
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    return Counter(str(row["label"]) for row in rows)


def finished(private: Path, tmp_path: Path, **changes: object) -> tuple[run.Run, Path]:
    config = validated(settings(count=100, privimage=SMALL | {"steps": 2}, **changes))
    begun = run.prepare(config, private, tmp_path / "out", tmp_path / "out.run", plan_of(config))
    out = run.finish(begun)
    assert out is not None
    return begun, out


def test_bought_shares_follow_the_records(tmp_path: Path) -> None:
    private = draw_folder(tmp_path / "private", 90)
    for number in range(300):  # bars: 330 of 390 records
        Image.new("L", (16, 16), 20).save(private / "bars" / f"more-{number}.png")
    begun, out = finished(private, tmp_path, class_shares="bought", public_size=390)
    statement = json.loads((out / "privacy.json").read_text())
    assert statement["executed"][CLASS_SHARES] == 1
    assert statement["declared"]["class_shares"] == "bought"
    bought = json.loads((begun.folder / "class-shares.json").read_text())
    assert bought["noisy_counts"] != [330, 30, 30]
    assert bought["shares"][0] == pytest.approx(330 / 390, abs=0.12)  # five standard deviations of the noise
    released = labels_of_release(out)
    assert released["bars"] == pytest.approx(100 * bought["shares"][0], abs=1)
    again = run.draw(begun, run.load_model(begun), 40, 5)
    assert again.labels is not None
    assert (again.labels == CLASSES.index("bars")).sum() == pytest.approx(40 * bought["shares"][0], abs=1)


def test_declared_shares(tmp_path: Path) -> None:
    private = draw_folder(tmp_path / "private")
    begun, out = finished(private, tmp_path, class_shares=[0.6, 0.3, 0.1])
    assert labels_of_release(out) == {"bars": 60, "disc": 30, "ring": 10}
    assert CLASS_SHARES not in begun.plan.attempts()
    assert not (begun.folder / "class-shares.json").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"class_shares": [0.5, 0.5]}, "must be 3 numbers"),
        ({"class_shares": [0.5, 0.6, -0.1]}, "none negative"),
        ({"class_shares": [0.5, 0.3, 0.3]}, "add up to 1"),
        ({"class_shares": "bought", "classes": None, "classes_origin": None}, "needs classes"),
        ({"class_shares": "bought", "method": "spti"}, "Votes decide"),
    ],
)
def test_shares_that_cannot_be(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        validated(settings(**changes))
