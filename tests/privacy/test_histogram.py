"""Touch 1: at most k cells a record, each by exactly 1, whatever the votes are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfumato.errors import InternalError
from sfumato.privacy.histogram import count_votes, noisy_histogram
from sfumato.privacy.noise import Noise, TestNoise
from sfumato.privacy.plan import HistogramTouch
from sfumato.privacy.records import Rows
from tests.privacy.memory_source import held, picture

CELLS = 12


def touch(cells: int = 1, scale: float = 3.0) -> HistogramTouch:
    return HistogramTouch("votes", cells=cells, rounds=2, scale=scale)


def brightest_rows(rows: Rows) -> torch.Tensor:
    """Votes for the two brightest of eight pixel rows; depends on label and on the record's own draws too."""
    light = rows.images.float().sum((1, 3)) + rows.draws.uniform("tie", 8)
    best = light.topk(2, dim=1).indices
    return best + 2 * rows.labels.clamp(min=0)[:, None]


@pytest.mark.parametrize("unit", ["image", "person"])
@pytest.mark.parametrize("classes", [None, ("a", "b")])
def test_one_record_moves_at_most_k_cells_by_one(unit: str, classes: tuple[str, ...] | None, tmp_path: Path) -> None:
    pictures = [picture(n, label="ab"[n % 2], person=f"p{n % 6}", readable=n != 4) for n in range(24)]
    whole = count_votes(held(pictures, tmp_path / "x", unit=unit, classes=classes), touch(2), 1, brightest_rows, CELLS)  # type: ignore[arg-type]
    moved = []
    for gone in {p.identity if unit == "image" else p.person for p in pictures}:
        rest = [p for p in pictures if gone not in (p.identity, p.person)]
        fewer = count_votes(held(rest, tmp_path / "y", unit=unit, classes=classes), touch(2), 1, brightest_rows, CELLS)  # type: ignore[arg-type]
        difference = whole - fewer
        assert set(np.unique(difference)) <= {0, 1}
        assert difference.sum() <= 2
        moved.append(int(difference.sum()))
    assert max(moved) == 2
    assert min(moved) == (0 if unit == "image" else 2)  # the unreadable image, as a record of its own, moves nothing


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ballots=st.lists(st.lists(st.integers(-3, 15), min_size=3, max_size=3), min_size=1, max_size=9))
def test_any_ballot_is_bounded(ballots: list[list[int]], tmp_path: Path) -> None:
    pictures = [picture(n) for n in range(len(ballots))]
    table = torch.tensor(ballots)
    wanted = np.zeros(CELLS, dtype=np.int64)
    for ballot in ballots:
        for cell in {cell for cell in ballot if 0 <= cell < CELLS}:
            wanted[cell] += 1

    def votes(rows: Rows) -> torch.Tensor:
        padded = torch.full((len(rows.present), 3), 5)
        padded[: len(table)] = table
        return padded

    assert np.array_equal(count_votes(held(pictures, tmp_path), touch(3), 1, votes, CELLS), wanted)


@pytest.mark.parametrize(
    "ballot", [torch.zeros(256, 1), torch.zeros(256, 2, dtype=torch.int64), torch.zeros(3, 1, dtype=torch.int64)]
)
def test_anything_but_cell_numbers_is_a_type_error(ballot: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(InternalError):
        count_votes(held([picture(1)], tmp_path), touch(1), 1, lambda rows: ballot, CELLS)


def test_noise_is_added_to_every_cell_at_the_planned_scale(tmp_path: Path) -> None:
    records = held([picture(1)], tmp_path)

    def abstain(rows: Rows) -> torch.Tensor:
        return torch.full((len(rows.present), 1), -1)

    cells = 40_000
    noisy = noisy_histogram(records, touch(1, 3.0), 1, abstain, cells, Noise())
    assert noisy.dtype == np.int64
    assert abs(noisy.std() / 3.0 - 1) < 0.02
    assert abs(noisy[: cells // 2].std() / 3.0 - 1) < 0.03
    assert not np.array_equal(noisy, noisy_histogram(records, touch(1, 3.0), 1, abstain, cells, Noise()))
    assert not noisy_histogram(records, touch(1), 1, abstain, cells, TestNoise()).any()
