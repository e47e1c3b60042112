"""A judge of drawings that is independent of the generator: which of these prompts does a picture show?

It learned from drawings that the generator never saw, by other hands: OpenMoji, Twitter's emoji (Twemoji) and the
stamps of Tux Paint. An ImageNet classifier looks at them. From there two ways lead to the caption in MiniLM's space of
meanings: ridge regression, and the captions of the most alike drawings. Both are in closed form; their likenesses are
added.

    python bench/scorer.py        # makes it, once, and prints how good it is on real pictures that it has not seen

    scorer = Scorer.ready()
    chosen = scorer.choose(images, ["a red apple", "a cartoon cat", ...])   # (N,) indices
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from sfumato._home import home
from sfumato._packages import pinned_npm
from sfumato.data import datasets
from sfumato.data.collections._archives import npm_members
from sfumato.data.collections._folder import plain
from sfumato.data.collections.emoji import datasource_table
from sfumato.pretrained import zoo
from sfumato.pretrained._eyes import DRAWING, FEATURES, Eyes, squared
from sfumato.pretrained.interfaces import Images

TWITTER = ("emoji-datasource-twitter", "16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877")
TWITTER_FOLDER = "package/img/twitter/64/"
VERSION = 2
"""Grows when anything here changes what is learned."""
INNER = 512  # principal components
WHITENING, STYLE, RIDGE = 0.5, 0.3, 300.0
NEIGHBOURS, SHARPNESS = 8, 14.0
HELD = 0.15  # of the pictures, for the measured accuracy
CHOICES = 24
# Neither prompts nor their pictures: flags, keycaps, skin tones, letters, brands, arrows.
LEFT_OUT = re.compile(r"skin tone|^keycap|^flag|^regional|letter|brand|copyright|hyphen|ideograph")
LABELS_OUT = {"flags", "symbols", "component", "extras-unicode", "extras-openmoji", "skin-tones"}


Array = NDArray[np.float32]


class Scorer:
    """The judge.

    Args:
        weights: what `_learned` returns.
        facts: what it learned from, and how good it is.
    """

    def __init__(self, weights: dict[str, Array], facts: dict[str, float]) -> None:
        self.facts = facts
        self._weights = weights
        self._eyes = Eyes(zoo.path("efficientnet-lite0"))
        self._text = zoo.load_text_embedder("minilm")

    @classmethod
    def ready(cls, folder: Path | None = None) -> Scorer:
        """The judge, from its file; it is made first where there is none.

        Args:
            folder: for downloads, features and the file; by default one in the user's state folder.
        """
        folder = folder or home() / "bench" / "scorer"
        zoo.pull(["efficientnet-lite0", "minilm"])
        file = folder / f"scorer-{VERSION}.safetensors"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _make(folder, file)
        return cls(load_file(file), json.loads(file.with_suffix(".json").read_text()))

    def likeness(self, images: Images, prompts: Sequence[str]) -> Array:
        """How well each prompt fits each image, `(N, prompts)`; larger is better."""
        texts = self._text.embed_texts([bare(prompt) for prompt in prompts])
        return _likeness(self._weights, self._eyes.see(images), texts)

    def choose(self, images: Images, prompts: Sequence[str]) -> NDArray[np.int64]:
        """The prompt that fits best, of each image: indices `(N,)`."""
        return self.likeness(images, prompts).argmax(1)


def bare(text: str) -> str:
    """A caption in the form that all captions have here: small letters, no article, no full stop."""
    return re.sub(r"^(an?|the|some) ", "", " ".join(text.lower().strip(" .!").split()))


def pictures(folder: Path) -> Iterator[tuple[str, str, Images]]:
    """Source, caption and drawing `(3, 64, 64)` of everything that the judge learns from."""
    for name in ("openmoji", "tuxpaint-stamps"):
        place = datasets.fetch(name, folder / name, archives=folder / "archives")
        for line in (place / "metadata.jsonl").read_text().splitlines():
            row = json.loads(line)
            if row["label"] not in LABELS_OUT and not LEFT_OUT.search(row["text"]):
                yield name, bare(row["text"]), _drawing(Image.open(place / row["file_name"]))
    archive = pinned_npm(*TWITTER, 2**27, folder / "archives")
    limits = {"package/emoji.json": 2**24}
    with archive.open("rb") as file:
        table = datasource_table(dict(npm_members(file, lambda name: limits.get(name, 0)))["package/emoji.json"] or b"")
    with archive.open("rb") as file:
        for name, data in npm_members(file, lambda name: 2**20 * name.startswith(TWITTER_FOLDER)):
            emoji = table.get(name.removeprefix(TWITTER_FOLDER))
            slug = re.sub(r"[^a-z]+", "-", emoji.group.lower()) if emoji else "component"
            if emoji and slug not in LABELS_OUT and not LEFT_OUT.search(emoji.text):
                yield "twitter", bare(emoji.text), _drawing(plain(data or b""))


def _drawing(picture: Image.Image) -> Images:
    return squared(np.asarray(picture.convert("RGB")).transpose(2, 0, 1)[None], DRAWING)[0]


def _make(folder: Path, file: Path) -> None:
    sources, captions, drawings = zip(*pictures(folder), strict=True)
    cache = folder / "seen-1.npy"  # a number of its own: it depends on the pictures and the eyes alone
    if not cache.exists():
        _save(cache, Eyes(zoo.path("efficientnet-lite0")).see(np.stack(drawings)))
    seen = np.load(cache)
    unique = sorted(set(captions))
    texts = zoo.load_text_embedder("minilm").embed_texts(unique)
    labels = np.array([unique.index(caption) for caption in captions])
    # Held out by picture: that it knows a thing from another hand is what a judge is for.
    order = np.random.default_rng(1).permutation(len(seen))
    held, used = np.split(order, [round(HELD * len(seen))])
    likeness = _likeness(_learned(seen[used], texts, labels[used]), seen[held], texts)
    facts = {
        "pictures": len(seen),
        "captions": len(unique),
        **{name: sources.count(name) for name in dict.fromkeys(sources)},
        "top1_of_24_held_out": _choice(likeness, labels[held]),
    }
    save_file(_learned(seen, texts, labels), file)
    file.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


def _learned(seen: Array, texts: Array, labels: NDArray[np.int64]) -> dict[str, Array]:
    """The judge's weights from what was seen, `(N, features)`, the captions' vectors, `(C, 384)`, and who has which."""
    mean, scale = seen.mean(0), seen.std(0) + 1e-3
    scale[FEATURES:] *= 2  # colours say less than shapes
    x = (seen - mean) / scale
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    basis = vectors[:, ::-1][:, :INNER] / values[::-1][:INNER] ** (WHITENING / 2)
    basis /= (x @ basis).std() * scale[:, None]
    basis = basis @ _across_styles((seen - mean) @ basis, labels)
    inner = (seen - mean) @ basis
    middle = texts[labels].mean(0)
    meanings = _unit(texts[labels] - middle)
    ridge = np.linalg.solve(inner.T @ inner + RIDGE * np.eye(INNER, dtype=np.float32), inner.T @ meanings)
    weights = {"mean": mean, "basis": basis, "middle": middle, "ridge": ridge, "memory": _unit(inner)}
    weights["meanings"] = meanings
    return {name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()}


def _across_styles(x: Array, labels: NDArray[np.int64]) -> Array:
    """What makes differences among drawings of one caption, which are style, count less: a matrix for rows `x`.

    Within-class covariance normalisation (Hatch, Kajarekar and Stolcke 2006).
    """
    _, number, count = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.zeros((len(count), x.shape[1]))
    np.add.at(means, number, x)
    style = (x - (means / count[:, None])[number])[count[number] > 1]
    values, vectors = np.linalg.eigh(style.T @ style / len(style))
    turned = vectors / np.sqrt(values + STYLE * values.mean())
    return np.asarray(turned / (x @ turned).std(), np.float32)


def _likeness(weights: dict[str, Array], seen: Array, texts: Array) -> Array:
    wanted = _unit(texts - weights["middle"])
    inner = (seen - weights["mean"]) @ weights["basis"]
    near = _unit(inner) @ weights["memory"].T
    rows = np.argpartition(-near, NEIGHBOURS, 1)[:, :NEIGHBOURS]
    votes = np.exp(SHARPNESS * np.take_along_axis(near, rows, 1))
    remembered = np.einsum("nk,nkd->nd", votes / votes.sum(1, keepdims=True), weights["meanings"][rows])
    return _unit(inner @ weights["ridge"]) @ wanted.T + _unit(remembered) @ wanted.T


def _unit(vectors: Array) -> Array:
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12)


def _choice(likeness: Array, labels: NDArray[np.int64], rounds: int = 60) -> float:
    """How often the right caption wins against 23 others of held-out pictures, all 24 different."""
    rng, right = np.random.default_rng(2), 0
    first = {int(label): row for row, label in reversed(list(enumerate(labels)))}
    for _ in range(rounds):
        chosen = rng.choice(list(first), CHOICES, replace=False)
        rows = [first[int(label)] for label in chosen]
        right += int((likeness[rows][:, chosen].argmax(1) == np.arange(CHOICES)).sum())
    return right / rounds / CHOICES


def _save(path: Path, array: Array) -> None:
    with path.with_suffix(".part").open("wb") as file:
        np.save(file, array)
    os.replace(path.with_suffix(".part"), path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(Scorer.ready().facts))
