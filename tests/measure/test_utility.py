from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.measure.lines import CLASSES, folder_of, pictures, samples

from sfumato.data.decode import ImageSpec
from sfumato.data.release import Samples
from sfumato.errors import UserError
from sfumato.measure.utility import Labelled, Utility, UtilityTable, evaluate, read_folder, utility_table


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


@pytest.mark.parametrize("classifier", ["cnn", "logistic", "mlp"])
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


def test_a_table_holds_every_classifier_its_mean_its_maximum_and_the_real_reference(test_folder: Path) -> None:
    told: set[str] = set()
    real = folder_of(test_folder.parent / "real", 240, seed=3)
    spoilt = samples(120)
    spoilt.labels[::2] = 0  # half of it is mislabelled: worse than real images
    table = utility_table(
        spoilt, test_folder, real, classifiers=("logistic", "mlp"), progress=lambda what, *_: told.add(what)
    )
    synthetic = [one.accuracy for one in table.synthetic]
    alone = [evaluate(spoilt, test_folder, name).accuracy for name in ("logistic", "mlp")]
    assert synthetic == alone
    assert (table.mean, table.maximum) == (pytest.approx(np.mean(alone)), max(alone))
    assert [one.classifier for one in table.real] == ["logistic", "mlp"]
    assert table.real_mean == np.mean([one.accuracy for one in table.real]) > table.mean
    assert table.real_maximum == max(one.accuracy for one in table.real)
    assert {one.train_images for one in table.synthetic} == {120}
    assert {one.train_images for one in table.real} == {240}
    assert {one.test_images for one in (*table.synthetic, *table.real)} == {90}
    assert told == {f"{name} on {what} images" for name in ("logistic", "mlp") for what in ("synthetic", "real")}
    assert json.loads(json.dumps(table.to_json()))["real_mean"] == table.real_mean
    text = str(table)
    assert all(word in text for word in ("120", "240", "90", f"{table.mean:.2%}", f"{table.real_maximum:.2%}"))


def test_a_table_without_real_images_says_nothing_of_them() -> None:
    table = UtilityTable(tuple(Utility(x, {}, 7, 5, "cnn", 1.0) for x in (0.5, 0.7)))
    assert (table.mean, table.maximum, table.real_mean, table.real_maximum) == (pytest.approx(0.6), 0.7, None, None)
    assert "real" not in json.dumps(table.to_json())
    assert "real" not in str(table)


def test_wrong_arguments_are_one_sentence(test_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'tree'"):
        evaluate(samples(), test_folder, "tree")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cnn, tree"):
        utility_table(samples(), test_folder, classifiers=("cnn", "tree"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="none"):
        utility_table(samples(), test_folder, classifiers=())
    given = samples()
    with pytest.raises(UserError, match="no labels"):
        evaluate(Samples(given.pixels, None, None, None, given.provenance), test_folder, "cnn")
    with pytest.raises(UserError, match="of the classes a, b, c"):
        evaluate(samples(classes=("a", "b", "c")), test_folder, "cnn")
    with pytest.raises(UserError, match="one shape"):
        evaluate(given, Labelled(given.pixels[:, :, :8], given.labels, CLASSES), "cnn")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no readable images"):
        evaluate(samples(), tmp_path / "empty", "cnn")
    with pytest.raises(UserError, match="no readable images"):
        evaluate(tmp_path / "empty", test_folder, "cnn")
    (tmp_path / "large" / "down").mkdir(parents=True)
    Image.new("L", (513, 4)).save(tmp_path / "large" / "down" / "0.png")
    with pytest.raises(UserError, match="512"):
        evaluate(tmp_path / "large", test_folder, "cnn")
