"""Small public models that draw, vary and compare pictures of shapes by code: quick, and real in what they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfumato.methods import private_evolution, spti
from sfumato.methods.evolution import VOTES
from sfumato.methods.evolution_settings import PrivateEvolutionConfig, SPTIConfig
from sfumato.methods.models import Models
from sfumato.methods.population import Population
from sfumato.pretrained.interfaces import Embeddings, Identity, Images
from sfumato.pretrained.renders import Renders
from sfumato.privacy.ledger import Charge, Ledger
from sfumato.privacy.noise import Noise
from sfumato.privacy.plan import HistogramTouch, Plan
from sfumato.privacy.records import PrivateRecords
from sfumato.privacy.session import Session
from tests.privacy.memory_source import KEY, MemorySource, Picture

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 60),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "black": (15, 15, 15),
    "pink": (250, 150, 190),
}
SHAPES = ("disc", "bars", "ring", "square")
SIZES = ("small", "large")
SIDE = 16


def identity(name: str) -> Identity:
    return Identity(name, "1", "0" * 64, "Apache-2.0", "these tests")


def paint(text: str, jitter: float = 0.0) -> np.ndarray:
    """The picture of a caption such as "large red disc", uint8 `(3, 16, 16)`; unknown words draw nothing."""
    words = text.split()
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1) * 2 - 1
    x = x - jitter
    radius = np.hypot(x, y) * (1.4 if "small" in words else 0.9)
    masks = {
        "disc": radius < 0.6,
        "bars": np.sin(8 * x * (1.4 if "small" in words else 0.9)) > 0.3,
        "ring": np.abs(radius - 0.55) < 0.18,
        "square": np.maximum(np.abs(x), np.abs(y)) * (1.4 if "small" in words else 0.9) < 0.6,
    }
    picture = np.full((3, SIDE, SIDE), 235.0)
    for word in words:
        if word in masks:
            colour = next((COLOURS[name] for name in words if name in COLOURS), (128, 128, 128))
            picture[:, masks[word]] = np.array(colour)[:, None]
    return picture.astype(np.uint8)


class ShapeTexts:
    """Captions of one size, colour and shape."""

    identity = identity("shape captions")

    def __init__(self, parts: Sequence[Sequence[str]] = (SIZES, tuple(COLOURS), SHAPES)) -> None:
        self.parts = parts
        self.asked = 0

    def random_texts(self, count: int, seed: int) -> list[str]:
        self.asked += count
        return [
            " ".join(str(np.random.default_rng((seed + n, k)).choice(part)) for k, part in enumerate(self.parts))
            for n in range(count)
        ]

    def vary_texts(self, texts: Sequence[str], seed: int, strength: float = 0.5) -> list[str]:
        self.asked += len(texts)
        found = []
        for n, text in enumerate(texts):
            words, draw = text.split(), np.random.default_rng(seed + n)
            place = int(draw.integers(len(words)))
            found.append(" ".join([*words[:place], str(draw.choice(self.parts[place])), *words[place + 1 :]]))
        return found


class Painter:
    """Draws captions, and shifts and recolours drawings; refuses captions with a forbidden word."""

    identity = identity("painter")

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses
        self.prompts: list[str] = []
        self.fail_after: int | None = None

    def generate(self, texts: Sequence[str], seed: int) -> Images:
        return self.try_generate(texts, seed).images

    def try_generate(self, texts: Sequence[str], seed: int) -> Renders:
        if self.fail_after is not None and len(self.prompts) + len(texts) > self.fail_after:
            raise ConnectionError("the image service has gone away")
        self.prompts += texts
        made = np.array([not self.refuses or self.refuses not in text for text in texts])
        shifts = [0.2 * np.random.default_rng(seed + n).uniform(-1, 1) for n in range(len(texts))]
        drawn = [
            paint(text, shift) if ok else np.full((3, SIDE, SIDE), 128, np.uint8)
            for text, shift, ok in zip(texts, shifts, made, strict=True)
        ]
        return Renders(np.stack(drawn), made)

    def vary_images(self, images: Images, seed: int, strength: float, texts: Sequence[str] | None = None) -> Images:
        found = images.copy()
        for n, picture in enumerate(found):
            draw = np.random.default_rng(seed + n)
            if draw.uniform() < strength:
                picture[:] = np.roll(picture, int(draw.integers(-2, 3)), axis=2)
                picture[:] = picture[draw.permutation(3)] if draw.uniform() < strength else picture
        return found


class Thumbnails:
    """Compares pictures by their 4 x 4 thumbnails."""

    identity = identity("thumbnails")
    dimensions = 48

    def embed_images(self, images: Images) -> Embeddings:
        colour = images if images.shape[1] == 3 else images.repeat(3, axis=1)
        height, width = images.shape[2] // 4, images.shape[3] // 4
        cells = colour[:, :, : 4 * height, : 4 * width].astype(np.float32).reshape(len(images), 3, 4, height, 4, width)
        found: Embeddings = (cells.mean(axis=(3, 5)).reshape(len(images), -1) / 255).astype(np.float32)
        return found


class Namer:
    """Captions a picture of one shape with its colour."""

    identity = identity("namer")

    def caption(self, images: Images) -> list[str]:
        names = list(COLOURS)
        found = []
        for picture in images:
            inked = picture[:, (picture < 230).any(axis=0)]
            mean = inked.mean(axis=1) if inked.size else np.full(3, 235.0)
            found.append(names[int(np.argmin([np.square(mean - COLOURS[name]).sum() for name in names]))])
        return found


class Words:
    """Compares captions by which words they have."""

    identity = identity("words")
    words = (*COLOURS, *SHAPES, *SIZES)
    dimensions = len(words)

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        return np.array([[float(word in text.split()) for word in self.words] for text in texts], dtype=np.float32)


def objects(**changes: Any) -> dict[str, Any]:
    """Models of a run, by the name of their setting."""
    painter = Painter()
    return {"texts": ShapeTexts(), "images": painter, "embedder": Thumbnails()} | changes


def private_pictures(count: int = 300) -> list[Picture]:
    """Mostly large red discs (class "round") and small blue bars (class "striped"), half and half."""
    draw = np.random.default_rng(3)
    return [
        Picture(
            f"{number:04d}.png",
            paint(("large red disc", "small blue bars")[number % 2], 0.2 * draw.uniform(-1, 1)),
            ("round", "striped")[number % 2],
        )
        for number in range(count)
    ]


def fit(
    folder: Path,
    config: SPTIConfig | PrivateEvolutionConfig,
    models: dict[str, Any],
    *,
    classes: tuple[str, ...] = (),
    noise: Noise | None = None,
) -> Population:
    """A run of the method over pictures in memory; in the same folder, its resumption."""
    folder.mkdir(exist_ok=True)
    noise = noise or Noise()
    touch = HistogramTouch(VOTES, cells=1, rounds=config.rounds, scale=2.0)
    plan = Plan(unit="image", epsilon=50.0, delta=1e-5, touches=(touch,), main=VOTES)
    ledger = Ledger.open("test", folder / "ledger.jsonl")
    if "run" not in ledger.runs():
        ledger.charge(
            "run", Charge(10.0, 1e-5), plan.attempts(), plan.sha256(), "image", "0" * 64, not_private=not noise.private
        )
    pictures = private_pictures()
    records, _ = PrivateRecords.intake(
        MemorySource(pictures),
        None,
        (3, SIDE, SIDE),
        unit="image",
        classes=classes or None,
        folder=folder / "private",
        key=KEY,
        fingerprint_key=KEY,
    )
    session = Session(records, plan, ledger, "run", folder, noise)
    method = spti.fit if isinstance(config, SPTIConfig) else private_evolution.fit
    return method(  # type: ignore[operator, no-any-return]
        config,
        session,
        Models(config, models),
        folder,
        (3, SIDE, SIDE),
        classes,
        size=len(pictures),
        seed=0,
        progress=lambda *_: None,
    )


def attempts(folder: Path) -> int:
    """Attempts that the ledger of `fit` holds."""
    return Ledger.open("test", folder / "ledger.jsonl").attempts("run")[VOTES].used


def draw_private(root: Path, count: int = 60, text: str | None = None) -> Path:
    """The private pictures as a folder."""
    lines = []
    root.mkdir(parents=True, exist_ok=True)
    for picture in private_pictures(count):
        assert picture.pixels is not None
        Image.fromarray(picture.pixels.transpose(1, 2, 0)).save(root / picture.identity)
        lines.append(f'{{"file_name": "{picture.identity}", "text": "{text}"}}\n')
    if text is not None:
        (root / "metadata.jsonl").write_text("".join(lines))
    return root
