"""The round: one vote a record, in its own class; failed candidates are nobody's; noisy votes alone choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evolution_models import Namer, Thumbnails, Words, paint
from tests.privacy.memory_source import held, picture

from sfumato.errors import UserError
from sfumato.methods.candidates import Candidates
from sfumato.methods.evolution import Round, Scores, best, by_caption, by_image, fitted, nearest_votes
from sfumato.privacy.draws import Draws
from sfumato.privacy.features import Features, Voters
from sfumato.privacy.histogram import count_votes
from sfumato.privacy.plan import HistogramTouch
from sfumato.privacy.records import Rows

TOUCH = HistogramTouch("votes", cells=1, rounds=3, scale=3.0)
PICTURES = [picture(n, label="ab"[n % 2], person=f"p{n % 9}", readable=n != 5) for n in range(30)]


def embedded(
    pictures: list, folder: Path, unit: str = "image", classes: tuple[str, ...] | None = ("a", "b")
) -> Features:
    records = held(pictures, folder, unit=unit, classes=classes)  # type: ignore[arg-type]
    return Features(records, "thumbnails", by_image(Thumbnails()), 48, folder)


def candidates(count: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.random((count, 48), dtype=np.float32), np.arange(count) % 2, np.ones(count, bool)


def test_a_record_votes_once_over_all_classes(tmp_path: Path) -> None:
    embeddings, labels, made = candidates()
    counts = count_votes(embedded(PICTURES, tmp_path), TOUCH, 1, nearest_votes(embeddings, labels, made), 20)
    assert counts.sum() == 29
    assert counts[labels == 0].sum() == 15  # class a only
    assert counts[labels == 1].sum() == 14


@pytest.mark.parametrize("unit", ["image", "person"])
@pytest.mark.parametrize("conditional", [True, False])
def test_a_neighbour_moves_one_cell_by_one(unit: str, conditional: bool, tmp_path: Path) -> None:
    embeddings, labels, made = candidates()
    votes = nearest_votes(embeddings, labels if conditional else 0 * labels, made)
    classes = ("a", "b") if conditional else None
    whole = count_votes(embedded(PICTURES, tmp_path / "all", unit, classes), TOUCH, 1, votes, 20)
    for gone in {p.identity if unit == "image" else p.person for p in PICTURES}:
        rest = [p for p in PICTURES if gone not in (p.identity, p.person)]
        moved = whole - count_votes(embedded(rest, tmp_path / str(gone), unit, classes), TOUCH, 1, votes, 20)
        assert set(np.unique(moved)) <= {0, 1}
        assert moved.sum() == (0 if gone == PICTURES[5].identity else 1)


def test_labels_that_are_not_declared_do_not_vote(tmp_path: Path) -> None:
    embeddings, labels, made = candidates()
    strangers = [picture(n, label="c") for n in range(50, 54)]
    found = embedded([*PICTURES, *strangers], tmp_path)
    assert count_votes(found, TOUCH, 1, nearest_votes(embeddings, labels, made), 20).sum() == 29


def test_what_could_not_be_drawn_is_nobodys_nearest(tmp_path: Path) -> None:
    embeddings, labels, made = candidates()
    found = embedded(PICTURES, tmp_path)
    before = count_votes(found, TOUCH, 1, nearest_votes(embeddings, labels, made), 20)
    favourite = int(before.argmax())
    made[favourite] = False
    after = count_votes(found, TOUCH, 1, nearest_votes(embeddings, labels, made), 20)
    assert after[favourite] == 0
    assert after.sum() == before.sum()


def test_a_class_without_candidates_abstains() -> None:
    embeddings, labels, made = candidates()
    ballot = nearest_votes(embeddings[labels == 1], labels[labels == 1], made[labels == 1])
    voters = Voters(torch.rand(6, 48), torch.tensor([0, 1, -1, 0, 1, 1]), torch.tensor([True] * 5 + [False]))
    votes = ballot(voters)
    assert votes.dtype == torch.int64
    assert votes[:, 0].tolist()[0] == votes[:, 0].tolist()[2] == votes[:, 0].tolist()[5] == -1
    assert votes[1, 0] >= 0


def pool(folder: Path, made: list[bool], labels: list[int]) -> Candidates:
    found = Candidates(folder)
    found.texts = [str(n) for n in range(len(made))]
    found.labels, found.made = np.array(labels), np.array(made)
    return found


def test_the_best_are_chosen_by_noisy_votes_of_all_cells(tmp_path: Path) -> None:
    cells, votes = np.arange(6), np.array([3.0, -2.0, 9.0, 9.0, 0.0, 50.0])
    found = pool(tmp_path, [True] * 5 + [False], [0] * 6)
    assert best(votes, cells, found, 1, 3).tolist() == [2, 3, 0]  # ties by place, the failed one never
    assert best(votes, cells, found, 1, 9).tolist() == [2, 3, 0, 4, 1]
    halves = pool(tmp_path, [True] * 6, [0, 0, 0, 1, 1, 1])
    assert sorted(best(votes, cells, halves, 2, 2).tolist()) == [2, 5]
    with pytest.raises(UserError, match="draw"):
        best(votes, cells, pool(tmp_path, [True, True, True, False, False, False], [0, 0, 0, 1, 1, 1]), 2, 2)


def test_votes_of_all_rounds_count() -> None:
    draw = np.random.default_rng(0)
    true = np.concatenate((np.full(10, 60.0), np.full(40, 20.0)))
    wins = {True: 0, False: 0}
    for combine in wins:
        for _ in range(60):
            scores = Scores(25.0, combine)
            for round_ in range(5):
                cells = np.concatenate((np.arange(10), 10 + 40 * round_ + np.arange(40)))
                estimate = scores.take(Round(cells, np.rint(true + draw.normal(0, 25, 50)).astype(np.int64)))
            wins[combine] += int((np.argsort(-estimate)[:10] < 10).sum())
    assert wins[True] > 1.1 * wins[False]
    single = Scores(25.0, True).take(Round(np.arange(50), np.arange(50)))
    assert (np.argsort(single) == np.arange(50)).all()  # one round: the order of the votes


def test_images_are_brought_to_the_shape_of_the_records() -> None:
    images = np.stack([paint("large red disc"), paint("small blue bars")])
    assert fitted(images, (3, 16, 16)) is not images
    assert np.array_equal(fitted(images, (3, 16, 16)), images)
    assert fitted(images, (1, 8, 12)).shape == (2, 1, 8, 12)
    assert fitted(np.full((1, 3, 64, 64), 77, np.uint8), (1, 28, 28)).tolist() == [[[[77] * 28] * 28]]


def test_captions_of_records_are_compared_as_captions() -> None:
    images = np.stack([paint("large red disc"), paint("small blue bars")])
    rows = Rows(torch.from_numpy(images), torch.zeros(2), torch.ones(2, dtype=torch.bool), Draws(b"", "", 0, []))
    found = by_caption(Namer(), Words())(rows)
    assert [Words.words[int(row.argmax())] for row in found] == ["red", "blue"]


def test_records_that_a_model_refuses_abstain(tmp_path: Path) -> None:
    class Shy(Namer):
        def caption(self, images: np.ndarray) -> list[str]:
            return ["" if image.mean() > 127 else "red" for image in images]

    records = held(PICTURES, tmp_path, classes=None)
    found = Features(records, "words", by_caption(Shy(), Words()), Words.dimensions, tmp_path)
    bright = sum(p.pixels is not None and p.pixels.mean() > 127 for p in PICTURES)
    votes = nearest_votes(Words().embed_texts(["red", "blue"]), np.zeros(2, np.int64), np.ones(2, bool))
    assert 0 < bright < 29
    assert count_votes(found, TOUCH, 1, votes, 2).tolist() == [29 - bright, 0]
