from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data.decode import ImageSpec
from sfumato.data.release import Provenance, Samples
from sfumato.errors import UserError
from sfumato.measure import utility
from sfumato.measure.utility import evaluate, read_folder
from sfumato.nets.classifier import ConvNet

CLASSES = ("down", "across", "both")


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy lines on 12 x 12 pixels, anywhere: down, across or both."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 90, (count, 1, 12, 12)).astype(np.uint8)
    labels = np.arange(count) % 3
    for image, label, (x, y) in zip(pixels, labels, generator.integers(0, 12, (count, 2)), strict=True):
        if label != 1:
            image[0, :, x] += 150
        if label != 0:
            image[0, y, :] = 200
    return pixels, labels


def samples(count: int = 256, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Samples:
    return Samples(*pictures(count, seed), classes, None, Provenance("run", "test", {}))


def folder_of(place: Path, count: int = 90, seed: int = 1, classes: tuple[str, ...] = CLASSES) -> Path:
    for index, (image, label) in enumerate(zip(*pictures(count, seed), strict=True)):
        (place / classes[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(place / classes[label] / f"{index:03}.png")
    return place


@pytest.fixture(autouse=True)
def _short_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(utility, "LEAST", 5000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on images this small, threads wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def test_folder(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "test")


def test_the_cnn_learns_lines_that_pixels_alone_do_not_show(test_folder: Path) -> None:
    told: list[tuple[int, int]] = []
    cnn = evaluate(samples(), test_folder, "cnn", progress=lambda done, of: told.append((done, of)))
    logistic = evaluate(samples(), test_folder, "logistic")
    assert cnn.accuracy > 0.95
    assert 0.4 < logistic.accuracy < cnn.accuracy
    assert (cnn.classifier, logistic.classifier) == ("cnn", "logistic")
    assert (cnn.train_images, cnn.test_images) == (256, 90)
    assert set(cnn.per_class) == set(CLASSES)
    assert np.mean(list(cnn.per_class.values())) == pytest.approx(cnn.accuracy)
    assert cnn.seconds > 0
    assert told == [(done, 5000 // 128) for done in range(1, 5000 // 128 + 1)]


@pytest.mark.parametrize("classifier", ["cnn", "logistic"])
def test_the_recipe_is_fixed_and_leaves_the_callers_random_state_alone(test_folder: Path, classifier: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = evaluate(samples(60), test_folder, classifier)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = evaluate(samples(60), test_folder, classifier)  # type: ignore[arg-type]
    assert (first.accuracy, first.per_class) == (second.accuracy, second.per_class)


def test_labels_are_matched_by_class_name_and_not_by_number(test_folder: Path) -> None:
    given = samples()
    renamed = Samples(given.pixels, (given.labels + 1) % 3, ("both", "down", "across"), None, given.provenance)
    assert evaluate(renamed, test_folder, "cnn").accuracy > 0.9


def test_a_folder_with_metadata_is_trained_on_by_its_labels(test_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "release"
    (place / "images").mkdir(parents=True)
    lines = []
    for index, (image, label) in enumerate(zip(*pictures(256, 0), strict=True)):
        Image.fromarray(image[0]).save(place / "images" / f"{index}.png")
        lines.append(json.dumps({"file_name": f"images/{index}.png", "label": CLASSES[label]}) + "\n")
    (place / "metadata.jsonl").write_text("".join(lines))
    assert evaluate(place, test_folder, "cnn").accuracy > 0.95


def test_images_of_other_sizes_and_colours_are_brought_to_the_training_images_form(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "test")
    for path in place.glob("*/*.png"):
        with Image.open(path) as image:
            image.convert("RGB").resize((24, 24), Image.Resampling.NEAREST).save(path)
    assert evaluate(samples(), place, "cnn").accuracy > 0.9
    assert read_folder(place).pixels.shape == (90, 3, 24, 24)
    assert read_folder(place, ImageSpec(12, 12, 1)).pixels.shape == (90, 1, 12, 12)


def test_a_folder_is_read_in_the_order_of_names_without_what_is_unreadable(test_folder: Path) -> None:
    (test_folder / "down" / "zzz.png").write_bytes(b"no image")
    (test_folder / "loose.png").write_bytes((test_folder / "down" / "000.png").read_bytes())
    read = read_folder(test_folder)
    assert read.classes == ("across", "both", "down")
    assert np.bincount(read.labels).tolist() == [30, 30, 30]
    with Image.open(test_folder / "across" / "001.png") as image:
        assert (read.pixels[0, 0] == np.asarray(image)).all()


def test_the_predictions_of_logistic_regression_are_its_optimum() -> None:
    """At the minimum of summed loss plus half the squared weights, weights = sum of (truth - odds) x pixels."""
    pixels, labels = pictures(60, 3)
    known = utility.Labelled(pixels[:, :, :4, :4], labels, CLASSES)
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
    predict = utility._train_logistic(known, "cpu", lambda *_: None)
    assert (predict(known.pixels) == expected).mean() > 0.98
    assert len(set(expected)) > 1


def test_shifts_move_whole_images_and_repeat_the_border() -> None:
    torch.manual_seed(0)
    image = np.arange(3 * 30 * 40).reshape(3, 30, 40)
    batch = np.repeat(image[None], 200, 0)
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    expected = [padded[:, 1 + y : 31 + y, 1 + x : 41 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    kinds = [next(i for i, e in enumerate(expected) if (e == moved).all()) for moved in utility._shifted(batch)]
    assert set(kinds) == set(range(9))


@pytest.mark.parametrize("side", [8, 12, 28, 64, 130])
def test_the_network_takes_images_of_any_size(side: int) -> None:
    shape = 3, side, side // 2 if side > 12 else side
    network = ConvNet(shape, 7)
    assert network(torch.zeros(2, *shape)).shape == (2, 7)
    assert sum(parameter.numel() for parameter in network.parameters()) < 500_000


def test_the_network_takes_narrow_images() -> None:
    assert ConvNet((1, 4, 1024), 2)(torch.zeros(1, 1, 4, 1024)).shape == (1, 2)


def test_wrong_arguments_are_one_sentence(test_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'tree'"):
        evaluate(samples(), test_folder, "tree")  # type: ignore[arg-type]
    given = samples()
    with pytest.raises(UserError, match="no labels"):
        evaluate(Samples(given.pixels, None, None, None, given.provenance), test_folder, "cnn")
    with pytest.raises(UserError, match="of the classes a, b, c"):
        evaluate(samples(classes=("a", "b", "c")), test_folder, "cnn")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no readable images"):
        evaluate(samples(), tmp_path / "empty", "cnn")
    with pytest.raises(UserError, match="no readable images"):
        evaluate(tmp_path / "empty", test_folder, "cnn")
    (tmp_path / "large" / "down").mkdir(parents=True)
    Image.new("L", (513, 4)).save(tmp_path / "large" / "down" / "0.png")
    with pytest.raises(UserError, match="512"):
        evaluate(tmp_path / "large", test_folder, "cnn")
