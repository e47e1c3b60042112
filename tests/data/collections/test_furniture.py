from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.archives import deb, pinned, png, zipped

from sfumato.data.collections import furniture
from sfumato.data.collections.furniture import CATALOGUE, ROOT, read_catalogue

PIECES = rb"""# a catalogue
id=Library
name=Not a piece
id#2=x#sofa
name#2=Caf\u00e9 sofa\: large
category#2=Living room
icon#2=/x/sofa.png
tags#2=Blend Swap, Seat,
creator#2=Ann
name#10=Later
icon#10=/x/missing.png
  name#1 = Lamp
icon#1=/x/lamp.png
#name#3=Commented
name#99999999999=too far
"""


def test_catalogues_are_read_by_number() -> None:
    lamp, sofa, later = read_catalogue(PIECES)
    assert lamp == {"name": "Lamp", "icon": "/x/lamp.png"}
    assert (sofa["name"], sofa["category"]) == ("Café sofa: large", "Living room")
    assert later["name"] == "Later"
    assert read_catalogue(bytes(range(256))) == []


def test_icons_become_pictures_with_their_own_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = zipped({CATALOGUE: PIECES, "x/lamp.png": png(1), "x/sofa.png": png(2), "../evil.png": png(3)})
    files = {
        f"{ROOT}BlendSwap-CC-0.sh3f": library,
        f"{ROOT}Scopia.sh3f": zipped({CATALOGUE: PIECES, "x/lamp.png": png(4)}),
    }
    package = deb(files | {furniture.COPYRIGHT: b"CC"})
    monkeypatch.setattr(furniture, "LIBRARIES", pinned(tmp_path / "archives", package, furniture.LIBRARIES))
    out = tmp_path / "out"
    out.mkdir()
    furniture.write(out, tmp_path / "archives", lambda _: None)
    lines = list(map(json.loads, (out / "metadata.jsonl").read_text().splitlines()))
    assert [(line["text"], line["label"], line["licence"]) for line in lines] == [
        ("Lamp", "miscellaneous", "CC0-1.0"),
        ("Café sofa: large", "living-room", "CC0-1.0"),
        ("Lamp", "miscellaneous", "CC-BY-3.0"),
    ]
    assert (lines[1]["author"], lines[1]["tags"]) == ("Ann", ["Blend Swap", "Seat"])
    assert json.loads((out / "SOURCE.json").read_text())["skipped"] == {"unreadable": 3}
    assert {path.name for path in tmp_path.iterdir()} == {"archives", "out"}


def test_a_library_that_is_no_zip_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = deb({f"{ROOT}Scopia.sh3f": b"no zip"})
    monkeypatch.setattr(furniture, "LIBRARIES", pinned(tmp_path / "archives", package, furniture.LIBRARIES))
    with pytest.raises(ValueError, match="zip archive"):
        furniture.write(tmp_path, tmp_path / "archives", lambda _: None)
