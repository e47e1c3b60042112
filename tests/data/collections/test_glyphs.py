from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont
from tests.archives import deb, pinned

from sfumato.data.collections import glyphs
from sfumato.data.collections.glyphs import CHARACTERS, FONTS, describe, draw_font, read_fonts


@pytest.fixture(scope="module")
def font() -> bytes:
    """The font that Pillow carries."""
    return ImageFont.load_default(20).font_bytes


def test_characters_differ_and_fill_the_frame(font: bytes) -> None:
    drawn = list(draw_font(font, "Aileron"))
    assert [character for character, _, _ in drawn] == [one for one in CHARACTERS for _ in range(3)]
    upright = {character: np.asarray(picture) for character, variation, picture in drawn if variation == 0}
    assert len({pixels.tobytes() for pixels in upright.values()}) >= 60  # I and l may be one
    for character, pixels in upright.items():
        rows, columns = np.nonzero(pixels > 60)
        assert pixels.shape == (28, 28)
        assert rows.max() - rows.min() > 8, character
        assert 8 < (rows.max() + rows.min()) / 2 < 20
        assert 10 < (columns.max() + columns.min()) / 2 < 18
        assert pixels[0].max() == pixels[:, 0].max() == 0  # light on dark


def test_distortions_are_moderate_and_repeatable(font: bytes) -> None:
    first, again = (list(draw_font(font, "Aileron")) for _ in range(2))
    other = list(draw_font(font, "Another"))
    assert all(a[2].tobytes() == b[2].tobytes() for a, b in zip(first, again, strict=True))
    assert sum(a[2].tobytes() != b[2].tobytes() for a, b in zip(first, other, strict=True)) == 2 * len(CHARACTERS)
    pictures = {(character, variation): np.asarray(picture, float) for character, variation, picture in first}
    for character in "AKgR57":
        plain = pictures[character, 0]
        for variation in (1, 2):
            changed = pictures[character, variation]
            assert np.abs(changed - plain).mean() > 3
            assert 0.6 < changed.sum() / plain.sum() < 1.5
            assert np.corrcoef(changed.ravel(), plain.ravel())[0, 1] > 0.15


def test_a_broken_font_is_one_picture_that_cannot_be_had() -> None:
    assert list(draw_font(b"no font", "x")) == [("0", 0, None)]


def test_characters_that_a_font_lacks_are_not_drawn(font: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "CHARACTERS", "A\u4e2d")
    drawn = [(character, picture is None) for character, _, picture in draw_font(font, "Aileron")]
    assert drawn == [("A", False)] * 3 + [("\u4e2d", True)]


def test_folders_do_not_depend_on_case() -> None:
    assert len({describe(character).lower() for character in CHARACTERS}) == 62


def test_fonts_come_out_of_packages(tmp_path: Path) -> None:
    files = {
        "usr/share/fonts/truetype/b.ttf": b"B", "usr/share/fonts/opentype/A.OTF": b"A", "usr/share/fonts/x.pfb": b"X",
        "usr/share/doc/fonts-x/copyright": b"OFL", "usr/lib/evil.ttf": b"E",
    }  # fmt: skip
    (tmp_path / "x.deb").write_bytes(deb(files))
    assert read_fonts(tmp_path / "x.deb") == ([("A", b"A"), ("b", b"B")], "OFL")


def test_the_set_is_labelled_by_character(tmp_path: Path, font: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    package = deb({"usr/share/fonts/Aileron.otf": font, "usr/share/doc/fonts-x/copyright": b"OFL"})
    monkeypatch.setattr(glyphs, "FONTS", (pinned(tmp_path / "archives", package, FONTS[0]),))
    out = tmp_path / "out"
    out.mkdir()
    glyphs.write(out, tmp_path / "archives", lambda _: None)
    lines = list(map(json.loads, (out / "metadata.jsonl").read_text().splitlines()))
    assert {line["label"] for line in lines} == set(CHARACTERS)
    folders = {line["label"]: line["file_name"].split("/")[0] for line in lines}
    assert (folders["7"], folders["A"], folders["a"]) == ("digit-7", "upper-a", "lower-a")
    texts = {line["text"] for line in lines}
    assert {"the digit 7 in the font Aileron", "the uppercase letter A in the font Aileron"} <= texts
    assert "OFL" in (out / "LICENSE").read_text()
