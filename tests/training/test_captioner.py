from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))
from captioner import INNER, Pairs, Reduction, Vocabulary, fold_of, learned, ranked, recall, write

from sfumato.pretrained.captioner import SEEN, read

THINGS = 12
STYLES = 8
NAMES = ("owl", "apple", "boat", "house", "guitar", "tulip", "hammer", "pizza", "lemon", "tiger", "violin", "tractor")


def row(name: str, artist: int) -> dict[str, Any]:
    return {"title": name, "keywords": [], "category": "unsorted", "group": f"{name} {artist}", "artist": f"a{artist}"}


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Twelve things, each drawn in eight styles; style differs four times as much as the things do."""
    generator = np.random.default_rng(0)
    seen = generator.normal(0, 0.05, (THINGS, STYLES, SEEN)).astype(np.float32)
    seen[:, :, :20] += generator.normal(0, 1, (THINGS, 1, 20))
    seen[:, :, 20:40] += generator.normal(0, 4, (THINGS, STYLES, 20))
    rows = [row(name, artist) for name in NAMES for artist in range(STYLES)]
    return Pairs(rows, seen.reshape(-1, SEEN))


@pytest.fixture(scope="module")
def reduction() -> Reduction:
    return Reduction(np.zeros(SEEN, np.float32), np.eye(SEEN, INNER, dtype=np.float32))


def held_out(pairs: Pairs) -> NDArray[np.bool_]:
    return np.array([row["artist"] == "a0" for row in pairs.rows])


def test_style_counts_less_where_titles_tell_it_apart(pairs: Pairs, reduction: Reduction) -> None:
    titles = [row["title"] for row in pairs.rows]
    steadied = reduction.across_styles(pairs.seen, titles)
    x = pairs.seen @ steadied.basis
    means = x.reshape(THINGS, STYLES, INNER).mean(1)
    before = pairs.seen.reshape(THINGS, STYLES, SEEN)
    within = (x.reshape(THINGS, STYLES, INNER) - means[:, None]).var() / means.var()
    assert within < 0.1 * (before - before.mean(1, keepdims=True)).var() / before.mean(1).var()
    assert x.std() == pytest.approx(1, rel=0.01)
    assert np.array_equal(reduction.across_styles(pairs.seen, titles).basis, steadied.basis)
    assert steadied.shift is reduction.shift


def test_it_learns_the_words_that_people_gave_and_knows_them_in_another_style(
    pairs: Pairs, reduction: Reduction, tmp_path: Path
) -> None:
    vocabulary = Vocabulary.of(pairs.rows)
    assert {"owl", "bird", "animal"} <= set(vocabulary.words)
    assert vocabulary.own.sum() == len(pairs.rows) < vocabulary.said.sum()
    asked = held_out(pairs)
    heads = learned(reduction, pairs, vocabulary, ~asked)
    assert len(heads.memory) == (~asked).sum()
    assert torch.equal(heads.remembered, torch.from_numpy(vocabulary.own[~asked])), "nothing that is merely implied"
    ranks = ranked(heads, pairs.seen[asked])
    first, five = recall(ranks, vocabulary.own[asked])
    assert first > 0.9
    assert five >= first
    write(heads, vocabulary.words, tmp_path / "captioner.safetensors")
    words, again = read(tmp_path / "captioner.safetensors")
    assert words == vocabulary.words
    assert np.array_equal(ranked(again, pairs.seen[asked])[:, 0], ranks[:, 0])


def test_pictures_without_an_own_word_are_neither_learned_from_nor_asked(pairs: Pairs, reduction: Reduction) -> None:
    vocabulary = Vocabulary.of(pairs.rows)
    vocabulary.own[:STYLES] = 0
    assert len(learned(reduction, pairs, vocabulary).memory) == len(pairs.rows) - STYLES
    own = np.array([[1, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    ranks = np.array([[0, 1], [0, 1], [0, 1], [0, 1]])
    assert recall(ranks, own) == pytest.approx((1 / 3, 2 / 3))


def test_an_artist_is_in_one_part_and_the_large_hands_are_apart() -> None:
    assert len({fold_of({"artist": artist}) for artist in ("Noto", "Fluent", "Fxemoji")}) == 3
    parts = {fold_of({"artist": f"somebody {number}"}) for number in range(50)}
    assert parts == set(range(5))
