from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.archives import deb, pinned, png

from sfumato.data.collections import tuxpaint
from sfumato.data.collections.tuxpaint import ROOT, caption, limit

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="30pt" height="15pt"><circle cx="9" cy="5" r="5"/></svg>'


def test_captions_are_first_lines() -> None:
    assert caption("A “Fuji” apple.\nde.utf8=Ein Apfel.\n".encode()) == "A “Fuji” apple."
    assert caption(b"de.utf8=Ein Apfel.") == ""
    assert caption(b"") == ""
    assert caption(b"\xff\xfe") != ""


def test_sounds_are_not_read() -> None:
    assert limit(f"{ROOT}animals/frog_desc_de.ogg") == 0
    assert limit("usr/share/other/frog.png") == 0
    assert limit(f"{ROOT}animals/frog.png") > 10**6


def test_stamps_with_captions_become_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "animals/amphibians/frog.png": png(1),
        "animals/amphibians/frog.svg": SVG,
        "animals/amphibians/frog.txt": b"A frog.\nde.utf8=Ein Frosch.",
        "symbols/dot.svg": SVG,
        "symbols/dot.txt": b"A dot.",
        "symbols/evil.svg": SVG.replace(b"<circle", b'<image href="/etc/passwd"/><circle'),
        "symbols/evil.txt": b"Evil.",
        "symbols/mute.png": png(2),
        "symbols/unseen.txt": b"Unseen.",
    }
    package = deb({ROOT + name: data for name, data in files.items()} | {tuxpaint.COPYRIGHT: b"GPL"})
    monkeypatch.setattr(tuxpaint, "STAMPS", pinned(tmp_path / "archives", package, tuxpaint.STAMPS))
    out = tmp_path / "out"
    out.mkdir()
    tuxpaint.write(out, tmp_path / "archives", lambda _: None)
    frog, dot = map(json.loads, (out / "metadata.jsonl").read_text().splitlines())
    assert (frog["text"], frog["label"], frog["tags"]) == ("A frog.", "animals", ["amphibians"])
    assert frog["source"].endswith("frog.png")
    assert (dot["text"], dot["label"]) == ("A dot.", "symbols")
    with Image.open(out / dot["file_name"]) as image:
        assert image.size == (256, 128)
    skipped = json.loads((out / "SOURCE.json").read_text())["skipped"]
    assert skipped == {"unreadable": 1, "without caption": 1, "without picture": 1}
    assert (out / "LICENSE").read_text() == "GPL"
