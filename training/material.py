"""What the offline generator learns from: texts as vectors, neighbours of a kind, and altered pictures as latents.

    python training/material.py PAIRS OUT

Two steps, each stored when it is done: `OUT/texts.npz` (embeddings of all titles, captions and keywords, and for every
drawing the drawings of its kind) and, once there is an autoencoder, `OUT/latents.npz` (every picture as it is,
mirrored, slightly turned and stretched, and in other colours).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from sfumato.nets.latent import LatentAutoencoder
from sfumato.pretrained import zoo
from sfumato.pretrained._colours import COLOURS, HUES, colour_of, recoloured
from sfumato.pretrained._memory import KEYWORDS, STYLES, Drawings, Index, subject
from sfumato.pretrained._networks import with_weights
from sfumato.pretrained._warp import warped

NEIGHBOURS = 8
OF_A_KIND = 0.75  # least score of a neighbour
SINGLE = 3  # keywords that stand as texts of their own
WARPS = 2
REPAINTED = 2  # copies in other colours
BATCH = 64


def read_pairs(folder: Path) -> tuple[np.ndarray[Any, Any], list[dict[str, Any]]]:
    """Pictures `(N, 64, 64, 3)` and their facts, as `pairs.py` wrote them."""
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    return np.load(folder / "pairs.npz")["images"], rows


def described(images: np.ndarray[Any, Any], rows: list[dict[str, Any]]) -> Drawings:
    """The facts in the form that the generator's memory has."""
    pixels = images.reshape(len(images), -1, 3).astype(np.int16)
    high, low = pixels.max(2), pixels.min(2)
    object_ = low < 237
    vivid = ((high - low) / np.maximum(high, 1) * object_).sum(1) / np.maximum(object_.sum(1), 1)
    return Drawings(
        titles=[subject(row["title"]) for row in rows],
        keywords=[[subject(word) for word in row["keywords"][:KEYWORDS]] for row in rows],
        categories=[row["category"] for row in rows],
        colours=[row["colour"] for row in rows],
        styles=[STYLES.index(row["source"]) for row in rows],
        saturation=vivid.round(3).tolist(),
    )


def captions(drawings: Drawings) -> list[str]:
    """Each drawing's title with its first keywords."""
    return [", ".join((title, *words[:5])) for title, words in zip(drawings.titles, drawings.keywords, strict=True)]


def write_texts(drawings: Drawings, file: Path) -> None:
    """Embeds all texts and finds the neighbours."""
    minilm = zoo.load_text_embedder("minilm")
    longer = captions(drawings)
    table: dict[str, int] = {}
    number = [[table.setdefault(text, len(table)) for text in texts] for texts in (drawings.titles, longer)]
    singles = [[table.setdefault(word, len(table)) for word in words[:SINGLE]] for words in drawings.keywords]
    vectors = minilm.embed_texts(list(table))
    index = Index(drawings, vectors[number[0]], vectors[number[1]])
    near = np.full((len(longer), NEIGHBOURS), -1, np.int32)
    for row, title in enumerate(drawings.titles):
        scores = index.rank(title, vectors[number[0][row]])
        scores[row] = -1
        best = np.argsort(-scores)[:NEIGHBOURS]
        best = best[scores[best] > OF_A_KIND]
        near[row, : len(best)] = best
    padded = np.array([words + [-1] * (SINGLE - len(words)) for words in singles], np.int32)
    _store(
        file,
        vectors=vectors.astype(np.float16),
        texts=np.array(list(table)),
        titles=np.array(number[0], np.int32),
        captions=np.array(number[1], np.int32),
        singles=padded,
        neighbours=near,
    )


def write_latents(images: np.ndarray[Any, Any], autoencoder: LatentAutoencoder, file: Path) -> None:
    """Alters and encodes all pictures: `latents` `(M, 24, 8, 8)`, `item` and `colour` `(M,)`, `form` `(M,)`.

    A form is 0 for the picture itself, 1 mirrored, 2 warped, 3 repainted. A colour counts from 1; 0 is none.
    """
    random = np.random.default_rng(5)
    own = colour_of(images)
    latents, item, colour, form = [], [], [], []
    pending: list[np.ndarray[Any, Any]] = []

    def flush() -> None:
        pictures = torch.from_numpy(np.stack(pending)).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            latents.append(autoencoder.encode(pictures).half().numpy())
        pending.clear()

    def take(picture: np.ndarray[Any, Any], row: int, name: str | None, kind: int) -> None:
        pending.append(picture)
        item.append(row)
        colour.append(0 if name is None else 1 + COLOURS.index(name))
        form.append(kind)
        if len(pending) == BATCH:
            flush()

    for row, image in enumerate(images):
        take(image, row, own[row], 0)
        take(image[:, ::-1], row, own[row], 1)
        for _ in range(WARPS):
            take(warped(image, random), row, own[row], 2)
        others = [name for name in COLOURS if name != own[row]]
        weights = np.array([3.0 if name in HUES else 1.0 for name in others])
        for name in random.choice(others, REPAINTED, replace=False, p=weights / weights.sum()):
            painted = recoloured(image, str(name))
            if painted is not None and colour_of(painted[None])[0] == name:
                take(painted if random.random() < 0.5 else painted[:, ::-1], row, str(name), 3)
    if pending:
        flush()
    arrays = {"item": np.array(item, np.int32), "colour": np.array(colour, np.int8), "form": np.array(form, np.int8)}
    _store(file, latents=np.concatenate(latents), **arrays)


def load_autoencoder(folder: Path) -> LatentAutoencoder:
    """The trained autoencoder, in single precision."""
    weights = {name: tensor.float() for name, tensor in load_file(folder / "autoencoder.safetensors").items()}
    return with_weights(LatentAutoencoder, weights)


def _store(file: Path, **arrays: np.ndarray[Any, Any]) -> None:
    part = file.with_suffix(".part.npz")
    np.savez(part, **arrays)
    os.replace(part, file)


def main() -> None:
    """Does what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of pairs.npz and pairs.jsonl")
    parser.add_argument("out", type=Path, help="folder of autoencoder.safetensors")
    parser.add_argument("--only", choices=("texts", "latents"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, rows = read_pairs(options.pairs)
    if options.only != "latents" and not (options.out / "texts.npz").exists():
        write_texts(described(images, rows), options.out / "texts.npz")
        print("texts.npz", flush=True)
    if (
        options.only != "texts"
        and not (options.out / "latents.npz").exists()
        and (options.out / "autoencoder.safetensors").exists()
    ):
        write_latents(images, load_autoencoder(options.out), options.out / "latents.npz")
        print("latents.npz", flush=True)


if __name__ == "__main__":
    main()
