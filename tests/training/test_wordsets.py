from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
from wordsets import GENERAL, STOP, names, with_general, word_set


def row(title: str, *keywords: str, category: str = "unsorted") -> dict[str, Any]:
    return {"title": title, "keywords": list(keywords), "category": category}


def test_names_are_in_the_singular_and_what_names_nothing_goes_out() -> None:
    assert names(["Apples", "blue square", "love", "animal mammal", "ice cream", "left", "a b c"]) == [
        "apple",
        "ice cream",
    ]
    assert names(["automobile", "car", "kitten"]) == ["car", "cat"]
    assert names(["scissors", "glasses"]) == ["scissors", "glasses"]


def test_what_is_meant_implies_what_is_more_general() -> None:
    assert with_general(["owl"]) == ["owl", "bird", "animal"]
    assert with_general(["apple", "food"]) == ["apple", "food", "fruit"]
    assert with_general(["cloud"]) == ["cloud"]


def test_a_pair_is_called_by_its_title_first() -> None:
    assert word_set(row("owl on branch", "wood"))[:3] == ["owl", "branch", "wood"]
    assert word_set(row("kbear", "computer", category="computer"))[0] == "kbear"
    assert "computer" not in word_set(row("kbear", "computer", category="computer"))
    assert "computer" in word_set(row("laptop", category="computer"))


@pytest.mark.parametrize(
    "word", ["apple", "cat", "car", "tree", "house", "star", "heart", "sun", "moon", "water", "game"]
)
def test_good_words_are_not_stopped(word: str) -> None:
    assert names([word]) == [word]


def test_nothing_general_is_stopped() -> None:
    assert not {general for generals in GENERAL.values() for general in generals} & STOP
