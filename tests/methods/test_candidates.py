"""Candidates: made once, stored in parts, found again by number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.evolution_models import Painter, Thumbnails

from sfumato.methods.candidates import Candidates, Draft, by_class, distinct, public_seed
from sfumato.pretrained.renders import Renders

TEXTS = [f"{size} {colour} disc" for size in ("small", "large") for colour in ("red", "blue", "black")]


def fill(folder: Path, painter: Painter, texts: list[str] = TEXTS, part: int = 4) -> Candidates:
    """Two generations."""
    candidates = Candidates(folder, part)

    def draft(of: list[str], parents: list[int]) -> Draft:
        return Draft(of, np.zeros(len(of), np.int64), np.array(parents))

    def draw(some: Draft, numbers: np.ndarray) -> Renders:
        return painter.try_generate(some.texts, int(numbers[0]))

    def embed(some: Draft, images: np.ndarray | None, numbers: np.ndarray) -> np.ndarray:
        assert images is not None
        return Thumbnails().embed_images(images)

    assert candidates.add(lambda: draft(texts, [-1] * 6), draw, embed).tolist() == list(range(6))
    assert candidates.add(lambda: draft(texts[::-1], [5, 4, 3, 2, 1, 0]), draw, embed).tolist() == list(range(6, 12))
    return candidates


def test_what_was_stored_is_never_made_again(tmp_path: Path) -> None:
    first = Painter()
    whole = fill(tmp_path / "one", first)
    assert first.prompts == TEXTS + TEXTS[::-1]
    stopped = Painter()
    stopped.fail_after = 7
    with pytest.raises(ConnectionError):
        fill(tmp_path / "two", stopped)
    resumed = Painter()
    other = fill(tmp_path / "two", resumed)
    assert resumed.prompts == TEXTS[::-1]  # the first generation was complete
    assert np.array_equal(whole.embeddings, other.embeddings)
    assert np.array_equal(whole.images(range(12)), other.images(range(12)))


def test_captions_are_durable_before_anything_is_drawn(tmp_path: Path) -> None:
    stopped = Painter()
    stopped.fail_after = 0
    with pytest.raises(ConnectionError):
        fill(tmp_path, stopped)
    moody = [f"{text} again" for text in TEXTS]  # what a text model would say the second time
    assert fill(tmp_path, Painter(), moody).texts[:6] == TEXTS


def test_images_come_in_the_order_asked(tmp_path: Path) -> None:
    candidates = fill(tmp_path, Painter())
    every = candidates.images(range(12))
    assert np.array_equal(candidates.images([11, 0, 5, 0]), every[[11, 0, 5, 0]])
    reopened = Candidates(tmp_path, 4, starts=candidates.starts)
    assert np.array_equal(reopened.images([7, 2]), every[[7, 2]])
    assert all(file.stat().st_mode & 0o77 == 0 for file in tmp_path.iterdir())


def test_failed_drawings_and_broken_embeddings_are_marked(tmp_path: Path) -> None:
    candidates = fill(tmp_path, Painter(refuses="blue"))
    assert candidates.made.tolist() == ["blue" not in text for text in candidates.texts]
    assert not candidates.embeddings[~candidates.made].any()


def test_equal_captions_are_found_within_a_class() -> None:
    texts = ["a red disc", "A  red disc", "a disc", "a red disc"]
    assert distinct(texts, np.array([0, 0, 0, 0])).tolist() == [0, 2]
    assert distinct(texts, np.array([0, 1, 0, 0])).tolist() == [0, 1, 2]


def test_seeds_have_purposes() -> None:
    assert public_seed(1, "a") == public_seed(1, "a")
    assert len({public_seed(1, "a"), public_seed(2, "a"), public_seed(1, "b"), public_seed(1, "a", 0)}) == 4


def test_classes_with_their_places() -> None:
    assert [(label, places.tolist()) for label, places in by_class(np.array([1, 0, 1]))] == [(0, [1]), (1, [0, 2])]
