"""Packs the offline generator: autoencoder, flow transformer and memory in one file.

    python training/bundle.py PAIRS OUT [--into src/sfumato/pretrained/weights]

Weights are half precision. The memory holds a picture's latent in 24 x 64 bytes, with one scale a channel, and the
vectors of its title and caption in 384 bytes each; drawings that are hard to read or that nobody asks for (signs,
program icons, letters) stay out of it, and so do rows of `pairs.jsonl` that somebody gave `"drop": true` by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from generator import SHAPE
from material import captions, described, read_pairs
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.pretrained import zoo
from sfumato.pretrained._memory import Drawings, plainness
from sfumato.pretrained.clipart import FILE

LARGEST = 30_000_000  # bytes
USELESS = re.compile(
    r"^letter |^number |button$|^clock |o'?clock|thirty$|keycap|^input |ideograph|japanese .*button|^(up|down|left|"
    r"right).*arrow|arrow.*(up|down|left|right)|^squared|^negative|^circled|latin|^folder|\bu?n?mount$|^document|^package|^format"
)
LEAST = -0.2
"""Of what `Index` calls the plainness of a drawing: those below stay out."""


def worth_keeping(drawings: Drawings) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Rows of the drawings that go into the memory."""
    kept = [row for row, title in enumerate(drawings.titles) if not USELESS.search(title)]
    return np.array([row for row in kept if plainness(drawings, row) > LEAST], np.int64)


def embedded(texts: list[str], folder: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Vectors of texts, `(N, 384)`; most are in `texts.npz`."""
    stored = np.load(folder / "texts.npz")
    known = dict(zip(stored["texts"].tolist(), stored["vectors"].astype(np.float32), strict=True))
    missing = [text for text in texts if text not in known]
    if missing:
        known |= dict(zip(missing, zoo.load_text_embedder("minilm").embed_texts(missing), strict=True))
    return np.stack([known[text] for text in texts])


def pack(pairs: Path, folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the file."""
    images, rows = read_pairs(pairs)
    drawings = described(images, rows)
    longer, keep = captions(drawings), worth_keeping(drawings)
    keep = keep[[not rows[row].get("drop") for row in keep]]
    pictures = np.load(folder / "latents.npz")
    latents = pictures["latents"][pictures["form"] == 0][keep].astype(np.float32)
    unit = np.abs(latents).max((0, 2, 3)) / 127
    said = [*(drawings.titles[row] for row in keep), *(longer[row] for row in keep)]
    different = {text: number for number, text in enumerate(dict.fromkeys(said))}
    vectors = embedded(list(different), folder)
    numbers = np.array([different[text] for text in said])
    vectors *= 127 / np.abs(vectors).max(1, keepdims=True)
    tensors = {
        "memory.latents": torch.from_numpy(np.round(latents / unit[:, None, None]).astype(np.int8)),
        "memory.unit": torch.from_numpy(unit),
        "memory.vectors": torch.from_numpy(np.round(vectors).astype(np.int8)),
        "memory.rows": torch.from_numpy(numbers.reshape(2, -1).astype(np.int16)),
    }
    for name, tensor in load_file(folder / "autoencoder.safetensors").items():
        tensors[f"autoencoder.{name}"] = tensor.half()
    for name, tensor in torch.load(folder / "generator.pt", weights_only=True)["average"].items():
        tensors[f"flow.{name}"] = tensor.half()
    lists = {name: [values[row] for row in keep] for name, values in asdict(drawings).items()}
    shape = json.dumps(SHAPE._asdict())
    return tensors, {"shape": shape, "drawings": json.dumps(lists, ensure_ascii=False, separators=(",", ":"))}


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of pairs.npz and pairs.jsonl")
    parser.add_argument("out", type=Path, help="folder of everything that was trained")
    parser.add_argument("--into", type=Path, help="folder of the bundle (default: OUT)")
    options = parser.parse_args()
    into = options.into or options.out
    into.mkdir(parents=True, exist_ok=True)
    tensors, facts = pack(options.pairs, options.out)
    part = into / f"{FILE}.part"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, facts)
    size = part.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{size:,} bytes are more than {LARGEST:,}; keep fewer drawings")
    os.chmod(part, 0o644)
    os.replace(part, into / FILE)
    print(f"{into / FILE}: {size:,} bytes, {len(tensors['memory.latents'])} drawings")


if __name__ == "__main__":
    main()
