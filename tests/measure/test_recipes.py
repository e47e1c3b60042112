from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.measure.lines import CLASSES, pictures

from sfumato.measure import recipes
from sfumato.measure.images import Labelled


def accuracy(classifier: recipes.ClassifierName) -> float:
    predict = recipes.train(classifier, Labelled(*pictures(256, 0), CLASSES), "cpu", lambda *_: None)
    pixels, labels = pictures(90, 1)
    return float((predict(pixels) == labels).mean())


def test_each_classifier_learns_what_it_can_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line is anywhere, so pixels alone tell little; networks that know neighbours tell all."""
    found = {}
    for name in recipes.CLASSIFIERS:
        monkeypatch.setattr(recipes, "LEAST", 7000 if name == "wrn" else 3000)
        found[name] = accuracy(name)
    assert found["cnn"] > 0.9
    assert found["wrn"] > 0.9
    assert 0.4 < found["logistic"] < min(found["mlp"], found["cnn"])


def test_images_shown_are_ten_rounds_but_not_fewer_nor_more_than_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(recipes, "BATCH", 16)
    monkeypatch.setattr(recipes, "LEAST", 320)
    monkeypatch.setattr(recipes, "MOST", {"mlp": 640})
    for count in (16, 48, 256):
        known = Labelled(*pictures(count, 0), CLASSES)
        recipes.train("mlp", known, "cpu", lambda done, of: steps.append(of))
        assert len(steps) == steps[-1]
        assert steps[-1] * 16 == {16: 320, 48: 480, 256: 640}[count]
        steps.clear()


def test_the_predictions_of_logistic_regression_are_its_optimum() -> None:
    """At the minimum of summed loss plus half the squared weights, weights = sum of (truth - odds) x pixels."""
    pixels, labels = pictures(60, 3)
    known = Labelled(pixels[:, :, :4, :4], labels, CLASSES)
    features = known.pixels.reshape(60, -1) / 255.0
    weights = torch.zeros(17, 3, dtype=torch.float64, requires_grad=True)
    inputs = torch.from_numpy(np.hstack((features, np.ones((60, 1)))))
    optimiser = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(inputs @ weights, torch.from_numpy(labels), reduction="sum")
        loss = loss + 0.5 * (weights[:-1] ** 2).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    expected = (inputs @ weights).argmax(1).numpy()
    predict = recipes.train("logistic", known, "cpu", lambda *_: None)
    assert (predict(known.pixels) == expected).mean() > 0.98
    assert len(set(expected)) > 1


def test_shifts_move_whole_images_and_repeat_the_border() -> None:
    torch.manual_seed(0)
    image = np.arange(3 * 30 * 40).reshape(3, 30, 40)
    batch = np.repeat(image[None], 200, 0)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    expected = [padded[:, 1 + y : 31 + y, 1 + x : 41 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    kinds = [next(i for i, e in enumerate(expected) if (e == moved).all()) for moved in recipes._shifted(batch)]
    assert set(kinds) == set(range(9))
