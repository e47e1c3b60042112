"""What the label check's features are worth beside simpler ones, under the noise that it learns with.

    python bench/labelcheck.py

Linear classifiers of the letters of bench/standin.py: 60,000 to learn from, 10,000 in other fonts to be tested on. Each
learns as the label check does, with the share of the budget that the label check would get, five times. The letters are
public, so the noise of private training is drawn here, and nothing is charged.

Last line: {"epsilon 10 all raw": .., "epsilon 10 first order raw": .., ..}, mean accuracies.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from cells import run
from fashion_mnist import SCRATCH
from standin import make_set
from torch import Tensor

from sfumato.data.decode import ImageSpec
from sfumato.data.public import PublicImages
from sfumato.measure.utility import read_folder
from sfumato.methods.labelcheck import LABEL_CHECK, LabelCheckConfig, _Learner, _rate, filled_up
from sfumato.nets.scattering import DIRECTIONS, ScatteringClassifier
from sfumato.privacy._mechanisms import Training
from sfumato.privacy._search import noise_for
from sfumato.privacy.accounting import gaussian_mu
from sfumato.privacy.plan import TrainingTouch

IMAGE, CLASSES, SIZE, DELTA = (1, 28, 28), 10, 60_000, 1e-5
EPSILONS = (10.0, 1.0)
TIMES = 5
FEATURES = ("first order raw", "all raw", "directions of dead leaves", "directions of public images")
_CHUNK, _SMALLEST = 500, 0.01


def classifier(features: str) -> ScatteringClassifier:
    """Untaught; "raw" ones see features as they are."""
    found = ScatteringClassifier(IMAGE, CLASSES)
    if features.startswith("directions"):
        known = torch.empty(0, *IMAGE, dtype=torch.uint8)
        if features.endswith("public images"):
            images = PublicImages(SCRATCH / "data" / "cutouts", SCRATCH / "data" / "shapes", ground="dark")
            known = torch.from_numpy(images.read(ImageSpec(IMAGE[1], IMAGE[2], IMAGE[0])).pixels)
        found.look_at((part / 127.5 - 1 for part in torch.split(filled_up(known, seed=0), _CHUNK)), seed=0)
        return found
    dimensions, places = found.features.dimensions, math.prod(found.features.cells)
    chosen = torch.arange(dimensions)
    if features.startswith("first order"):  # brightness and finest edges come first, coarser edges last
        chosen = torch.cat((chosen[: (1 + DIRECTIONS) * places], chosen[-DIRECTIONS * places :]))
    found.directions = torch.eye(dimensions)[:, chosen]
    found.head = torch.nn.Linear(len(chosen), CLASSES)
    return found


@torch.inference_mode()
def seen(model: ScatteringClassifier, split: str) -> tuple[Tensor, Tensor]:
    """What the linear layer sees of the letters, and their labels."""
    letters = read_folder(make_set() / split)
    parts: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, given: parts.append(given[0]))
    for part in torch.split(torch.from_numpy(letters.pixels), _CHUNK):
        model(part / 127.5 - 1)
    hook.remove()
    return torch.cat(parts), torch.from_numpy(letters.labels)


def measure(features: str, epsilon: float) -> dict[str, Any]:
    """Accuracies on the test letters."""
    mu = gaussian_mu(epsilon, DELTA)
    config = LabelCheckConfig().settled(IMAGE, CLASSES, SIZE, mu)
    rate, share = config.sampling_rate(SIZE), config.share or 0.0
    noise = noise_for(Training(1.0, rate, config.steps), mu * math.sqrt(share))
    touch = TrainingTouch(LABEL_CHECK, rate, config.steps, noise, clip_norm=1.0, rows=1, slack=0.0)
    model = classifier(features)
    (inputs, labels), (test, right) = seen(model, "train"), seen(model, "test")
    found = []
    for number in range(TIMES):
        generator = torch.Generator().manual_seed(number)
        for parameter in model.head.parameters():
            torch.nn.init.zeros_(parameter)
        descent = _rate(touch, rate * SIZE, sum(map(torch.numel, model.head.parameters())))
        learner = _Learner(model.requires_grad_(True), descent, touch.steps, Tensor.float)
        for step in range(1, touch.steps + 1):
            batch = torch.rand(SIZE, generator=generator) < rate
            learner.update(_private_gradient(model, inputs[batch], labels[batch], touch, generator), step)
        guessed = learner.finished().head(test).argmax(1)
        found.append(round(float((guessed == right).float().mean()), 4))
    return {"accuracies": found, "share": share, "noise_multiplier": noise, "coordinates": inputs.shape[1]}


@torch.no_grad()
def _private_gradient(
    model: ScatteringClassifier, inputs: Tensor, labels: Tensor, touch: TrainingTouch, generator: torch.Generator
) -> dict[str, Tensor]:
    """Each record's gradient at the same norm, noise on the sum, over the expected batch."""
    errors = model.head(inputs).softmax(1) - F.one_hot(labels, CLASSES)
    norms = errors.norm(dim=1) * (inputs.square().sum(1) + 1).sqrt()
    errors /= (norms + _SMALLEST)[:, None]
    sums = {"head.weight": errors.T @ inputs, "head.bias": errors.sum(0)}
    return {
        name: (total + touch.noise_multiplier * torch.randn(total.shape, generator=generator))
        / (touch.sampling_rate * SIZE)
        for name, total in sums.items()
    }


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """One a kind of features and an epsilon."""
    return {
        f"epsilon {epsilon:g} {features}": partial(measure, features, epsilon)
        for epsilon in EPSILONS
        for features in FEATURES
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Means of the five."""
    return {name: round(sum(cell["accuracies"]) / len(cell["accuracies"]), 4) for name, cell in found.items()}


if __name__ == "__main__":
    run("labelcheck", cells, summary, settings={"records": SIZE, "delta": DELTA, "times": TIMES})
