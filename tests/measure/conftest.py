from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.measure.lines import folder_of

from sfumato.measure import recipes


@pytest.fixture(autouse=True)
def _short_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recipes, "LEAST", 5000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on images this small, threads wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def test_folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "test")
