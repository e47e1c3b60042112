from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tests.archives import png

from sfumato.data.collections._folder import MAX_SIDE, Package, PictureFolder, plain, slug, tidy
from sfumato.data.decode import ImageSpec
from sfumato.data.folder import ImageFolder


def quiet(_: int) -> None:
    pass


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(min((width + 1) * height, 2 * 10**7)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_alpha_is_laid_on_white() -> None:
    pixels = np.array([[[255, 0, 0, 255], [0, 0, 255, 0], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    found = plain(buffer.getvalue())
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found)[0] - [[255, 0, 0], [255, 255, 255], [127, 127, 127]]).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_small_pictures_keep_their_size_and_large_ones_their_form(mode: str) -> None:
    assert plain(png(mode=mode)).size == (12, 9)
    assert plain(png(mode=mode, size=(600, 150))).size == (MAX_SIDE, MAX_SIDE // 4)


def test_palettes_and_their_transparency_are_understood() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    image.save(buffer := io.BytesIO(), "PNG", transparency=0)
    found = plain(buffer.getvalue())
    assert (found.getpixel((0, 0)), found.getpixel((1, 1))) == ((255, 255, 255), (10, 20, 30))


@pytest.mark.parametrize(
    "data", [b"", b"GIF89a", png()[:60], bomb(5000, 5000), bomb(60_000, 60_000), bomb(100, 2**31 - 1), bomb(0, 5)]
)
def test_what_is_no_picture_or_a_bomb_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a picture"):
        plain(data)


def test_other_formats_are_not_even_tried() -> None:
    Image.new("RGB", (4, 4), "red").save(buffer := io.BytesIO(), "TIFF")
    with pytest.raises(ValueError, match="not a picture"):
        plain(buffer.getvalue())


def test_a_set_is_sorted_named_freed_of_repetitions_and_told_about(tmp_path: Path) -> None:
    told: list[int] = []
    pictures = PictureFolder(tmp_path, told.append)
    note = PngImagePlugin.PngInfo()
    note.add_text("Comment", "private")
    Image.new("RGB", (5, 5), "red").save(noted := io.BytesIO(), "PNG", pnginfo=note)
    with_corner = Image.new("RGB", (5, 5), "red")
    with_corner.putpixel((0, 0), (0, 0, 0))
    with_corner.save(noted := io.BytesIO(), "PNG", pnginfo=note)
    pictures.add(png(1), "x: c", "Doors & Windows", "a  door\n", licence="CC0-1.0", tags=["wood", " "])
    pictures.add(noted.getvalue(), "x: a", "people/../etc", None, licence="MIT", author="Ann\u202eEve")
    pictures.add(png(1), "x: d", "other", "the same door", licence="CC0-1.0")
    pictures.add(Image.new("L", (5, 5)), "x: e", "blank", licence="MIT")
    pictures.add(b"junk", "x: f", "junk", licence="MIT")
    pictures.add(None, "x: g", "missing", licence="MIT")
    pictures.add(Image.fromarray(np.arange(9, dtype=np.uint8).reshape(3, 3)), "x: b", "A", folder="up a", licence="MIT")
    package = Package("npm", "x", "1.0", "ab" * 32, "pinned SHA-256", tmp_path / "x.tgz")
    pictures.finish("test", "Do as you like.\n", [package])

    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert files == [
        "LICENSE", "SOURCE.json", "doors-windows/00002.png", "metadata.jsonl", "people-etc/00000.png", "up-a/00001.png",
    ]  # fmt: skip
    first, second, third = lines(tmp_path)
    assert first == {
        "file_name": "people-etc/00000.png", "label": "people-etc", "text": None, "source": "x: a", "licence": "MIT",
        "author": "Ann Eve", "tags": [],
    }  # fmt: skip
    assert (second["label"], second["file_name"]) == ("A", "up-a/00001.png")
    assert (third["text"], third["label"], third["tags"]) == ("a door", "doors-windows", ["wood"])
    with Image.open(tmp_path / "people-etc/00000.png") as image:
        assert (image.info, image.mode, image.getpixel((1, 1))) == ({}, "RGB", (255, 0, 0))
    with Image.open(tmp_path / "up-a/00001.png") as image:
        assert image.mode == "L"
    source = json.loads((tmp_path / "SOURCE.json").read_text())
    assert source["count"] == 3
    assert source["skipped"] == {"blank": 1, "repeated": 1, "unreadable": 2}
    assert source["packages"] == [
        {"kind": "npm", "name": "x", "version": "1.0", "sha256": "ab" * 32, "authenticated": "pinned SHA-256"}
    ]
    assert told == [1, 2, 3, 4]


def test_the_order_of_arrival_changes_nothing(tmp_path: Path) -> None:
    contents = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        folder = tmp_path / str(order[0])
        folder.mkdir()
        pictures = PictureFolder(folder, quiet)
        for number in order:
            pictures.add(png(number // 2), f"source {number}", f"label {number % 2}", licence="MIT")
        pictures.finish("test", "")
        contents.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5


def test_sfumato_reads_what_it_writes(tmp_path: Path) -> None:
    pictures = PictureFolder(tmp_path, quiet)
    for number in range(3):
        pictures.add(png(number), f"s{number}", f"Label {number}", f"caption {number}", licence="MIT", tags=["t"])
    pictures.finish("test", "")
    folder = ImageFolder(tmp_path, workers=0)
    entries = list(folder.entries())
    assert [(entry.label, entry.text) for entry in entries] == [(f"label-{n}", (f"caption {n}",)) for n in range(3)]
    assert folder.findings == {"not_an_image": 2}
    spec = ImageSpec(height=8, width=8, channels=3)
    assert all(one.pixels is not None for one in folder.decode([entry.identity for entry in entries], spec, b"k" * 32))


@pytest.mark.parametrize(
    ("word", "expected"),
    [("Animals & Nature", "animals-nature"), ("../..", "other"), ("é", "other"), ("A" * 99, "a" * 60)],
)
def test_slugs_are_safe_names(word: str, expected: str) -> None:
    assert slug(word) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        (" \n", None),
        ("a\tb\x00c\ud800", "a b c"),
        ("x" * 2000, "x" * 1000),
        ("A “Fuji” apple.", "A “Fuji” apple."),
    ],
)
def test_captions_are_tidied(text: str | None, expected: str | None) -> None:
    assert tidy(text) == expected
