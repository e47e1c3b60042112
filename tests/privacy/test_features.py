"""Features: embedded once, each record on its own; votes by them move one cell by one."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.errors import InternalError, PrivacyRefusal
from sfumato.privacy.features import CHUNK, Features, Voters
from sfumato.privacy.histogram import count_votes
from sfumato.privacy.noise import TestNoise
from sfumato.privacy.plan import HistogramTouch
from sfumato.privacy.records import Rows
from tests.privacy.memory_source import held, picture
from tests.privacy.runs import PICTURES, session

TOUCH = HistogramTouch("votes", cells=1, rounds=3, scale=3.0)


def light(rows: Rows) -> torch.Tensor:
    """Brightness of the eight lines of a picture."""
    return rows.images.float().mean((1, 3))


def brightest(voters: Voters) -> torch.Tensor:
    return (voters.features.argmax(dim=1) + 8 * voters.labels.clamp(min=0))[:, None]


def features(pictures: list[object], folder: Path, unit: str = "image") -> Features:
    records = held(pictures, folder, unit=unit, classes=("a", "b"))  # type: ignore[arg-type]
    return Features(records, "light", light, 8, folder)


@pytest.mark.parametrize("unit", ["image", "person"])
def test_one_record_moves_one_cell_by_one(unit: str, tmp_path: Path) -> None:
    pictures = [picture(n, label="ab"[n % 2], person=f"p{n % 6}", readable=n != 4) for n in range(24)]
    whole = count_votes(features(pictures, tmp_path / "x", unit), TOUCH, 1, brightest, 16)
    records = {p.identity if unit == "image" else p.person for p in pictures}
    assert whole.sum() == len(records) - (unit == "image")
    for gone in records:
        rest = [p for p in pictures if gone not in (p.identity, p.person)]
        moved = whole - count_votes(features(rest, tmp_path / str(gone), unit), TOUCH, 1, brightest, 16)
        assert set(np.unique(moved)) <= {0, 1}
        assert moved.sum() == (0 if gone == pictures[4].identity else 1)


def test_a_record_is_embedded_alike_whoever_is_there(tmp_path: Path) -> None:
    pictures = [picture(n, label="ab"[n % 2], person=f"p{n % 7}") for n in range(40)]
    values = {}
    for name, some in (("all", pictures), ("few", pictures[5:]), ("more", [*pictures, picture(99, "a", "p99")])):
        found = features(some, tmp_path / name, "person")
        values[name] = {
            bytes(found._records._identities[n]): row.tobytes() for n, row in enumerate(np.array(found._values))
        }
    shared = values["all"].keys() & values["few"].keys()
    people_untouched = {f"p{n}" for n in range(7)} - {picture.person for picture in pictures[:5]}
    assert sum(values["all"][name] == values["few"][name] for name in shared) >= len(people_untouched)
    assert all(values["more"][name] == row for name, row in values["all"].items())


def test_chunks_have_one_shape_and_records_are_embedded_once(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def watched(rows: Rows) -> torch.Tensor:
        seen.append(tuple(rows.images.shape))
        return light(rows)

    pictures = [picture(n) for n in range(CHUNK + 3)]
    records = held(pictures, tmp_path)
    first = Features(records, "light", watched, 8, tmp_path)
    assert seen == [(CHUNK, 1, 8, 8)] * 2
    again = Features(records, "light", watched, 8, tmp_path)
    assert len(seen) == 2
    assert np.array_equal(np.array(first._values), np.array(again._values))
    assert (tmp_path / "light.features").stat().st_mode & 0o777 == 0o600
    Features(records, "other", watched, 8, tmp_path)
    assert len(seen) == 4


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, 2 * CHUNK + 5])
def test_progress_does_not_tell_how_many_records_there_are(count: int, tmp_path: Path) -> None:
    told: list[int] = []
    Features(held([picture(n) for n in range(count)], tmp_path), "light", light, 8, tmp_path, told.append)
    assert told == [CHUNK * (n + 1) for n in range(count // CHUNK)]


def test_an_interrupted_embedding_begins_anew(tmp_path: Path) -> None:
    records = held([picture(n) for n in range(CHUNK + 3)], tmp_path)

    def failing(rows: Rows) -> torch.Tensor:
        if failing.calls:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        failing.calls = 1  # type: ignore[attr-defined]
        return light(rows)

    failing.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        Features(records, "light", failing, 8, tmp_path)
    assert not (tmp_path / "light.features").exists()
    whole = Features(records, "light", light, 8, tmp_path)
    assert np.abs(np.array(whole._values)).min() > 0


def test_unreadable_records_abstain_whatever_the_embedder_says(tmp_path: Path) -> None:
    pictures = [picture(n, label="a", readable=n % 3 > 0) for n in range(12)]
    found = features(pictures, tmp_path)
    counts = count_votes(found, TOUCH, 1, lambda voters: torch.zeros(len(voters.present), 1, dtype=torch.int64), 3)
    assert counts.tolist() == [8, 0, 0]


def test_what_is_not_an_embedding_is_refused(tmp_path: Path) -> None:
    records = held([picture(1)], tmp_path)
    for wrong in (lambda rows: light(rows)[:5], lambda rows: light(rows).long(), lambda rows: light(rows)[:, :3]):
        with pytest.raises(InternalError, match="embedding"):
            Features(records, "light", wrong, 8, tmp_path)


def test_features_tell_nothing_and_do_not_travel(tmp_path: Path) -> None:
    found = features([picture(n, "a") for n in range(3)], tmp_path)
    assert repr(found) == "Features()"
    with pytest.raises(PrivacyRefusal):
        pickle.dumps(found)
    with pytest.raises(TypeError):
        len(found)  # type: ignore[arg-type]


def test_a_session_votes_by_features_of_its_own_records_only(tmp_path: Path) -> None:
    begun = session(tmp_path / "run", noise=TestNoise())
    own = begun.features("light", light, 8)
    assert begun.noisy_histogram("votes", brightest, 16, own).sum() == len(PICTURES)
    assert (tmp_path / "run" / "private" / "light.features").exists()
    foreign = features([picture(1, "a")], tmp_path / "foreign")
    with pytest.raises(InternalError, match="other records"):
        begun.noisy_histogram("votes", brightest, 16, foreign)
    assert begun.attempts_made("votes") == 1


def test_how_many_values_are_still_to_be_had(tmp_path: Path) -> None:
    begun = session(tmp_path / "run")
    own = begun.features("light", light, 8)
    for _ in range(2):
        assert begun.more("votes")
        begun.noisy_histogram("votes", brightest, 16, own)
    begun.begin("votes")  # lost: killed before its value was stored
    assert not begun.more("votes")
    resumed = session(tmp_path / "run")
    own = resumed.features("light", light, 8)
    for _ in range(2):
        assert resumed.more("votes")
        resumed.noisy_histogram("votes", brightest, 16, own)
    assert not resumed.more("votes")
    with pytest.raises(PrivacyRefusal):
        resumed.noisy_histogram("votes", brightest, 16, own)
