"""Folders that would mix private and public files."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato._folders import check_folders
from sfumato.errors import UserError
from tests.small_set import draw_folder


@pytest.mark.parametrize(
    ("release", "folder", "sentence"),
    [
        ("private/out", "x.run", "inside the private folder"),
        ("private", "x.run", "inside the private folder"),
        ("out", "private/run", "inside the private folder"),
        (".", "x.run", "lies inside the release folder"),
        ("full", "x.run", "already exists"),
        ("out", "full", "already exists"),
        ("out", "out/run", "must not lie inside the release"),
    ],
)
def test_folders_that_would_mix(release: str, folder: str, sentence: str, tmp_path: Path) -> None:
    private = draw_folder(tmp_path / "private", 3)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(UserError, match=sentence):
        check_folders(private, tmp_path / release, tmp_path / folder)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        check_folders(tmp_path / "none", tmp_path / "out", tmp_path / "run")
