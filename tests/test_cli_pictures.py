"""`sfumato draw` and `sfumato caption`, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from typer.testing import CliRunner, Result

from sfumato.cli import app
from sfumato.errors import UserError
from sfumato.pretrained import zoo
from tests.pretrained.conftest import HOME


def typed(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False, standalone_mode=False)


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_HOME", str(HOME))
    zoo.pull(zoo.named(["captioner", "clipart", "realesrgan-x4plus-anime"]))


@pytest.fixture
def heart(tmp_path: Path) -> Path:
    picture = Image.new("RGB", (200, 120), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((60, 14, 104, 58), "#e01020")
    draw.ellipse((96, 14, 140, 58), "#e01020")
    draw.polygon([(63, 48), (137, 48), (100, 96)], "#e01020")
    picture.save(tmp_path / "heart.png")
    return tmp_path / "heart.png"


@pytest.mark.usefixtures("pulled")
def test_caption(heart: Path) -> None:
    alone = typed("caption", heart).stdout
    assert alone.startswith("a red heart")
    assert typed("caption", heart, heart).stdout == f"{heart}: {alone}" * 2
    (row,) = json.loads(typed("caption", heart, "--json").stdout)
    assert (row["file"], row["colour"], row["words"][0]) == (str(heart), "red", "heart")
    assert row["caption"] == alone.strip()


@pytest.mark.usefixtures("pulled")
def test_draw(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    said = typed("draw", "a green heart", "a star", "-o", sheet, "--each", 3, "--seed", 4, "--fast").stdout
    assert said == f"6 drawings in {sheet}.\n"
    first = np.asarray(Image.open(sheet))
    assert first.shape[0] > 2 * 128
    assert first.shape[1] > 3 * 128
    typed("draw", "a green heart", "a star", "-o", sheet, "--each", 3, "--seed", 4, "--fast")
    assert np.array_equal(np.asarray(Image.open(sheet)), first), "the same seed gives the same drawings"

    one = tmp_path / "one.png"
    facts = json.loads(typed("draw", "a green heart", "-o", one, "--each", 1, "--upscale", 4, "--json").stdout)
    assert Image.open(one).size == (256, 256), "one drawing is a picture, not a sheet"
    assert facts["model"]["name"] == "clipart"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("draw", "a cat", "-o", "cat.jpg"), "not a PNG file"),
        (("draw", "a cat", "-o", "none/cat.png"), "none is not a folder"),
        (("draw", "a cat", " "), "says nothing to draw"),
        (("draw", "a cat", "--upscale", 3), "--upscale 3 is not possible; give 4"),
        (("caption", "none.png"), "none.png is no image that can be read: not a file"),
        (("caption", __file__), "is no image that can be read: unknown format"),
    ],
)
def test_mistakes_are_one_sentence(words: tuple[object, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        typed(*words)


def test_without_the_models_it_says_what_to_pull(heart: Path) -> None:
    with pytest.raises(UserError, match="run: sfumato models pull efficientnet-lite0"):
        typed("caption", heart)


@pytest.mark.parametrize("command", ["draw", "caption"])
def test_help_has_an_example(command: str) -> None:
    assert f"sfumato {command}" in typed(command, "--help").stdout
