"""Downstream utility: train a classifier on one set of images, test it on another ("train on synthetic, test on real").

The figure is exact and protects nobody: whoever tests on private images takes a *look*, which the caller must put on
the ledger. The recipe is fixed: one seed, one schedule, the last weights. Nothing is chosen by its score on the test
images, because picking the best epoch or the best of several networks inflates a score and, on private images, costs
privacy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.optimize import minimize
from torch import Tensor

from sfumato.data.decode import FORMATS, ImageSpec, open_regular
from sfumato.data.folder import ImageFolder
from sfumato.data.release import Samples
from sfumato.errors import UserError
from sfumato.hardware import choose_hardware
from sfumato.nets.classifier import ConvNet

BATCH = 128
EPOCHS = 10  # but at least LEAST and at most MOST images are shown in all
LEAST, MOST = 100_000, 600_000
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-2  # AdamW; the rate is a triangle over the steps with its tip at WARMUP
WARMUP = 0.2
LABEL_SMOOTHING = 0.1
SHIFT = 1 / 28  # of the side, in both directions
SEED = 0
LOGISTIC_STEPS = 200
LOGISTIC_PENALTY = 1.0  # times half the squared weights, beside the summed loss (scikit-learn's C = 1)
LONGEST_SIDE = 512

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Utility:
    """How well a classifier did.

    Attributes:
        accuracy: share of test images classified correctly.
        per_class: the same by class name; classes without a test image are absent.
        train_images, test_images: images that were used. Exact counts, hence private if the images are.
        classifier: "cnn" or "logistic".
        seconds: wall time of training and testing.
    """

    accuracy: float
    per_class: dict[str, float]
    train_images: int
    test_images: int
    classifier: str
    seconds: float


class Labelled(NamedTuple):
    """Images with labels: pixels uint8 `(N, C, H, W)`, labels int64 `(N,)`, class names by label."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def evaluate(
    train: Path | Samples,
    test: Path,
    classifier: Literal["cnn", "logistic"],
    *,
    spec: ImageSpec | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Utility:
    """Trains a classifier on `train` and tests it on `test`.

    Args:
        train: a release, any folder of labelled images, or samples.
        test: a folder of labelled images with the same classes.
        classifier: "cnn" is `ConvNet`; "logistic" is multinomial logistic regression on pixels. Logistic regression
            hardly tells good images from blurred ones; quote both.
        spec: the shape all images are brought to; default: that of the first training image.
        device: of the CNN: "cpu", "cuda" or "auto".
        progress: told (steps done, steps in all) of training.

    Raises:
        UserError: unknown classifier, a folder without labelled images, or classes that differ.
    """
    if classifier not in ("cnn", "logistic"):
        raise UserError(f"There is no classifier {classifier!r}; give 'cnn' or 'logistic'.")
    if isinstance(train, Samples):
        if train.labels is None or train.classes is None:
            raise UserError("The training images have no labels, so no classifier can learn from them.")
        known = Labelled(train.pixels, train.labels, train.classes)
        spec = ImageSpec(known.pixels.shape[2], known.pixels.shape[3], known.pixels.shape[1])
    else:
        spec = spec or _spec_of(train)
        known = read_folder(train, spec)
    new = read_folder(test, spec)
    if set(known.classes) != set(new.classes):
        raise UserError(
            f"The training images are of the classes {', '.join(known.classes)}; the test images must be of just these."
        )
    began = time.monotonic()
    predict = {"cnn": _train_cnn, "logistic": _train_logistic}[classifier](known, device, progress or (lambda *_: None))
    guesses = predict(new.pixels)
    truth = np.array([known.classes.index(name) for name in new.classes])[new.labels]
    right = guesses == truth
    return Utility(
        accuracy=float(right.mean()),
        per_class={
            name: float(right[truth == label].mean()) for label, name in enumerate(known.classes) if label in truth
        },
        train_images=len(known.labels),
        test_images=len(new.labels),
        classifier=classifier,
        seconds=time.monotonic() - began,
    )


def read_folder(folder: Path, spec: ImageSpec | None = None) -> Labelled:
    """All images of a folder, such as a release, that can be read and have a label, in the order of their names.

    Args:
        folder: class sub-folders, or images with `metadata.jsonl`.
        spec: the shape all images are brought to; default: that of the first image.

    Raises:
        UserError: there are none.
    """
    spec = spec or _spec_of(folder)
    source = ImageFolder(folder)
    entries = [entry for entry in source.entries() if entry.label is not None]
    key = bytes(16)  # the digests are not used
    decoded = source.decode((entry.identity for entry in entries), spec, key)
    read = [
        (image.pixels, str(entry.label))
        for image, entry in zip(decoded, entries, strict=True)
        if image.pixels is not None
    ]
    if not read:
        raise UserError(f"There are no readable images with labels in {folder}.")
    classes = tuple(sorted({label for _, label in read}))
    number = {name: index for index, name in enumerate(classes)}
    return Labelled(np.stack([pixels for pixels, _ in read]), np.array([number[label] for _, label in read]), classes)


def _spec_of(folder: Path) -> ImageSpec:
    """The shape of the folder's first readable image."""
    for entry in ImageFolder(folder, workers=0).entries():
        try:
            with open_regular(Path(folder), entry.identity.split("/")) as file:
                image = Image.open(file, formats=FORMATS)
                width, height = image.size
                grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        if max(width, height) > LONGEST_SIDE:
            raise UserError(
                f"The images in {folder} have sides of more than {LONGEST_SIDE} pixels; name the shape to bring them "
                "to."
            )
        return ImageSpec(height, width, 1 if grey else 3)
    raise UserError(f"There are no readable images with labels in {folder}.")


Predictor = Callable[[np.ndarray], np.ndarray]


def _train_cnn(known: Labelled, device: str, progress: Progress) -> Predictor:
    """Trains `ConvNet` with the fixed recipe; returns what maps pixels to labels.

    Evaluation is public computation, so torch's own generator will do. The caller's random state is left as it was.
    """
    place, precision = choose_hardware(device)
    count, channels, height, width = known.pixels.shape
    batch = min(BATCH, count)
    steps = min(max(EPOCHS * count, LEAST), MOST) // batch
    mean, deviation = float(known.pixels.mean()) / 255, max(float(known.pixels.std()) / 255, 1e-3)

    def inputs(pixels: np.ndarray) -> Tensor:
        # Channels last, without which processors are not faster in bf16.
        images: Tensor = (torch.from_numpy(pixels).to(place).float() / 255 - mean) / deviation
        return images.contiguous(memory_format=torch.channels_last)

    def logits(images: Tensor) -> Tensor:
        with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
            output: Tensor = network(images).float()
        return output

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = ConvNet((channels, height, width), len(known.classes)).to(place)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
        optimiser = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min((step + 1) / (WARMUP * steps), (steps - step) / ((1 - WARMUP) * steps), 1.0)
        )
        labels = torch.from_numpy(known.labels)
        order = torch.empty(0, dtype=torch.long)
        for step in range(steps):
            if len(order) < batch:
                order = torch.randperm(count)
            chosen, order = order[:batch], order[batch:]
            images = _shifted(known.pixels[chosen.numpy()])
            loss = F.cross_entropy(logits(inputs(images)), labels[chosen].to(place), label_smoothing=LABEL_SMOOTHING)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            progress(step + 1, steps)
    network.eval()

    @torch.inference_mode()
    def predict(pixels: np.ndarray) -> np.ndarray:
        parts = [logits(inputs(pixels[start : start + 500])).argmax(1).cpu() for start in range(0, len(pixels), 500)]
        guesses: np.ndarray = torch.cat(parts).numpy()
        return guesses

    return predict


def _shifted(pixels: np.ndarray) -> np.ndarray:
    """Moves each image `(C, H, W)` of a batch by its own random number of pixels; its border moves in."""
    count, _, height, width = pixels.shape
    reach = max(1, round(SHIFT * max(height, width)))
    moves = torch.randint(-reach, reach + 1, (2, count, 1)).numpy()
    rows = np.clip(np.arange(height) + moves[0], 0, height - 1)
    columns = np.clip(np.arange(width) + moves[1], 0, width - 1)
    which = np.arange(count)[:, None, None]
    moved: np.ndarray = pixels.transpose(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None]]
    return moved.transpose(0, 3, 1, 2)


def _train_logistic(known: Labelled, device: str, progress: Progress) -> Predictor:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS from zero; returns what maps pixels to labels."""
    features = _flat(known.pixels)
    truth = np.eye(len(known.classes), dtype=np.float32)[known.labels]
    shape = (features.shape[1] + 1, len(known.classes))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        scores = (features @ weights[:-1].astype(np.float32) + weights[-1].astype(np.float32)).astype(np.float64)
        scores -= scores.max(1, keepdims=True)
        odds = np.exp(scores)
        sums = odds.sum(1, keepdims=True)
        loss = (np.log(sums) - (scores * truth).sum(1, keepdims=True)).sum()
        miss = (odds / sums - truth).astype(np.float32)
        gradient = np.vstack((features.T @ miss + LOGISTIC_PENALTY * weights[:-1], miss.sum(0)))
        penalty = LOGISTIC_PENALTY / 2 * (weights[:-1] ** 2).sum()
        # A mean instead of a sum: the optimiser's tolerances then mean the same for sets of any size.
        return float(loss + penalty) / len(features), gradient.ravel() / len(features)

    done = 0

    def one_more(_: np.ndarray) -> None:
        nonlocal done
        done += 1
        progress(done, LOGISTIC_STEPS)

    found = minimize(
        objective,
        np.zeros(shape[0] * shape[1]),
        jac=True,
        method="L-BFGS-B",
        callback=one_more,
        options={"maxiter": LOGISTIC_STEPS},
    )
    weights = found.x.reshape(shape)
    return lambda pixels: np.asarray((_flat(pixels) @ weights[:-1] + weights[-1]).argmax(1))


def _flat(pixels: np.ndarray) -> np.ndarray:
    """Pixels as rows of numbers from 0 to 1."""
    return pixels.reshape(len(pixels), -1).astype(np.float32) / 255
