"""How the classifiers that measure utility are trained: four fixed recipes, one seed, the last weights.

Nothing is chosen by a score. Evaluation is public computation, so torch's own generator will do; the caller's random
state is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from sfumato.hardware import choose_hardware
from sfumato.measure.images import Labelled
from sfumato.nets.classifier import ConvNet, Perceptron, WideResNet

BATCH = 128
EPOCHS = 10  # but at least LEAST and at most MOST images are shown in all
LEAST = 100_000
MOST = {"mlp": 600_000, "cnn": 600_000, "wrn": 300_000}
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-2  # AdamW; the rate is a triangle over the steps with its tip at WARMUP
WARMUP = 0.2
LABEL_SMOOTHING = 0.1
SHIFT = 1 / 28  # of the side, in both directions
SEED = 0
LOGISTIC_STEPS = 200
LOGISTIC_PENALTY = 1.0  # times half the squared weights, beside the summed loss (scikit-learn's C = 1)

ClassifierName = Literal["logistic", "mlp", "cnn", "wrn"]
CLASSIFIERS: tuple[ClassifierName, ...] = ("logistic", "mlp", "cnn", "wrn")
NETWORKS: dict[str, type[nn.Sequential]] = {"mlp": Perceptron, "cnn": ConvNet, "wrn": WideResNet}

Progress = Callable[[int, int], None]
"""Told (steps done, steps in all) of training."""

Predictor = Callable[[np.ndarray], np.ndarray]
"""Maps pixels, uint8 `(N, C, H, W)`, to labels `(N,)`."""


def train(classifier: ClassifierName, known: Labelled, device: str, progress: Progress) -> Predictor:
    """Trains a classifier by its recipe.

    Args:
        classifier: "logistic" is multinomial logistic regression on pixels; "mlp", "cnn" and "wrn" are the networks
            `Perceptron`, `ConvNet` and `WideResNet`.
        known: what to learn.
        device: of the networks: "cpu", "cuda" or "auto".
        progress: told how far training is.
    """
    if classifier == "logistic":
        return _train_logistic(known, progress)
    return _train_network(NETWORKS[classifier], MOST[classifier], known, device, progress)


def _train_network(
    kind: Callable[..., nn.Sequential], most: int, known: Labelled, device: str, progress: Progress
) -> Predictor:
    """AdamW, one triangle of the learning rate, label smoothing, shifted images; at most `most` images shown."""
    place, precision = choose_hardware(device)
    count, channels, height, width = known.pixels.shape
    batch = min(BATCH, count)
    steps = min(max(EPOCHS * count, LEAST), most) // batch
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
        network = kind((channels, height, width), len(known.classes)).to(place)
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


def _train_logistic(known: Labelled, progress: Progress) -> Predictor:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS from zero."""
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
