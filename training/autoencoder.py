"""Trains the autoencoder of the offline generator on the public pictures.

    python training/autoencoder.py PAIRS OUT [--minutes 8]

`PAIRS` is what `pairs.py` wrote. Writes `OUT/autoencoder.safetensors`, and `OUT/autoencoder.pt` from which an
interrupted run goes on. Every fortieth picture is held out; the error on those is printed and stored.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
from optimiser import Muon
from safetensors.torch import save_file
from torch import Tensor

from sfumato.nets.latent import LatentAutoencoder

BATCH = 16
RATE = 0.015
HELD_OUT = 40  # every so manieth picture
JITTER = 0.05  # noise on latents, so that the decoder forgives what a generator gets slightly wrong
REPORT = 30  # seconds


def loss(network: LatentAutoencoder, pictures: Tensor) -> Tensor:
    """Absolute error of pixels and of their differences: outlines count twice."""
    latents = network.encode(pictures)
    found = network.decode(latents + JITTER * torch.randn_like(latents)).float()
    error = (found - pictures).abs().mean() + 4 * ((found - pictures) ** 2).mean()
    for axis in (2, 3):
        error = error + 0.5 * (found.diff(dim=axis) - pictures.diff(dim=axis)).abs().mean()
    return error + 1e-3 * (latents.float() ** 2).mean()


def batch(images: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures in [-1, 1], each turned, mirrored or with its colour channels exchanged at random."""
    pictures = images[rows].float() / 127.5 - 1
    for i in range(len(pictures)):
        mirror, turn, swap = torch.rand(3, generator=generator).tolist()
        if mirror < 0.5:
            pictures[i] = pictures[i].flip(2)
        if turn < 0.1:
            pictures[i] = pictures[i].flip(1)
        if swap < 0.3:
            pictures[i] = pictures[i][torch.randperm(3, generator=generator)]
    return pictures


@torch.inference_mode()
def decibels(network: LatentAutoencoder, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio over all pixels."""
    error = 0.0
    for part in pictures.split(64):
        given = part.float() / 127.5 - 1
        error += float(((network.decode(network.encode(given)).clamp(-1, 1) - given) ** 2).sum())
    return 10 * math.log10(4 / (error / pictures.numel()))


def main() -> None:
    """Trains until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of pairs.npz")
    parser.add_argument("out", type=Path, help="folder for the weights")
    parser.add_argument("--minutes", type=float, default=8, help="of training, over all resumptions")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    options.out.mkdir(parents=True, exist_ok=True)
    images = torch.from_numpy(np.load(options.pairs / "pairs.npz")["images"]).permute(0, 3, 1, 2).contiguous()
    held = torch.arange(len(images)) % HELD_OUT == 0
    train, test = images[~held], images[held]
    network = LatentAutoencoder()
    network.start(train[::4].float() / 127.5 - 1)
    network = network.to(memory_format=torch.channels_last)
    optimiser = Muon(network.named_parameters(), plain=("mean", "project", "expand"))
    checkpoint = options.out / "autoencoder.pt"
    spent, step = 0.0, 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"], strict=False)
        optimiser.load(state["optimiser"])
        spent, step = state["spent"], state["step"]
    print(f"{len(train)} pictures, {len(test)} held out; {decibels(network, test):.2f} dB", flush=True)
    generator = torch.Generator().manual_seed(2 + step)
    began = reported = time.monotonic() - spent
    while (spent := time.monotonic() - began) < 60 * options.minutes:
        share = spent / (60 * options.minutes)
        rate = RATE * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * share))
        pictures = batch(train, torch.randint(len(train), (BATCH,), generator=generator), generator)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(network, pictures)
        network.zero_grad()
        value.backward()
        optimiser.step({name: tensor.grad for name, tensor in network.named_parameters()}, rate)
        step += 1
        if time.monotonic() - reported > REPORT:
            reported = time.monotonic()
            state = {"network": network.state_dict(), "optimiser": optimiser.state(), "spent": spent, "step": step}
            torch.save(state, f"{checkpoint}.part")
            os.replace(f"{checkpoint}.part", checkpoint)
            print(
                f"{spent:.0f} s, {step * BATCH} pictures, loss {value:.4f}, {decibels(network, test):.2f} dB",
                flush=True,
            )
    network.standardise(train[::4].float() / 127.5 - 1)
    weights = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    facts = {"pictures": str(step * BATCH), "held_out_db": f"{decibels(network, test):.2f}", "seconds": f"{spent:.0f}"}
    save_file(weights, options.out / "autoencoder.safetensors.part", facts)
    os.replace(options.out / "autoencoder.safetensors.part", options.out / "autoencoder.safetensors")
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
