"""The public pairs that Sfumato's offline models learn from: 64 x 64 drawings with clean titles and keywords.

    python training/pairs.py OUT [--data FOLDER] [--archives FOLDER]

Everything comes through package registries, is public domain or under a permissive licence, and was published before
any private image was seen: Open Clip Art (Debian), Noto emoji, old Noto emoji, Fluent emoji in two styles and Firefox
emoji (npm); names and keywords of emoji from emojilib. Collections under share-alike licences (OpenMoji, Tux Paint) and
Twitter's emoji are left out on purpose: they are what the models are judged on.

Writes `OUT/pairs.npz` (`images`, uint8 `(N, 64, 64, 3)`) and `OUT/pairs.jsonl`, one object a row:

- `title`, `keywords`: clean, in small letters; no title says a colour that the picture does not show;
- `category`: of its collection;
- `artist`: the author, or the emoji set, which is one hand too;
- `source`: openclipart, noto, noto-v1, fluent, fluent-flat, fxemoji;
- `colour`: what most of the coloured area shows, or null;
- `group`: what a split must not tear apart: the emoji, whoever drew it; the author and series otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from captions import clean_keywords, clean_title, segmented
from PIL import Image

from sfumato._packages import pinned_npm
from sfumato.data import datasets
from sfumato.data.collections._archives import npm_members
from sfumato.data.collections._folder import plain
from sfumato.data.collections._svg import rasterise
from sfumato.pretrained._colours import colour_of

SIDE = 64  # pixels
DRAWN = 160  # pixels of an SVG before it is cropped
MARGIN = 0.04  # of the longer side
THINNEST = 4  # longest side over the shortest
ALIKE = 0.028  # root mean square difference of 12 x 12 miniatures in [0, 1]
MAX_MEMBER = 2**28  # bytes

# Open Clip Art's folders of which a text says nothing, or only a few are worth anything.
LEFT_OUT = re.compile(
    r"shapes/stars/star_\d|computer/icons/(flat|lemon)-theme/(action|mimetypes|filesystems)|/flags|map_symbols|flowchart|"
    r"playing_cards|games/cards|semaphore|signalflag|shapes/jigsaw|special/patterns|signs_and_symbols/led|"
    r"buttons/|shapes/callouts|pantyhose|roadsigns|/networksym|mime-types|computer/buttons|star_figures"
)
ICONIFY = {
    "noto-v1": ("1.2.5", "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
    "fluent-emoji": ("1.2.7", "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"),
    "fluent-emoji-flat": ("1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
    "fxemoji": ("1.2.2", "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
}
EMOJILIB = ("4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303")
TONE = re.compile(r"[- ](light|medium|dark)([- ]|$)|skin tone|[- ]facing-right")
COUNTRY = re.compile(
    r"^flag[- ]|regional-?indicator|ideograph|^squared|latincap|^keycap|^clock\d|^input|-oclock|-thirty$"
)


@dataclass
class Pair:
    """A picture and what is said about it."""

    title: str
    keywords: list[str]
    category: str
    artist: str
    source: str
    group: str
    colour: str | None = None
    image: np.ndarray[Any, Any] = field(default_factory=lambda: np.empty(0, np.uint8), repr=False)


def main() -> None:
    """Builds the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for pairs.npz and pairs.jsonl")
    parser.add_argument("--data", type=Path, help="folder of fetched collections (default: OUT/data)")
    parser.add_argument("--archives", type=Path, help="folder that keeps downloaded packages (default: OUT/archives)")
    options = parser.parse_args()
    data, archives = options.data or options.out / "data", options.archives or options.out / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    noto = datasets.fetch("noto-emoji", data / "noto-emoji", archives=archives)
    clipart = datasets.fetch("openclipart", data / "openclipart", archives=archives)
    emoji = EmojiWords(archives)
    pairs = list(noto_pairs(noto, emoji))
    for name in ICONIFY:
        pairs += iconify_pairs(name, archives, emoji)
    pairs += openclipart_pairs(clipart)
    print("read:", dict(Counter(pair.source for pair in pairs)))
    pairs = distinct(pairs)
    for pair, colour in zip(pairs, colour_of(np.stack([pair.image for pair in pairs])), strict=True):
        pair.colour = colour
    print("kept:", dict(Counter(pair.source for pair in pairs)), len(pairs))
    write(pairs, options.out)


class EmojiWords:
    """Names and keywords by code points, such as `1f34e`, and code points by name."""

    def __init__(self, archives: Path) -> None:
        path = pinned_npm("emojilib", *EMOJILIB, 2**20, archives)
        table = json.loads(_members(path, ["package/dist/emoji-en-US.json"])[0] or b"{}")
        flat = pinned_npm("@iconify-json/fluent-emoji-flat", *ICONIFY["fluent-emoji-flat"], MAX_MEMBER, archives)
        names, facts = _members(flat, ["package/chars.json", "package/metadata.json"])
        groups = json.loads(facts or b"{}")["categories"]
        self.category: dict[str, str] = {icon: label for label, members in groups.items() for icon in members}
        self.code_of: dict[str, str] = {}
        self.words: dict[str, list[str]] = {}
        costs: Counter[str] = Counter()
        for character, words in table.items():
            code = _code("-".join(f"{ord(part):x}" for part in character))
            self.words[code] = [word.replace("_", " ") for word in words]
            self.code_of.setdefault(_squashed(words[0]), code)
            costs.update(part for word in words for part in re.findall(r"[a-z]+", word.lower()) if len(part) > 2)
        for code, name in json.loads(names or b"{}").items():
            self.code_of.setdefault(_squashed(name), _code(code))
        # Rare words cost more, and each word costs: few and common words are the best reading of a compound.
        self.costs = {word: 4 - np.log(count) / 3 for word, count in costs.items()} | {"of": 3.0, "a": 4.0, "and": 3.0}

    def describe(self, code: str | None, name: str) -> tuple[str, list[str]]:
        """Title and keywords of an emoji; by its name alone where it is not in the table."""
        if code in self.words:
            title, *words = self.words[code]
            return clean_title(title), clean_keywords(words)
        return clean_title(name), []

    def find(self, name: str) -> str | None:
        """The code points of a name in any spelling."""
        return self.code_of.get(_squashed(name))


def noto_pairs(folder: Path, emoji: EmojiWords) -> Iterator[Pair]:
    """Google's emoji, as `sfumato data fetch noto-emoji` writes them."""
    for row in _rows(folder):
        code = _code(row["source"].split(": ")[1].removesuffix(".png"))
        if row["label"] in ("flags", "component") or "skin tone" in row["text"] or "keycap" in row["text"]:
            continue
        title, words = emoji.describe(code, row["text"])
        words = list(dict.fromkeys((*words, *clean_keywords(row["tags"]))))
        yield from _pairs(
            (folder / row["file_name"]).read_bytes(), title, words, row["label"], "Noto", "noto", f"emoji {code}"
        )


def iconify_pairs(name: str, archives: Path, emoji: EmojiWords) -> Iterator[Pair]:
    """A set of emoji as Iconify packs it: one JSON file with the body of each SVG; one picture for all skin tones."""
    path = pinned_npm(f"@iconify-json/{name}", *ICONIFY[name], MAX_MEMBER, archives)
    icons, facts = (
        json.loads(part or b"{}") for part in _members(path, ["package/icons.json", "package/metadata.json"])
    )
    category = {icon: label for label, members in facts.get("categories", {}).items() for icon in members}
    category = category or emoji.category  # of Fluent emoji only one package tells
    source, side = name.replace("fluent-emoji", "fluent"), icons.get("height", 16)
    for icon, entry in icons["icons"].items():
        if TONE.search(icon) or COUNTRY.search(icon) or category.get(icon) == "Flags":
            continue
        code = emoji.find(icon)
        spaced = icon.replace("-", " ") if "-" in icon or code or name != "fxemoji" else segmented(icon, emoji.costs)
        title, words = emoji.describe(code, spaced)
        width, height = entry.get("width", icons.get("width", side)), entry.get("height", side)
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{entry["body"]}</svg>'
        )
        try:
            png = rasterise(svg.encode(), DRAWN)
        except ValueError:
            continue
        label = category.get(icon, "emoji").lower().replace(" & ", "-")
        group = f"emoji {code or icon}"
        yield from _pairs(png, title, words, label, source.split("-")[0].title(), source, group)


def openclipart_pairs(folder: Path) -> Iterator[Pair]:
    """Open Clip Art, as `sfumato data fetch openclipart` writes it, without what `LEFT_OUT` names."""
    for row in _rows(folder):
        place = row["source"].split(": ")[1]
        if LEFT_OUT.search(place):
            continue
        author = row["author"]
        title, words = clean_title(row["text"], author), clean_keywords(row["tags"], author)
        if not re.search(r"[a-z]{3}", title):
            continue
        series = re.sub(r"[\d_]+$", "", place.removesuffix(".png"))
        group = f"{author or 'unknown'}: {series.rpartition('/')[0]}"
        yield from _pairs(
            (folder / row["file_name"]).read_bytes(),
            title,
            words,
            row["label"],
            author or "unknown",
            "openclipart",
            group,
        )


def square(picture: Image.Image) -> np.ndarray[Any, Any] | None:
    """A drawing on white, cropped to what is drawn, centred in a square, `(64, 64, 3)`; None if too thin or empty."""
    pixels = np.asarray(picture)
    rows, columns = (np.flatnonzero((pixels < 250).any((2, axis))) for axis in (1, 0))
    if not len(rows) or not len(columns):
        return None
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    longest, shortest = max(bottom - top, right - left), min(bottom - top, right - left)
    if longest > THINNEST * shortest or longest < 12:
        return None
    side = round(longest * (1 + 2 * MARGIN))
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(
        picture.crop((int(left), int(top), int(right), int(bottom))),
        (int(side - right + left) // 2, int(side - bottom + top) // 2),
    )
    return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def distinct(pairs: list[Pair]) -> list[Pair]:
    """Pairs without those whose picture is all but that of an earlier one."""
    small = np.stack([_miniature(pair.image) for pair in pairs])
    norms = (small**2).sum(1)
    kept: list[int] = []
    for i in range(len(pairs)):
        if kept:
            distances = norms[kept] + norms[i] - 2 * small[kept] @ small[i]
            if distances.min() < ALIKE**2 * small.shape[1]:
                continue
        kept.append(i)
    return [pairs[i] for i in kept]


def write(pairs: list[Pair], folder: Path) -> None:
    """Writes both files, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "pairs.npz.part").open("wb") as file:
        np.savez_compressed(file, images=np.stack([pair.image for pair in pairs]))
    with (folder / "pairs.jsonl.part").open("w") as lines:
        for pair in pairs:
            facts = asdict(pair)
            del facts["image"]
            lines.write(json.dumps(facts, ensure_ascii=False) + "\n")
    for name in ("pairs.npz", "pairs.jsonl"):
        os.replace(folder / f"{name}.part", folder / name)


def _pairs(png: bytes, title: str, words: list[str], *facts: str) -> Iterator[Pair]:
    """One pair, or none where the picture cannot be used or nothing is said about it."""
    try:
        image = square(plain(png))
    except ValueError:
        return
    if image is not None and title:
        yield Pair(title, [word for word in words if word != title], *facts, image=image)


def _miniature(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.asarray(Image.fromarray(image).resize((12, 12), Image.Resampling.BOX), np.float32).ravel() / 255


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    with (folder / "metadata.jsonl").open() as lines:
        yield from map(json.loads, lines)


def _members(path: Path, names: list[str]) -> list[bytes | None]:
    with path.open("rb") as file:
        found = dict(npm_members(file, lambda name: MAX_MEMBER * (name in names)))
    return [found.get(name) for name in names]


def _code(code: str) -> str:
    """Code points without those that only choose between text and picture, and without leading zeros."""
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part not in ("fe0f", "200d"))


def _squashed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


if __name__ == "__main__":
    main()
