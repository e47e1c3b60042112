"""Trains the flow transformer of the offline generator.

    python training/generator.py PAIRS OUT --minutes 90 [--workers 2]

`OUT` holds what `autoencoder.py` and `material.py` wrote. Each worker is a process with one thread. Workers share
the weights and the optimiser's state: one computes a gradient from weights that the other may have stepped meanwhile,
which at two workers costs nothing and lets neither wait for the other. Every two minutes all is written to
`OUT/generator.pt`, from which an interrupted run goes on.

What a batch shows: most drawings beside a neighbour, which is the same drawing in other colours or blurred ("variant")
or another drawing of the same thing ("kind"), and some alone. Text, colour word and style say what is wanted and are
left out at times, for guidance (Ho and Salimans 2022, "Classifier-free diffusion guidance").
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from material import read_pairs
from numpy.typing import NDArray
from optimiser import Muon
from torch import Tensor, nn
from torch import multiprocessing as processes

from sfumato.nets.flow import RELATIONS, Condition, FlowShape, FlowTransformer
from sfumato.pretrained._memory import STYLES

SHAPE = FlowShape(width=192, layers=6, heads=3)
BATCH = 64
RATE = 0.02
WARMTH = 100  # steps
DECAYING = 0.4  # the last share of the time, in which the rate falls to nothing
AVERAGE = 0.996
SAVED = 120  # seconds between two checkpoints
WEIGHTS = {
    "symbol": 0.2,
    "sign": 0.25,
    "computer": 0.25,
    "shape": 0.4,
    "people": 0.45,
    "special": 0.4,
    "geography": 0.5,
}
NONE, VARIANT, KIND = (RELATIONS.index(name) for name in ("none", "variant", "kind"))
RELATED = (0.04, 0.9, 0.06)  # how often each relation is shown
REPAINTED = 0.7  # share of variants in another colour, where there is one
UNGUIDED = 0.1
BLUR = (0.05, 0.5)  # noise on a neighbour, least and most


class Material:
    """All that batches are drawn from.

    Args:
        pairs: folder of the pairs.
        folder: of `texts.npz` and `latents.npz`.
    """

    def __init__(self, pairs: Path, folder: Path) -> None:
        _, rows = read_pairs(pairs)
        texts, pictures = np.load(folder / "texts.npz"), np.load(folder / "latents.npz")
        self.vectors = torch.from_numpy(texts["vectors"].astype(np.float32))
        self.texts = np.concatenate((texts["titles"][:, None], texts["captions"][:, None], texts["singles"]), 1)
        self.near: NDArray[np.int32] = texts["neighbours"]
        self.latents = torch.from_numpy(pictures["latents"])
        self.colours: NDArray[np.int8] = pictures["colour"]
        self.forms: NDArray[np.int8] = pictures["form"]
        self.styles = np.array([1 + STYLES.index(row["source"]) for row in rows])
        self.first = np.searchsorted(pictures["item"], np.arange(len(rows)))
        self.count = np.append(self.first[1:], len(self.colours)) - self.first
        self.partners = Partners(pictures["item"], self.forms, pictures["latents"], self.first)
        weights = np.ones(len(rows))
        for number, row in enumerate(rows):
            if row.get("drop"):
                weights[number] = 0.0
                continue
            weights[number] = next((weight for word, weight in WEIGHTS.items() if word in row["category"]), 1.0)
        self.order = np.cumsum(weights / weights.sum())

    def batch(self, size: int, random: np.random.Generator) -> tuple[Tensor, Condition]:
        """Latents `(size, 24, 8, 8)` and what is told about them."""
        items = np.searchsorted(self.order, random.random(size)).clip(max=len(self.order) - 1)
        targets = self.first[items] + random.integers(self.count[items])
        near = self.near[items, random.integers(self.near.shape[1], size=size)]
        relation = random.choice(len(RELATIONS), size, p=RELATED)
        relation = np.where((relation == KIND) & (near < 0), VARIANT, relation)
        others = np.where(relation == KIND, near, items)
        shown = self.first[others] + random.integers(self.count[others])
        shown = np.where(relation == VARIANT, self.partners.draw(targets, random), shown)
        column = random.choice(5, size, p=(0.5, 0.2, 0.1, 0.1, 0.1))
        text = self.texts[items, column]
        text = np.where(text < 0, self.texts[items, 0], text)
        known = self.colours[targets].astype(np.int64)
        differs = (known != self.colours[shown]) & (relation != NONE)
        # Whether a drawing changes its colour is no guess: where it does so, the new one is told.
        told = np.where(differs, np.where(relation == VARIANT, 1.0, 0.9), 0.5)
        colour = np.where(random.random(size) < told, known, 0)
        style = np.where(random.random(size) < 0.8, self.styles[items], 0)
        silent = random.random(size) < UNGUIDED
        vectors = self.vectors[text]
        vectors[torch.from_numpy(silent | (random.random(size) < 0.05))] = 0
        neighbour = self.latents[shown].float()
        # A drawing beside itself is blurred, more or less, so that there is something to learn.
        blur = np.where(shown == targets, random.uniform(BLUR[0], BLUR[1], size), BLUR[0]).astype(np.float32)
        neighbour += torch.from_numpy(blur[:, None, None, None] * random.standard_normal(neighbour.shape, np.float32))
        neighbour[torch.from_numpy(relation == NONE)] = 0
        condition = Condition(
            vectors,
            torch.from_numpy(np.where(silent, 0, colour)),
            torch.from_numpy(np.where(silent, 0, style)),
            torch.from_numpy(relation),
            neighbour,
        )
        return self.latents[targets].float(), condition


class Partners:
    """Which altered pictures show one drawing in one place, so that they differ by colour alone.

    Args:
        item: the drawing of each picture, ascending.
        form: as `material.py` writes it; the first two pictures of a drawing are itself and its mirror image.
        latents: of each picture.
        first: the first picture of each drawing.
    """

    def __init__(
        self, item: NDArray[np.int32], form: NDArray[np.int8], latents: NDArray[np.float16], first: NDArray[np.int64]
    ) -> None:
        place = form.astype(np.int64)
        place[form == 2] += np.flatnonzero(form == 2) % 4
        for row in np.flatnonzero(form == 3):  # a repainted picture may be mirrored too
            upright, mirrored = latents[first[item[row]] : first[item[row]] + 2].astype(np.float32)
            given = latents[row].astype(np.float32)
            place[row] = ((given - mirrored) ** 2).sum() < ((given - upright) ** 2).sum()
        self.order = np.lexsort((place, item))
        key = item[self.order] * 8 + place[self.order]
        begins = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
        sizes = np.diff(np.append(begins, len(key)))
        self.begin, self.size, self.at = (np.empty(len(key), np.int64) for _ in range(3))
        self.begin[self.order] = np.repeat(begins, sizes)
        self.size[self.order] = np.repeat(sizes, sizes)
        self.at[self.order] = np.arange(len(key)) - np.repeat(begins, sizes)

    def draw(self, rows: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        """Another picture of the same place for each row, or the row itself."""
        size, share = self.size[rows], random.random(len(rows))
        step = np.where(share < REPAINTED, 1 + random.integers(np.maximum(size - 1, 1)), 0)
        return self.order[self.begin[rows] + (self.at[rows] + step) % size]


def loss(network: nn.Module, latents: Tensor, condition: Condition, random: np.random.Generator) -> Tensor:
    """Mean squared error of the velocity (Lipman et al. 2023), times as in Esser et al. 2024: logit-normal."""
    size = len(latents)
    time_ = 1 / (1 + np.exp(-random.standard_normal(size, np.float32)))
    time_ = np.where(random.random(size) < 0.1, random.random(size, np.float32), time_)
    times = torch.from_numpy(time_)
    noise = torch.from_numpy(random.standard_normal(latents.shape, np.float32))
    mixed = torch.lerp(noise, latents, times[:, None, None, None])
    kind = next(network.parameters()).dtype
    given = condition._replace(text=condition.text.to(kind), neighbour=condition.neighbour.to(kind))
    found = network(mixed.to(kind), times, given)
    return ((found.float() - (latents - noise)) ** 2).mean()


class Shared:
    """Weights, their moving average, the optimiser's state and the clock, in memory that all workers share."""

    def __init__(self, network: nn.Module) -> None:
        self.weights = {name: tensor.detach().clone() for name, tensor in network.named_parameters()}
        self.average = {name: tensor.clone() for name, tensor in self.weights.items()}
        plain = ("place", "table", "colour", "style", "relation", "inlet", "outlet", "film", "context", "condition")
        self.optimiser = Muon(self.weights.items(), plain)
        self.clock = torch.zeros(3, dtype=torch.float64)  # seconds, steps, sum of recent losses
        for tensors in (self.weights, self.average, self.optimiser.first, self.optimiser.second):
            for tensor in tensors.values():
                tensor.share_memory_()
        self.clock.share_memory_()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        self.optimiser.steps = int(self.clock[1])
        return {
            "weights": self.weights,
            "average": self.average,
            "optimiser": self.optimiser.state(),
            "clock": self.clock,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        for kept, given in ((self.weights, state["weights"]), (self.average, state["average"])):
            for name, tensor in kept.items():
                tensor.copy_(given[name])
        self.optimiser.load(state["optimiser"])
        self.clock.copy_(state["clock"])


def rate(share: float, steps: float) -> float:
    """The learning rate after a share of the time."""
    falling = min(1.0, (1 - share) / DECAYING)
    return RATE * min(1.0, (steps + 1) / WARMTH) * max(falling, 0.0)


def work(number: int, options: argparse.Namespace, shared: Shared, lock: Any, began: float) -> None:
    """One worker, until the time is up."""
    torch.set_num_threads(1)
    material = Material(options.pairs, options.out)
    random = np.random.default_rng([7, number, int(shared.clock[1])])
    network = FlowTransformer(SHAPE).bfloat16()
    ours = dict(network.named_parameters())
    saved = time.monotonic()
    while (spent := time.monotonic() - began) < 60 * options.minutes:
        with lock, torch.no_grad():
            for name, tensor in ours.items():
                tensor.copy_(shared.weights[name])
        value = loss(network, *material.batch(BATCH, random), random)
        network.zero_grad()
        value.backward()
        gradients = {name: tensor.grad for name, tensor in ours.items() if tensor.grad is not None}
        with lock, torch.no_grad():
            steps = float(shared.clock[1])
            shared.optimiser.steps = int(steps)
            shared.optimiser.step(gradients, rate(spent / (60 * options.minutes), steps))
            keep = min(AVERAGE, (steps + 1) / (steps + 10))
            for name, tensor in shared.average.items():
                tensor.lerp_(shared.weights[name], 1 - keep)
            shared.clock[0], shared.clock[1] = spent, steps + 1
            shared.clock[2] = float(value) if steps == 0 else 0.99 * shared.clock[2] + 0.01 * float(value)
            if number == 0 and time.monotonic() - saved > SAVED:
                saved = time.monotonic()
                save(shared, options.out)
                print(
                    f"{spent:.0f} s, {int(steps + 1) * BATCH} pictures, loss {float(shared.clock[2]):.4f}",
                    flush=True,
                )


def save(shared: Shared, folder: Path) -> None:
    """Writes a checkpoint, whole or not at all."""
    torch.save(shared.state(), folder / "generator.pt.part")
    os.replace(folder / "generator.pt.part", folder / "generator.pt")


def main() -> None:
    """Trains until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder of pairs.npz and pairs.jsonl")
    parser.add_argument("out", type=Path, help="folder of latents.npz and texts.npz, and for the weights")
    parser.add_argument("--minutes", type=float, default=90, help="of training, over all resumptions")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(3)
    torch.set_num_threads(1)
    shared = Shared(FlowTransformer(SHAPE))
    if (options.out / "generator.pt").exists():
        shared.load(torch.load(options.out / "generator.pt", weights_only=True))
    began = time.monotonic() - float(shared.clock[0])
    context = processes.get_context("fork")
    lock = context.Lock()
    workers = [context.Process(target=work, args=(i, options, shared, lock, began)) for i in range(options.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a worker failed; run this again to go on from the last checkpoint")
    save(shared, options.out)
    print(f"done: {int(shared.clock[1]) * BATCH} pictures, loss {float(shared.clock[2]):.4f}", flush=True)


if __name__ == "__main__":
    main()
