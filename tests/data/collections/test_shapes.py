from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sfumato.data.collections import shapes
from sfumato.data.collections.shapes import COLOURS, SHAPES, SIDE, draw


def plane() -> tuple[np.ndarray, np.ndarray]:
    y, x = (np.mgrid[:400, :400] + 0.5) / 200 - 1
    return 1.2 * x, 1.2 * y


# Areas from geometry: regular n-gon of circumradius 1, n/2 sin(2 pi / n); star {n}, n r sin(pi / n).
AREAS = {
    "circle": np.pi,
    "ellipse": np.pi / 1.8,
    "ring": np.pi * (1 - 0.36),
    "half circle": np.pi / 2,
    "triangle": 1.5 * np.sin(2 * np.pi / 3),
    "square": 2.56,
    "rectangle": 1.9,
    "diamond": 1.4,
    "pentagon": 2.5 * np.sin(2 * np.pi / 5),
    "hexagon": 3 * np.sin(np.pi / 3),
    "star": 5 * 0.4 * np.sin(np.pi / 5),
    "six-pointed star": 6 * 0.577 * np.sin(np.pi / 6),
    "cross": 2 * 1.9 * 0.6 - 0.36,
    "stripes": 1.62,
    "dots": 9 * np.pi * 0.04,
    "checkerboard": 1.62,
}


@pytest.mark.parametrize("shape", AREAS)
def test_shapes_have_their_area(shape: str) -> None:
    x, y = plane()
    assert SHAPES[shape](x, y).mean() * 2.4**2 == pytest.approx(AREAS[shape], rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fit_the_frame_and_differ(shape: str) -> None:
    x, y = plane()
    inside = SHAPES[shape](x, y)
    assert not inside[np.hypot(x, y) > 1.3].any()
    assert 0.1 < inside.mean() < 0.6
    for other in SHAPES:
        if other != shape:
            assert (SHAPES[other](x, y) != inside).mean() > 0.02, other


@pytest.mark.parametrize("shape", SHAPES)
def test_captions_say_what_is_seen(shape: str) -> None:
    for seed in range(6):
        picture, text = draw(shape, np.random.default_rng(seed))
        again, _ = draw(shape, np.random.default_rng(seed))
        assert picture.tobytes() == again.tobytes()
        assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")
        words, ground = text.removesuffix(" background").split(" on a ")
        assert shape in words
        named = [COLOURS[next(word for word in part.split() if word in COLOURS)] for part in (words, ground)]
        pixels = np.asarray(picture, int).reshape(-1, 1, 3)
        nearest = np.abs(pixels - np.array(named)).sum(-1).argmin(1)
        spread = [np.abs(pixels[nearest == side, 0].mean(0) - named[side]).max() for side in (0, 1)]
        assert (nearest == 0).mean() > 0.02
        assert max(spread) < 80


def test_the_set_has_every_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "COUNT", 2)
    shapes.write(tmp_path, tmp_path, lambda _: None)
    lines = list(map(json.loads, (tmp_path / "metadata.jsonl").read_text().splitlines()))
    assert len(lines) == 2 * len(SHAPES) == 40
    assert {line["label"] for line in lines} == {shape.replace(" ", "-") for shape in SHAPES}
    assert shapes.COLLECTION.images == 500 * len(SHAPES)
