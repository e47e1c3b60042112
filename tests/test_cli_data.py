from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from sfumato.cli_data import data_app
from sfumato.data import datasets
from sfumato.data.collections import shapes
from sfumato.errors import UserError


def typed(*words: object) -> str:
    result = CliRunner().invoke(data_app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_list_says_licence_size_and_count() -> None:
    text = typed("list")
    for one in datasets.COLLECTIONS.values():
        assert one.name in text
        assert one.licence in text
        assert f"{one.images:,} images" in text
    assert "156 MB" in text
    table = json.loads(typed("list", "--json"))
    assert [row["name"] for row in table] == list(datasets.NAMES)
    assert all(set(row) == {"name", "description", "licence", "images", "download"} for row in table)


def test_a_set_is_fetched_and_its_licence_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "COUNT", 1)
    text = typed("fetch", "shapes", tmp_path / "out")
    assert f"shapes is in {tmp_path / 'out'}. Licence: CC0-1.0" in text
    assert len(list((tmp_path / "out").glob("*/*.png"))) == 20
    with Image.open(next((tmp_path / "out").glob("*/*.png"))) as image:
        assert image.size == (64, 64)
    facts = json.loads(typed("fetch", "shapes", tmp_path / "again", "--json"))
    assert (facts["name"], facts["licence"], facts["count"]) == ("shapes", "CC0-1.0", 20)


def test_an_unknown_name_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data set called 'cifar'"):
        typed("fetch", "cifar", tmp_path / "out")
