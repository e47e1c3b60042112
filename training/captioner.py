"""The captioner that comes with Sfumato, learned from the public pairs, and how good it is on hands it has not seen.

    python training/captioner.py PAIRS [--cache FOLDER] [--out FILE]

Measures first: the pairs are split into five parts by whole artists, and the pictures of each part are captioned by
heads that learned from the other four. Then the heads that are shipped learn from all pairs. Last, these caption two
collections in other styles, OpenMoji and the stamps of Tux Paint, which nothing here ever learns from.

`measured(pairs, cache)` gives the figures to other programs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
from wordsets import names, own_words, with_general, word_set

from sfumato._files import write_atomic
from sfumato.data import datasets
from sfumato.pretrained import zoo
from sfumato.pretrained._eyes import COLOURS, DRAWING, FEATURES, Eyes, squared
from sfumato.pretrained._networks import in_batches
from sfumato.pretrained.captioner import FILE, SEEN, Heads, read, spoken
from sfumato.pretrained.interfaces import Images

LEAST, LEAST_GROUPS = 8, 2  # pictures with a word of the vocabulary, and different things among them
INNER = 336  # principal components and colours
WHITENING = 0.5  # 0 keeps the variances of the principal components, 1 makes them equal
COLOUR_WEIGHT = 0.5
STYLE = 0.3  # added to the variances within titles before they are divided out, in parts of their mean
RIDGE = 300.0
THINNED = 3  # every third picture is enough for the principal components
MOST_WORDS = 8  # remembered of a drawing
BEST = 5  # words that are judged
FOLDS = 5
EMOJI_FOLDS = {"Noto": 0, "Fluent": 1, "Fxemoji": 2}  # the large hands, each in another fold
UNSEEN = ("tuxpaint-stamps", "openmoji")
# Letters, arrows, flags and unfinished signs have no caption that anybody would look for.
NO_PICTURES = {"symbols", "flags", "component", "extras-unicode", "extras-openmoji"}


@dataclass(frozen=True)
class Pairs:
    """Pictures and what is said about them.

    Attributes:
        rows: of `pairs.jsonl`.
        seen: what `Eyes` sees of each, `(N, SEEN)`.
    """

    rows: list[dict[str, Any]]
    seen: NDArray[np.float32]

    @classmethod
    def read(cls, folder: Path, cache: Path) -> Pairs:
        """The pairs that training/pairs.py wrote, seen once."""
        with (folder / "pairs.jsonl").open() as lines:
            rows = [json.loads(line) for line in lines]
        images = np.load(folder / "pairs.npz")["images"].transpose(0, 3, 1, 2)
        return cls(rows, seen(np.ascontiguousarray(images), cache / "pairs.npz"))


@dataclass(frozen=True)
class Vocabulary:
    """Words, and which of them each picture may be called.

    Attributes:
        words: the commonest first.
        said: 1 where a picture may be called a word, `(N, words)`.
        own: 1 where people called it so; the rest of `said` is implied, as "bird" is by "owl".
    """

    words: list[str]
    said: NDArray[np.float32]
    own: NDArray[np.float32]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]]) -> Vocabulary:
        """The vocabulary of some pairs."""
        sets = [word_set(row) for row in rows]
        counts: Counter[str] = Counter(word for words in sets for word in words)
        groups: defaultdict[str, set[str]] = defaultdict(set)
        for row, found in zip(rows, sets, strict=True):
            for word in found:
                groups[word].add(row["group"])
        words = [w for w, count in counts.most_common() if count >= LEAST and len(groups[w]) >= LEAST_GROUPS]
        return cls(words, marked(sets, words), marked([own_words(row) for row in rows], words))


def marked(sets: Sequence[Sequence[str]], words: Sequence[str]) -> NDArray[np.float32]:
    """1 where a set has a word, `(sets, words)`."""
    place = {word: number for number, word in enumerate(words)}
    said = np.zeros((len(sets), len(words)), np.float32)
    for row, found in enumerate(sets):
        said[row, [place[word] for word in found if word in place]] = 1
    return said


def seen(images: Images, file: Path) -> NDArray[np.float32]:
    """What `Eyes` sees of images, computed once for each different one and kept in a file."""
    keys = [hashlib.sha256(image.tobytes()).hexdigest()[:24] for image in images]
    known: dict[str, NDArray[np.float16]] = {}
    if file.exists():
        with np.load(file) as stored:
            known = dict(zip(stored["keys"].tolist(), stored["seen"], strict=True))
    missing = [row for row, key in enumerate(keys) if key not in known]
    if missing:
        eyes = Eyes(zoo.path("efficientnet-lite0"))
        for start in range(0, len(missing), 1000):
            part = missing[start : start + 1000]
            known |= dict(zip([keys[row] for row in part], eyes.see(images[part]).astype(np.float16), strict=True))
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.with_suffix(".part").open("wb") as target:
                np.savez(target, keys=np.array(list(known)), seen=np.stack(list(known.values())))
            os.replace(file.with_suffix(".part"), file)
            print(f"seen {len(known)} pictures for {file.stem}", flush=True)
    return np.stack([known[key] for key in keys]).astype(np.float32)


def fold_of(row: Mapping[str, Any]) -> int:
    """The part of the split that an artist is in."""
    artist = str(row["artist"])
    return EMOJI_FOLDS.get(artist, zlib.crc32(artist.encode()) % FOLDS)


@dataclass(frozen=True)
class Reduction:
    """Principal components of the standardised features, partly whitened, and the colours beside them.

    Attributes:
        shift: `(SEEN,)`, taken from what was seen.
        basis: `(SEEN, INNER)`, applied to the rest.
    """

    shift: NDArray[np.float32]
    basis: NDArray[np.float32]

    @classmethod
    def of(cls, seen: NDArray[np.float32]) -> Reduction:
        """That of some pictures; it knows nothing of their words."""
        mean, scale = seen.mean(0), seen.std(0) + 1e-3
        scale[FEATURES:] /= COLOUR_WEIGHT
        x = ((seen - mean) / scale)[::THINNED, :FEATURES]
        values, vectors = np.linalg.eigh(x.T @ x / len(x))
        kept = INNER - COLOURS
        basis = vectors[:, ::-1][:, :kept] / values[::-1][:kept] ** (WHITENING / 2)
        whole = np.zeros((SEEN, INNER), np.float32)
        whole[:FEATURES, :kept] = basis / (x @ basis).std()
        whole[FEATURES:, kept:] = np.eye(COLOURS)
        return cls(mean, whole / scale[:, None])

    def across_styles(self, seen: NDArray[np.float32], titles: Sequence[str]) -> Reduction:
        """This reduction with what differs among drawings of one title, which is style, made to count less.

        Within-class covariance normalisation (Hatch, Kajarekar and Stolcke 2006), with a title for a class.

        Args:
            seen: of drawings to learn from, `(N, SEEN)`.
            titles: of them.
        """
        x = (seen - self.shift) @ self.basis
        _, number, count = np.unique(titles, return_inverse=True, return_counts=True)
        means = np.zeros((len(count), INNER))
        np.add.at(means, number, x)
        style = (x - (means / count[:, None])[number])[count[number] > 1]
        values, vectors = np.linalg.eigh(style.T @ style / len(style))
        turned = vectors / np.sqrt(values + STYLE * values.mean())
        return Reduction(self.shift, (self.basis @ (turned / (x @ turned).std())).astype(np.float32))


def learned(reduction: Reduction, pairs: Pairs, vocabulary: Vocabulary, rows: NDArray[np.bool_] | None = None) -> Heads:
    """Heads that learned the words that people gave to some pictures, those with at least one; in closed form.

    Args:
        reduction: of the pictures.
        pairs: the pictures.
        vocabulary: of them.
        rows: which of them, `(N,)`; all by default.
    """
    used = vocabulary.own.any(1) if rows is None else rows & vocabulary.own.any(1)
    seen = pairs.seen[used]
    reduction = reduction.across_styles(seen, [pairs.rows[row]["title"] for row in np.flatnonzero(used)])
    heads = Heads(INNER, len(vocabulary.words), len(seen))
    heads.shift = torch.from_numpy(reduction.shift)
    heads.basis = torch.from_numpy(reduction.basis)
    x = heads.reduced(torch.from_numpy(seen))
    own = torch.from_numpy(vocabulary.own[used])
    whole = torch.cat([x, torch.ones(len(x), 1)], 1)
    ridge = torch.linalg.solve(whole.T @ whole + RIDGE * torch.eye(INNER + 1), whole.T @ own)
    heads.weight, heads.bias = ridge[:-1], ridge[-1]
    heads.memory, heads.remembered = F.normalize(x, dim=1), own
    return heads.eval()


def recall(ranks: NDArray[np.int64], said: NDArray[np.float32]) -> tuple[float, float]:
    """Shares of the pictures with a word of the vocabulary whose noun, or one of whose five words is right.

    Args:
        ranks: numbers of the words as `ranked` gives them, `(N, 5)`.
        said: 1 where a picture may be called a word, `(N, words)`.
    """
    asked = said.any(1)
    right = np.take_along_axis(said[asked], ranks[asked], 1) > 0
    return float(right[:, 0].mean()), float(right.any(1).mean())


def ranked(heads: Heads, seen: NDArray[np.float32]) -> NDArray[np.int64]:
    """Numbers of the five words that the captioner says, its noun first, `(N, 5)`."""
    scores = in_batches(heads, seen, 64, (len(heads.bias),))
    return np.array([spoken(row, BEST) for row in scores], np.int64)


def held_out(pairs: Pairs, vocabulary: Vocabulary, reduction: Reduction) -> dict[str, float]:
    """Figures on pictures of artists that were not learned from."""
    folds = np.array([fold_of(row) for row in pairs.rows])
    ranks = np.zeros((len(folds), BEST), np.int64)
    for fold in range(FOLDS):
        heads = learned(reduction, pairs, vocabulary, folds != fold)
        ranks[folds == fold] = ranked(heads, pairs.seen[folds == fold])
    clipart = np.array([row["source"] == "openclipart" for row in pairs.rows])
    figures: dict[str, float] = {}
    for name, rows in (("caption", clipart | True), ("clipart", clipart), ("emoji", ~clipart)):
        figures |= _figures(name, ranks[rows], vocabulary.own[rows], vocabulary.said[rows])
    return figures


def _figures(
    name: str, ranks: NDArray[np.int64], own: NDArray[np.float32], said: NDArray[np.float32]
) -> dict[str, float]:
    """Recall of the words that people gave, and (`general`) of these and what they imply."""
    figures: dict[str, float] = {}
    for kind, right in (("", own), ("general_", said)):
        figures[f"{name}_{kind}top1"], figures[f"{name}_{kind}top5"] = recall(ranks, right)
    return figures


def unseen(heads: Heads, words: Sequence[str], prefix: str, name: str, cache: Path) -> dict[str, float]:
    """Recall on a collection in another style; right is a word of its caption, its tags or its folder's name."""
    folder = datasets.fetch(name, cache / name, archives=cache / "archives")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["label"] not in NO_PICTURES and "skin tone" not in row["text"]]
    pictures = [np.asarray(Image.open(folder / row["file_name"]).convert("RGB")) for row in rows]
    drawings = np.concatenate([squared(picture.transpose(2, 0, 1)[None], DRAWING) for picture in pictures])
    sets = []
    for row in rows:
        said = re.sub(r"[^a-z ]+", " ", row["text"].lower()).split()
        pairs = [" ".join(pair) for pair in pairwise(said)]
        sets.append(names([*said, *pairs, row["label"].replace("-", " "), *row["tags"]]))
    ranks = ranked(heads, seen(drawings, cache / f"{name}.npz"))
    return _figures(prefix, ranks, marked(sets, words), marked([with_general(one) for one in sets], words))


def measured(pairs_folder: Path, cache: Path) -> dict[str, float]:
    """`caption_top1`, `caption_top5` on held-out artists; `unseen_top1`, `unseen_top5` of the shipped captioner on the
    stamps of Tux Paint; the same on OpenMoji. Right are the words that people gave a picture; with `general_` in the
    name, what these imply is right too.

    Args:
        pairs_folder: that training/pairs.py wrote.
        cache: for downloads and features.
    """
    zoo.pull(["efficientnet-lite0"])
    pairs = Pairs.read(pairs_folder, cache)
    words, heads = read(zoo.entry("captioner").folder / FILE)
    return held_out(pairs, Vocabulary.of(pairs.rows), Reduction.of(pairs.seen)) | _elsewhere(heads, words, cache)


def _elsewhere(heads: Heads, words: Sequence[str], cache: Path) -> dict[str, float]:
    figures: dict[str, float] = {}
    for prefix, name in zip(("unseen", "openmoji"), UNSEEN, strict=True):
        figures |= unseen(heads, words, prefix, name, cache)
    return figures


def write(heads: Heads, words: Sequence[str], file: Path) -> None:
    """The weights in half precision, what is remembered in 8 bits and as lists of words."""
    weights = {name: value.half().contiguous() for name, value in heads.state_dict().items()}
    memory = heads.memory
    del weights["memory"], weights["remembered"]
    weights["memory"] = (memory * 127 / memory.abs().max(1, keepdim=True).values).round().to(torch.int8)
    rows = torch.full((len(memory), MOST_WORDS), len(words), dtype=torch.int16)  # one past the last word: none
    for place, row in zip(rows, heads.remembered, strict=True):
        # Of many words the rarest say most; the vocabulary begins with the commonest.
        chosen = row.nonzero()[:, 0].flip(0)[:MOST_WORDS]
        place[: len(chosen)] = chosen.to(torch.int16)
    weights["remembered"] = rows
    weights["vocabulary"] = torch.tensor(list("\n".join(words).encode()), dtype=torch.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, save(weights))


def main() -> None:
    """Measures, learns from everything, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder that training/pairs.py wrote")
    parser.add_argument("--cache", type=Path, help="folder for downloads and features (default: PAIRS/captioner)")
    parser.add_argument("--out", type=Path, default=zoo.entry("captioner").folder / FILE)
    options = parser.parse_args()
    cache = options.cache or options.pairs / "captioner"
    zoo.pull(["efficientnet-lite0"])
    pairs = Pairs.read(options.pairs, cache)
    vocabulary = Vocabulary.of(pairs.rows)
    print(f"{len(pairs.rows)} pairs, {int(vocabulary.own.any(1).sum())} with one of {len(vocabulary.words)} words")
    reduction = Reduction.of(pairs.seen)
    print(json.dumps(held_out(pairs, vocabulary, reduction)), flush=True)
    heads = learned(reduction, pairs, vocabulary)
    write(heads, vocabulary.words, options.out)
    print(f"{options.out.stat().st_size / 1e6:.2f} MB in {options.out}")
    print(json.dumps(_elsewhere(heads, vocabulary.words, cache)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
