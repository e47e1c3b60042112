"""The stand-in for a private collection: poses that stay in the frame, and subjects in the stated shares."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.collections import drawings
from sfumato.data.collections._folder import PictureFolder
from sfumato.data.collections.drawings import SHARES, posed


def test_poses_differ_and_stay_in_the_frame() -> None:
    disc = Image.new("RGB", (128, 128), "white")
    disc.paste("red", (40, 40, 88, 88))
    draw = np.random.default_rng(0)
    found = [np.asarray(posed(disc, draw)) for _ in range(20)]
    assert {picture.shape for picture in found} == {(64, 64, 3)}
    assert len({picture.tobytes() for picture in found}) == 20
    red = [((picture[..., 0] > 200) & (picture[..., 1] < 60)).mean() for picture in found]
    assert 0.05 < min(red) < max(red) < 0.16  # the square is a seventh of the picture, at most


def test_subjects_have_their_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(place: Path, archives: Path, progress: object) -> None:
        pictures, draw = PictureFolder(place, lambda _: None), np.random.default_rng(0)
        for label in (*SHARES, "flags"):
            for number in range(3):
                picture = Image.fromarray(draw.integers(0, 256, (90, 70, 3), dtype=np.uint8))
                pictures.add(picture, f"{label} {number}", label, f"a {label}", licence="CC0-1.0")
        pictures.finish("twemoji", "licence of emoji")

    monkeypatch.setattr(drawings.emoji, "write_twemoji", write)
    monkeypatch.setattr(drawings, "COUNT", 600)
    out = tmp_path / "out"
    out.mkdir()
    drawings.write(out, tmp_path / "archives", lambda _: None)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == 600
    shares = {label: count / 600 for label, count in Counter(line["label"] for line in lines).items()}
    assert shares == pytest.approx(SHARES, abs=0.06)
    assert (out / "LICENSE").read_text() == "licence of emoji"
    assert not list((tmp_path / "archives").iterdir())
