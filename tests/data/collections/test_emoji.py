from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tests.archives import png, sha256, tgz

from sfumato.data.collections import emoji
from sfumato.data.collections.emoji import Emoji, datasource_table, openmoji_table

WAVE = {
    "name": "WAVING HAND SIGN",
    "image": "1f44b.png",
    "category": "People & Body",
    "subcategory": "hand-fingers-open",
    "short_names": ["wave", "high_five"],
    "skin_variations": {
        "1F3FB": {"image": "w1.png"},
        "1F3FB-1F3FF": {"image": "w2.png"},
        "1F3FD-1F3FD": {"image": "w3.png"},
    },
}
FACE = {
    "hexcode": "1F600",
    "group": "smileys-emotion",
    "subgroups": "face-smiling",
    "annotation": "grinning face",
    "tags": "face, grin",
    "openmoji_tags": "smile, face",
    "openmoji_author": "Emily",
}
SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><circle cx="36" cy="36" r="23" fill="#FCEA2B"/></svg>'
)


def test_notos_table_names_skin_tones() -> None:
    table = datasource_table(json.dumps([WAVE, {"name": "odd"}, 5]).encode())
    tags = ["hand fingers open", "wave", "high five"]
    assert table["1f44b.png"] == Emoji("waving hand sign", "People & Body", tags)
    assert table["w1.png"].text == "waving hand sign, light skin tone"
    assert table["w2.png"].text == "waving hand sign, light skin tone and dark skin tone"
    assert table["w3.png"].text == "waving hand sign, medium skin tone"
    assert len(table) == 4


def test_openmojis_table_joins_its_tags() -> None:
    tags = ["face smiling", "face", "grin", "smile"]
    assert openmoji_table(json.dumps([FACE]).encode()) == {
        "1F600.svg": Emoji("grinning face", "smileys-emotion", tags, "Emily")
    }


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff"])
def test_tables_that_cannot_be_read_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="table of emoji"):
        datasource_table(data)


def write(kind: str, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    package = tgz(files)
    name = {"NOTO": "emoji-datasource-google-16.0.0.tgz", "OPENMOJI": "openmoji-17.0.0.tgz"}[kind]
    (tmp_path / name).write_bytes(package)
    monkeypatch.setattr(emoji, f"{kind}_SHA256", sha256(package))
    out = tmp_path / "out"
    out.mkdir()
    getattr(emoji, kind).write(out, tmp_path, lambda _: None)
    return list(map(json.loads, (out / "metadata.jsonl").read_text().splitlines()))


def test_noto_pictures_are_matched_to_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "package/emoji.json": json.dumps([WAVE]).encode(),
        "package/LICENSE": b"MIT",
        "package/img/google/64/1f44b.png": png(1),
        "package/img/google/64/unknown.png": png(2),
        "package/img/google/sheets/64.png": png(3),
    }
    (line,) = write("NOTO", files, tmp_path, monkeypatch)
    assert (line["text"], line["label"], line["licence"]) == ("waving hand sign", "people-body", "Apache-2.0")
    assert json.loads((tmp_path / "out" / "SOURCE.json").read_text())["skipped"] == {"undescribed": 1}
    licence = (tmp_path / "out" / "LICENSE").read_text()
    assert "Apache License 2.0" in licence
    assert licence.endswith("MIT")


def test_openmoji_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "package/data/openmoji.json": json.dumps([FACE, FACE | {"hexcode": "BAD"}]).encode(),
        "package/LICENSE.txt": b"CC BY-SA",
        "package/color/svg/1F600.svg": SVG,
        "package/color/svg/BAD.svg": SVG.replace(b"<circle", b'<image href="/x.png"/><circle'),
        "package/black/svg/1F600.svg": SVG,
    }
    (line,) = write("OPENMOJI", files, tmp_path, monkeypatch)
    assert (line["text"], line["label"], line["author"]) == ("grinning face", "smileys-emotion", "Emily")
    with Image.open(tmp_path / "out" / line["file_name"]) as image:
        assert (image.size, image.getpixel((64, 64)), image.getpixel((2, 2))) == (
            (128, 128),
            (0xFC, 0xEA, 0x2B),
            (255, 255, 255),
        )
    assert json.loads((tmp_path / "out" / "SOURCE.json").read_text())["skipped"] == {"unreadable": 1}
