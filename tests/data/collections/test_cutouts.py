from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.archives import deb, pinned

from sfumato.data.collections import cutouts, openclipart
from sfumato.data.collections.cutouts import SIDE, SURFACES, cut_out, surfaces


def encoded(image: Image.Image) -> bytes:
    image.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


Box = tuple[int, int, int, int]


def drawing(*ellipses: Box, ground: Box = (0, 0, 0, 0), hollow: bool = False) -> bytes:
    """Red ellipses on a ground of 200 x 160, transparent unless said."""
    image = Image.new("RGBA", (200, 160), ground)
    for box in ellipses:
        ImageDraw.Draw(image).ellipse(box, None if hollow else "red", "red", 4)
    return encoded(image)


def test_a_thing_is_cut_out_along_its_outline() -> None:
    thing = cut_out(drawing((20, 20, 180, 100)))
    assert thing is not None
    assert thing.size == pytest.approx((128 * 161 / 200, 128 * 81 / 200), abs=2)
    pixels = np.asarray(thing)
    assert (pixels[..., 3] > 0).mean() == pytest.approx(np.pi / 4, abs=0.03)
    assert pixels[pixels.shape[0] // 2, pixels.shape[1] // 2].tolist() == [255, 0, 0, 255]


def test_a_ground_without_transparency_is_found_too() -> None:
    thing = cut_out(drawing((20, 20, 180, 100), ground=(255, 255, 255, 255)))
    known = cut_out(drawing((20, 20, 180, 100)))
    assert thing is not None
    assert known is not None
    assert thing.size == pytest.approx(known.size, abs=2)


def test_line_drawings_are_filled_with_white() -> None:
    thing = cut_out(drawing((20, 20, 180, 100), hollow=True))
    assert thing is not None
    assert np.asarray(thing)[thing.height // 2, thing.width // 2].tolist() == [255, 255, 255, 255]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        drawing((20, 20, 180, 100))[:60],
        drawing(),
        drawing((10, 10, 80, 80), (110, 10, 180, 80)),  # two things
        drawing((20, 20, 180, 22)),  # a line
        encoded(Image.new("RGB", (90, 90), "blue")),
    ],
)
def test_what_is_not_one_thing_is_left_out(data: bytes) -> None:
    assert cut_out(data) is None


def test_each_surface_stands_alone_on_black() -> None:
    thing = cut_out(drawing((20, 20, 180, 100)))
    assert thing is not None
    drawn = dict(surfaces(thing, "red/ellipse"))
    assert tuple(drawn) == SURFACES
    for picture in drawn.values():
        pixels = np.asarray(picture)
        assert pixels.shape == (SIDE, SIDE, 3)
        assert not pixels[[0, 0, -1, -1], [0, -1, 0, -1]].any()  # the corners
        wide = pixels.any(axis=2).any(axis=0).sum()
        assert 0.78 * SIDE <= wide <= SIDE
    middle = {name: np.asarray(picture)[SIDE // 2, SIDE // 2].tolist() for name, picture in drawn.items()}
    assert (middle["own colours"], middle["negative"]) == ([255, 0, 0], [0, 255, 255])
    again = dict(surfaces(thing, "red/ellipse"))
    assert all(again[name].tobytes() == picture.tobytes() for name, picture in drawn.items())
    other = dict(surfaces(thing, "another name"))
    assert other["fabric 1"].tobytes() != drawn["fabric 1"].tobytes()


def test_the_set_is_five_pictures_a_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = "usr/share/openclipart"
    pictures = {
        f"{root}/png/animals/birds/red_egg.png": drawing((20, 20, 180, 100)),
        f"{root}/png/animals/empty.png": drawing(),
        f"{root}/svg/animals/birds/red_egg.svg": b"<svg/>",
        "usr/share/doc/openclipart-png/copyright": b"Public domain.",
    }
    archives = tmp_path / "archives"
    monkeypatch.setattr(openclipart, "PNG", pinned(archives, deb(pictures), openclipart.PNG))
    out = tmp_path / "out"
    out.mkdir()
    cutouts.write(out, archives, lambda _: None)
    lines = [json.loads(line) for line in (out / "metadata.jsonl").open()]
    assert [line["source"].rpartition(", ")[2] for line in lines] == sorted(SURFACES)
    assert {(line["label"], line["text"]) for line in lines} == {("animals", "red egg")}
    facts = json.loads((out / "SOURCE.json").read_text())
    assert (facts["count"], facts["skipped"]) == (5, {"not one thing with an outline": 1})
