"""The public pair set: captions are cleaned, pictures are framed, repetitions go, colours are what a person says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sfumato.pretrained._colours import COLOURS, HUES, colour_of, colours_in, recoloured, without_colours

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))

import captions  # noqa: E402
import pairs  # noqa: E402

RGB = {
    "red": (220, 30, 30),
    "orange": (250, 140, 20),
    "yellow": (250, 215, 40),
    "green": (40, 160, 60),
    "turquoise": (40, 200, 200),
    "blue": (40, 80, 220),
    "purple": (130, 50, 180),
    "pink": (250, 150, 190),
    "brown": (130, 80, 40),
    "black": (15, 15, 15),
    "grey": (130, 130, 130),
}


def disc(colour: tuple[int, int, int], outline: tuple[int, int, int] | None = None) -> np.ndarray[Any, Any]:
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).ellipse((8, 8, 56, 56), fill=colour, outline=outline, width=3)
    return np.asarray(picture)


@pytest.mark.parametrize(
    ("title", "author", "clean"),
    [
        ("RoundPointShovel", "Benji Park", "round point shovel"),
        ("watermelon_simple", "Someone Else", "watermelon simple"),
        ("Gatto Nero", "Architetto Francesco Rollandin", "black cat"),
        ("Tigre04", "Architetto Francesco Rollandin", "tiger"),
        ("Libro di ricette", "Architetto Francesco Rollandin", "libro di ricette"),
        ("mobile phone", "Noto", "mobile phone"),
        ("Gelato all&#39;italiana", None, "gelato all'italiana"),
        ("Apple Icon by (me@example.org)", None, "apple"),
        ("12", None, ""),
    ],
)
def test_titles_say_what_is_drawn(title: str, author: str | None, clean: str) -> None:
    assert captions.clean_title(title, author) == clean


def test_keywords_lose_their_dirt() -> None:
    given = ["hash", "lemon_theme_icon", "Fruit", "fruit", "part of the flat icon collection", "clipart by nicu", "x"]
    assert captions.clean_keywords([*given, "mapsym", "red apple"]) == ["fruit", "red apple"]
    assert captions.clean_keywords(["park", "tree"], "Benji Park") == ["tree"]


def test_compounds_come_apart_into_common_words() -> None:
    costs = {"birthday": 2.0, "cake": 2.0, "birth": 3.0, "day": 2.5, "ca": 3.0, "ke": 3.0}
    assert captions.segmented("birthdaycake", costs) == "birthday cake"
    assert captions.segmented("zzz", costs) == ""


def test_a_drawing_is_cropped_and_centred() -> None:
    picture = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(picture).rectangle((150, 20, 169, 59), fill="red")
    framed = pairs.square(picture)
    assert framed is not None
    assert framed.shape == (64, 64, 3)
    rows, columns = (np.flatnonzero((framed < 200).any((2, axis))) for axis in (1, 0))
    assert rows[0] <= 4
    assert rows[-1] >= 59
    assert abs(columns[0] + columns[-1] - 63) <= 2
    assert len(columns) == pytest.approx(len(rows) / 2, abs=2)


def test_thin_and_empty_drawings_are_refused() -> None:
    thin = Image.new("RGB", (200, 100), "white")
    ImageDraw.Draw(thin).rectangle((0, 50, 199, 60), fill="red")
    assert pairs.square(thin) is None
    assert pairs.square(Image.new("RGB", (50, 50), "white")) is None


def test_repetitions_go_and_the_first_stays(tmp_path: Path) -> None:
    shades = [(220, 30, 30), (221, 31, 30), (30, 30, 220)]
    given = [
        pairs.Pair(f"disc {i}", ["circle"], "shapes", "me", "openclipart", "me: discs", image=disc(shade))
        for i, shade in enumerate(shades)
    ]
    kept = pairs.distinct(given)
    assert [pair.title for pair in kept] == ["disc 0", "disc 2"]
    pairs.write(kept, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert rows[1]["keywords"] == ["circle"]
    assert set(rows[0]) == {"title", "keywords", "category", "artist", "source", "group", "colour"}
    assert (np.load(tmp_path / "pairs.npz")["images"][1] == disc(shades[2])).all()


def test_emoji_of_all_sets_meet_in_their_code_points() -> None:
    assert pairs._code("0023-fe0f-20e3") == pairs._code("23-20e3")
    assert pairs._squashed("birthday-cake") == pairs._squashed("Birthday Cake")


@pytest.mark.parametrize("name", RGB)
def test_colours_have_their_everyday_names(name: str) -> None:
    assert colour_of(disc(RGB[name])[None]) == [name]
    assert colour_of(disc(RGB[name], (0, 0, 0))[None]) == [name]


def test_pictures_of_many_colours_and_of_none_have_no_colour() -> None:
    half = disc(RGB["red"]).copy()
    half[:, 32:] = disc(RGB["blue"])[:, 32:]
    assert colour_of(np.stack((half, np.full_like(half, 255)))) == [None, None]


def test_colour_words_come_and_go() -> None:
    assert colours_in("a violet cat on a gray mat, violet") == ["purple", "grey"]
    assert without_colours("a blue apple") == "a apple"
    assert without_colours("an orange") == "an orange"
    assert colours_in("a redneck in Greenland") == []


@pytest.mark.parametrize("name", [*HUES, "brown", "black"])
def test_a_drawing_takes_another_colour_and_keeps_the_rest(name: str) -> None:
    given = disc(RGB["blue" if name in ("red", "orange") else "red"]).copy()
    given[28:36, 28:36] = RGB["green" if name != "green" else "purple"]
    painted = recoloured(given, name)
    assert painted is not None
    assert colour_of(painted[None]) == [name]
    assert (painted[30, 30] == given[30, 30]).all()
    assert (painted[0, 0] == 255).all()
    assert name in COLOURS


def test_line_art_is_filled_in() -> None:
    painted = recoloured(disc((255, 255, 255), (0, 0, 0)), "pink")
    assert painted is not None
    assert colour_of(painted[None]) == ["pink"]
    assert (painted[0, 0] == 255).all()
    assert recoloured(np.full((64, 64, 3), 255, np.uint8), "pink") is None
