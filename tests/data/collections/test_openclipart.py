from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.archives import deb, pinned, png

from sfumato.data.collections import openclipart
from sfumato.data.collections.openclipart import Description, caption, describe

RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:dc="http://purl.org/dc/elements/1.1/"'


def svg(title: str = "2 dead frogs", space: str = "http://web.resource.org/cc/", before: str = "") -> bytes:
    keywords = "".join(f"<rdf:li>{word}</rdf:li>" for word in ("frog", "swamp ", "", "hash"))
    return f"""<?xml version="1.0"?>{before}<svg xmlns="http://www.w3.org/2000/svg"><metadata>
        <rdf:RDF {RDF} xmlns:cc="{space}"><cc:Work><dc:title>{title}</dc:title>
        <dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
        <dc:publisher><cc:Agent><dc:title>Publisher</dc:title></cc:Agent></dc:publisher>
        <dc:creator><cc:Agent><dc:title>Lumen Design Studio</dc:title></cc:Agent></dc:creator>
        </cc:Work></rdf:RDF></metadata></svg>""".encode()


@pytest.mark.parametrize("space", ["http://web.resource.org/cc/", "http://creativecommons.org/ns#"])
def test_drawings_describe_themselves(space: str) -> None:
    assert describe(svg(space=space)) == Description("2 dead frogs", ["frog", "swamp", "hash"], "Lumen Design Studio")


@pytest.mark.parametrize(
    "data", [b"", b"<svg/>", svg("&lol;", before='<!DOCTYPE svg [<!ENTITY lol "lol">]>'), b"<svg" * 10_000]
)
def test_what_cannot_be_read_describes_nothing(data: bytes) -> None:
    assert describe(data) == Description()


@pytest.mark.parametrize(
    ("stem", "title", "author", "drawings", "expected"),
    [
        ("animals/x_lumen_desig_01", "2 dead frogs", "Lumen Design Studio", 1, "2 dead frogs"),
        ("animals/2_dead_frogs_lumen_desig_01", "Lemon theme", "Lumen Design Studio", 9, "2 dead frogs"),
        ("food/lemonade", "Clipart by Nicu Buculei - baloon1_04", "Nicu Buculei", 1, "lemonade"),
        ("recreation/baloon1_04", None, "Nicu Buculei", 7000, "baloon"),
        ("signs/aiga_coffee_shop_", "AIGA", "Jean-Victor Balin", 99, "aiga coffee shop"),
        ("icons/007", "Lemon theme", None, 99, "Lemon theme"),
        ("icons/007", None, None, 99, ""),
    ],
)
def test_captions_are_titles_or_words_of_file_names(
    stem: str, title: str | None, author: str | None, drawings: int, expected: str
) -> None:
    assert caption(stem, Description(title, [], author), drawings) == expected


def test_pictures_find_their_twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = "usr/share/openclipart"
    pictures = {
        f"{root}/png/animals/birds/bat.png": png(1),
        f"{root}/png/signs_and_symbols/stop.png": png(2),
        f"{root}/png/animals/torn.png": png(3)[:50],
        f"{root}/png/../../etc/passwd.png": png(4),
        f"{root}/other/x.png": png(5),
        "usr/share/doc/openclipart-png/copyright": b"Public domain.",
    }
    drawings = {f"{root}/svg/animals/birds/bat.svg": svg("A bat"), f"{root}/svg/animals/torn.svg": svg("Torn")}
    archives = tmp_path / "archives"
    monkeypatch.setattr(openclipart, "PNG", pinned(archives, deb(pictures), openclipart.PNG))
    monkeypatch.setattr(openclipart, "SVG", pinned(archives, deb(drawings), openclipart.SVG))
    out = tmp_path / "out"
    out.mkdir()
    openclipart.write(out, archives, lambda _: None)
    lines = {line["source"].split(": ")[1]: line for line in map(json.loads, (out / "metadata.jsonl").open())}
    assert set(lines) == {"animals/birds/bat.png", "signs_and_symbols/stop.png", "../../etc/passwd.png"}
    bat = lines["animals/birds/bat.png"]
    assert (bat["label"], bat["text"], bat["tags"]) == ("animals", "A bat", ["birds", "frog", "swamp"])
    assert (lines["signs_and_symbols/stop.png"]["label"], lines["signs_and_symbols/stop.png"]["text"]) == (
        "signs-and-symbols",
        "stop",
    )
    assert lines["../../etc/passwd.png"]["file_name"] == "other/00000.png"
    assert (out / "LICENSE").read_text() == "Public domain."
    assert json.loads((out / "SOURCE.json").read_text())["skipped"] == {"unreadable": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"archives", "out"}
