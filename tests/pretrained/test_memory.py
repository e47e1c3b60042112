"""The memory of drawings: what a text is about, and which drawings fit it best."""

from __future__ import annotations

import numpy as np
import pytest

from sfumato.pretrained._memory import STYLES, Drawings, Index, asked, head, plainness, subject, words_of

TITLES = ["sailboat", "motor boat", "diagram of a boat", "heart", "heart", "boat race cup", "cat", "sketch of cat"]
COLOURS = [None, "white", None, "red", "green", "yellow", "orange", None]


def index() -> Index:
    drawings = Drawings(
        titles=TITLES,
        keywords=[["sailing", "sea"], ["sea"], ["boat"], ["love"], ["love"], ["sport"], ["pet"], ["pet"]],
        categories=["travel", "travel", "signs-and-symbols", "objects", "objects", "objects", "animals", "animals"],
        colours=COLOURS,
        styles=[1, 1, 0, 1, 1, 1, 1, 0],
        saturation=[0.6, 0.5, 0.0, 0.9, 0.8, 0.7, 0.7, 0.05],
    )
    vectors = np.eye(len(TITLES), 16, dtype=np.float32)  # no title is near to any other in meaning
    return Index(drawings, vectors, vectors)


def best(text: str, meaning: int | None = None) -> list[str]:
    wish, colour = asked(text)
    vector = np.zeros(16, np.float32)
    vector[15 if meaning is None else meaning] = 1
    order = np.argsort(-index().rank(wish, vector, colour), kind="stable")
    return [f"{COLOURS[row] or ''} {TITLES[row]}".strip() for row in order]


@pytest.mark.parametrize(
    ("text", "about", "colour"),
    [
        ("a red apple", "apple", "red"),
        ("A cartoon cat.", "cat", None),
        ("a drawing of a small blue car", "car", "blue"),
        ("an orange", "orange", "orange"),
        ("the sun", "sun", None),
        ("a cup of coffee", "cup of coffee", None),
        ("some gray clouds", "clouds", "grey"),
    ],
)
def test_a_text_is_about_its_thing_and_its_colour(text: str, about: str, colour: str | None) -> None:
    assert asked(text) == (about, colour)
    assert subject(text) == about


def test_heads_and_words() -> None:
    assert [head(text) for text in ("cup of coffee", "birthday cake", "man with a hat", "red boxes")] == [
        "cup",
        "cake",
        "man",
        "box",
    ]
    assert words_of("a house with two windows") == {"house", "two", "window"}


def test_compounds_count_and_parts_do_not_win() -> None:
    order = best("a sailing boat")
    assert order[0] == "sailboat"
    assert order.index("white motor boat") < order.index("yellow boat race cup")
    assert order.index("white motor boat") < order.index("diagram of a boat")


def test_the_wished_colour_comes_first_but_another_thing_never() -> None:
    assert best("a green heart")[:2] == ["green heart", "red heart"]
    assert best("a red heart")[:2] == ["red heart", "green heart"]
    assert best("a red cat")[0] == "orange cat"


def test_meaning_decides_where_no_word_agrees() -> None:
    assert best("a kitten", meaning=TITLES.index("cat"))[0] == "orange cat"


def test_line_art_and_signs_are_not_plain() -> None:
    drawings = index().drawings
    assert plainness(drawings, 0) == 0
    assert plainness(drawings, 2) < -0.2
    assert plainness(drawings, 7) < 0
    assert len(STYLES) == 6
