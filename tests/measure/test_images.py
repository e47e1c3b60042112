from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.measure.lines import folder_of, pictures

from sfumato.data.decode import ImageSpec
from sfumato.errors import UserError
from sfumato.measure.images import read_folder, read_images, spec_of


def test_a_folder_is_read_in_the_order_of_names_without_what_is_unreadable(test_folder: Path) -> None:
    (test_folder / "down" / "zzz.png").write_bytes(b"no image")
    (test_folder / "loose.png").write_bytes((test_folder / "down" / "000.png").read_bytes())
    read = read_folder(test_folder)
    assert read.classes == ("across", "both", "down")
    assert np.bincount(read.labels).tolist() == [30, 30, 30]
    with Image.open(test_folder / "across" / "001.png") as image:
        assert (read.pixels[0, 0] == np.asarray(image)).all()


def test_some_classes_and_some_images_always_the_same(test_folder: Path) -> None:
    whole = read_folder(test_folder)
    some = read_folder(test_folder, classes=("both", "down", "nothing"), limit=20)
    assert some.classes == ("both", "down")
    assert 2 < (some.labels == 0).sum() < 18
    assert np.array_equal(some.pixels, read_folder(test_folder, classes=("both", "down"), limit=20).pixels)
    wanted = {image.tobytes() for image in whole.pixels[whole.labels > 0]}
    assert len({image.tobytes() for image in some.pixels} & wanted) == 20
    assert len(read_folder(test_folder, limit=1000).labels) == 90
    with pytest.raises(UserError, match="of the classes nothing"):
        read_folder(test_folder, classes=("nothing",))


def test_labels_are_renumbered_by_class_name(test_folder: Path) -> None:
    read = read_folder(test_folder)
    other = read.numbered(("down", "nothing", "both", "across"))
    assert [other.classes[label] for label in other.labels] == [read.classes[label] for label in read.labels]
    assert np.bincount(other.labels).tolist() == [30, 0, 30, 30]


def test_images_stream_in_an_order_that_mixes_classes_past_what_is_unreadable(test_folder: Path) -> None:
    for index in range(40):
        (test_folder / "down" / f"broken-{index}.png").write_bytes(b"no image")
    (test_folder / "loose.png").write_bytes((test_folder / "down" / "000.png").read_bytes())
    spec = ImageSpec(12, 12, 1)
    first = list(read_images(test_folder, spec, 60))
    assert len(first) == 60
    assert all(np.array_equal(one, other) for one, other in zip(first, read_images(test_folder, spec, 60), strict=True))
    labels = {image.tobytes(): label for image, label in zip(*pictures(90, 1), strict=True)}
    counts = np.bincount([labels[image.tobytes()] for image in first], minlength=3)
    assert counts.min() >= 10
    assert len(list(read_images(test_folder, spec, 1000))) == 91
    assert next(read_images(test_folder, ImageSpec(20, 30, 3), 1)).shape == (3, 20, 30)


def test_the_shape_of_a_folder_is_that_of_its_first_image(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "test", 3)
    assert spec_of(place) == ImageSpec(12, 12, 1)
    Image.new("RGB", (600, 20)).save(place / "across" / "000.png")
    with pytest.raises(UserError, match="512"):
        spec_of(place)
    assert spec_of(place, longest=600) == ImageSpec(20, 600, 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no readable images"):
        spec_of(tmp_path / "empty")
