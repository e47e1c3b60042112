"""Written ahead, durable before use, never drawn twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.errors import InternalError, PrivacyRefusal
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.noise import TestNoise
from sfumato.privacy.plan import HistogramTouch, SumTouch
from sfumato.privacy.records import Rows
from tests.privacy import runs


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, and nothing after it runs."""


def first_row(rows: Rows) -> torch.Tensor:
    return rows.labels.clamp(min=0)[:, None]


def picture_sum(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros_like(rows.labels), rows.images.flatten(1).float() / 255 / 8


def kinds(folder: Path) -> list[str]:
    return [str(entry["kind"]) for entry in Ledger.open("test", folder / "ledger.jsonl").entries()]


def test_a_round_per_call_and_no_call_beyond_the_plan(tmp_path: Path) -> None:
    session = runs.session(tmp_path)
    values = [session.noisy_histogram("votes", first_row, 5) for _ in range(3)]
    assert len({value.tobytes() for value in values}) == 3
    with pytest.raises(PrivacyRefusal):
        session.noisy_histogram("votes", first_row, 5)
    assert kinds(tmp_path)[-6:] == ["intent", "done"] * 3


def test_a_resumed_run_sees_the_same_values_and_draws_no_new_ones(tmp_path: Path) -> None:
    session = runs.session(tmp_path)
    votes = [session.noisy_histogram("votes", first_row, 5) for _ in range(2)]
    total = session.noisy_sum("sum", picture_sum, (1, 64))
    lines = len(kinds(tmp_path))
    again = runs.session(tmp_path)
    assert np.array_equal(again.noisy_sum("sum", picture_sum, (1, 64)), total)
    assert [again.noisy_histogram("votes", first_row, 5).tolist() for _ in range(2)] == [v.tolist() for v in votes]
    assert len(kinds(tmp_path)) == lines
    again.noisy_histogram("votes", first_row, 5)
    assert len(kinds(tmp_path)) == lines + 2


def test_the_intent_is_on_disk_before_a_record_is_read(tmp_path: Path) -> None:
    def watching(rows: Rows) -> torch.Tensor:
        assert kinds(tmp_path)[-1] == "intent"
        return first_row(rows)

    runs.session(tmp_path).noisy_histogram("votes", watching, 5)


def test_an_attempt_lost_in_the_touch_is_used_up(tmp_path: Path) -> None:
    def dies(rows: Rows) -> torch.Tensor:
        raise Killed

    with pytest.raises(Killed):
        runs.session(tmp_path).noisy_histogram("votes", dies, 5)
    resumed = runs.session(tmp_path)
    for _ in range(2):
        resumed.noisy_histogram("votes", first_row, 5)
    with pytest.raises(PrivacyRefusal):
        resumed.noisy_histogram("votes", first_row, 5)


def test_a_spare_attempt_replaces_a_lost_sum_once(tmp_path: Path) -> None:
    def dies(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        raise Killed

    with pytest.raises(Killed):
        runs.session(tmp_path).noisy_sum("sum", dies, (1, 64))
    with pytest.raises(Killed):
        runs.session(tmp_path).noisy_sum("sum", dies, (1, 64))
    with pytest.raises(PrivacyRefusal):
        runs.session(tmp_path).noisy_sum("sum", picture_sum, (1, 64))


def test_a_value_that_reached_its_file_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "done", dies)
        with pytest.raises(Killed):
            runs.session(tmp_path).noisy_sum("sum", picture_sum, (1, 64))
    value = np.load(tmp_path / "touches" / "sum.1", allow_pickle=False)
    assert kinds(tmp_path)[-1] == "intent"
    assert np.array_equal(runs.session(tmp_path).noisy_sum("sum", picture_sum, (1, 64)), value)
    assert kinds(tmp_path)[-1] == "done"


def test_values_that_were_changed_or_removed_are_refused(tmp_path: Path) -> None:
    runs.session(tmp_path).noisy_sum("sum", picture_sum, (1, 64))
    file = tmp_path / "touches" / "sum.1"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(PrivacyRefusal, match="changed"):
        runs.session(tmp_path).noisy_sum("sum", picture_sum, (1, 64))
    file.unlink()
    with pytest.raises(PrivacyRefusal, match="missing"):
        runs.session(tmp_path).noisy_sum("sum", picture_sum, (1, 64))


def test_only_planned_touches_of_the_planned_kind(tmp_path: Path) -> None:
    session = runs.session(tmp_path)
    with pytest.raises(InternalError):
        session.noisy_histogram("never planned", first_row, 5)
    with pytest.raises(InternalError):
        session.touch("votes", SumTouch)
    assert isinstance(session.touch("votes", HistogramTouch), HistogramTouch)


def test_records_of_another_unit_are_refused(tmp_path: Path) -> None:
    session = runs.session(tmp_path)
    with pytest.raises(InternalError, match="unit"):
        type(session)(session.records, runs.plan(unit="person"), session._ledger, "run", tmp_path, session.noise)


def test_a_charged_run_takes_no_test_noise_and_a_marked_one_no_real_noise(tmp_path: Path) -> None:
    runs.session(tmp_path / "real")
    with pytest.raises(PrivacyRefusal, match="entered as private"):
        runs.session(tmp_path / "real", noise=TestNoise())
    runs.session(tmp_path / "test", noise=TestNoise())
    with pytest.raises(PrivacyRefusal, match="NOT PRIVATE"):
        runs.session(tmp_path / "test")


def test_a_plan_that_was_changed_is_refused(tmp_path: Path) -> None:
    runs.session(tmp_path)
    quieter = [*runs.TOUCHES[:2], dataclasses.replace(runs.TOUCHES[2], noise_multiplier=1.0)]
    with pytest.raises(PrivacyRefusal, match="not the one that its ledger admitted"):
        runs.session(tmp_path, touches=quieter)


def test_values_are_private_files(tmp_path: Path) -> None:
    runs.session(tmp_path).noisy_sum("sum", picture_sum, (1, 64))
    assert (tmp_path / "touches").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "touches" / "sum.1").stat().st_mode & 0o777 == 0o600
