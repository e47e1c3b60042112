"""Touch 2: integer sums that one record moves by at most the grid's radius."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfumato.errors import InternalError
from sfumato.privacy.noise import Noise, TestNoise
from sfumato.privacy.plan import SumTouch
from sfumato.privacy.records import Rows
from sfumato.privacy.sums import GRID, grid_sum, noisy_sum
from tests.privacy.memory_source import held, picture


def touch(clip_norm: float = 1.0) -> SumTouch:
    return SumTouch("sum", clip_norm=clip_norm, attempts=1, noise_multiplier=2.0)


def pixels(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.labels.clamp(min=0), rows.images.flatten(1).float() / 127.5 - 1


@pytest.mark.parametrize("unit", ["image", "person"])
@pytest.mark.parametrize("classes", [None, ("a", "b")])
@pytest.mark.parametrize("clip_norm", [0.5, 100.0])
def test_one_record_moves_the_sum_by_at_most_the_grid(
    unit: str, classes: tuple[str, ...] | None, clip_norm: float, tmp_path: Path
) -> None:
    pictures = [picture(n, label="ab"[n % 2], person=f"p{n % 6}", readable=n != 4) for n in range(24)]

    def total(part: list) -> np.ndarray:  # type: ignore[type-arg]
        return grid_sum(held(part, tmp_path, unit=unit, classes=classes), touch(clip_norm), 1, pixels, (2, 64))  # type: ignore[arg-type]

    whole = total(pictures)
    norms = []
    for gone in {p.identity if unit == "image" else p.person for p in pictures}:
        rest = [p for p in pictures if gone not in (p.identity, p.person)]
        difference = (whole - total(rest)).astype(object)
        norms.append(float(np.sqrt((difference**2).sum())))
        assert norms[-1] <= GRID
    assert max(norms) > (0.999 if clip_norm == 0.5 else 0.03) * GRID


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=6, max_size=6),
    block=st.integers(-2, 4),
)
def test_any_vector_stays_inside_the_ball(values: list[float], block: int, tmp_path: Path) -> None:
    def vectors(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        count = len(rows.present)
        return torch.full((count,), block), torch.tensor(values).expand(count, 6)

    total = grid_sum(held([picture(1)], tmp_path), touch(), 1, vectors, (3, 6)).astype(object)
    assert (total**2).sum() <= GRID**2
    if not np.isfinite(values).all() or not 0 <= block < 3:
        assert not total.any()


def test_a_bad_record_leaves_the_sum_of_the_others(tmp_path: Path) -> None:
    pictures = [picture(n) for n in range(6)]

    def spoil(value: float):  # type: ignore[no-untyped-def]
        def vectors(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
            block, vector = pixels(rows)
            vector[2] = value
            return block, vector

        return vectors

    wanted = grid_sum(held(pictures[:2] + pictures[3:], tmp_path / "a"), touch(), 1, pixels, (1, 64))
    for value in (float("nan"), float("inf"), -float("inf")):
        found = grid_sum(held(pictures, tmp_path / "b"), touch(), 1, spoil(value), (1, 64))
        assert np.array_equal(found, wanted)


def test_wrong_shapes_are_refused(tmp_path: Path) -> None:
    for shape in ((1, 63), (1, 65)):
        with pytest.raises(InternalError):
            grid_sum(held([picture(1)], tmp_path), touch(), 1, pixels, shape)


def test_noise_has_the_planned_scale_in_the_units_of_the_vectors(tmp_path: Path) -> None:
    records = held([picture(1)], tmp_path)

    def nothing(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(rows.present), dtype=torch.int64), torch.zeros(len(rows.present), 4_000)

    noisy = noisy_sum(records, touch(3.0), 1, nothing, (2, 4_000), Noise())
    assert abs(noisy.std() / (2.0 * 3.0) - 1) < 0.05
    assert not noisy_sum(records, touch(3.0), 1, nothing, (2, 4_000), TestNoise()).any()


def test_the_sum_is_the_sum(tmp_path: Path) -> None:
    pictures = [picture(n) for n in range(50)]
    found = noisy_sum(held(pictures, tmp_path), touch(100.0), 1, pixels, (1, 64), TestNoise())
    wanted = sum(p.pixels.astype(float).flatten() / 127.5 - 1 for p in pictures if p.pixels is not None)
    assert np.abs(found[0] - wanted).max() < 50 * 100 / GRID
