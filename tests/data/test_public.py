"""Public folders: read at the shape of the run, named by their hash, kept apart from private ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.decode import ImageSpec
from sfumato.data.public import PublicIdentity, PublicImages, to_facts
from sfumato.errors import UserError

SPEC = ImageSpec(8, 8, 1)


def folder(root: Path, *, light: bool = True, labels: bool = True) -> Path:
    """Four pictures: a square on its ground, in colour."""
    for number in range(4):
        picture = np.full((12, 12, 3), 250 if light else 5, np.uint8)
        picture[3:9, 3:9] = (40, 90, 200) if light else (200, 220, 180)
        picture[4 + number, 4] = 0
        place = root / "ab"[number % 2] if labels else root
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{number}.png")
    return root


def test_pictures_come_at_the_shape_of_the_run(tmp_path: Path) -> None:
    images = PublicImages(folder(tmp_path / "p"))
    found = images.read(SPEC)
    assert found.pixels.shape == (4, 1, 8, 8)
    assert found.pixels.dtype == np.uint8
    assert found.classes == ("a", "b") == images.classes()
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.pixels[:, 0, 0, 0].min() > 200
    assert images.read(ImageSpec(8, 12, 3)).pixels.shape == (4, 3, 8, 12)


@pytest.mark.parametrize(("ground", "corner"), [("dark", 5), ("light", 250)])
def test_pictures_come_on_one_ground(ground: str, corner: int, tmp_path: Path) -> None:
    both = PublicImages(folder(tmp_path / "l"), folder(tmp_path / "d", light=False), ground=ground)  # type: ignore[arg-type]
    found = both.read(SPEC)
    assert np.abs(found.pixels[:, 0, 0, 0].astype(int) - corner).max() <= 1
    assert found.classes == ("1/a", "1/b", "2/a", "2/b")
    middle, edge = found.pixels[:, 0, 4, 4].astype(int), found.pixels[:, 0, 0, 0].astype(int)
    assert (np.abs(middle - edge) > 50).all(), "the picture itself is inverted with its ground"


def test_a_picture_is_fitted_as_asked(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    wide = np.zeros((8, 24, 3), np.uint8)
    Image.fromarray(wide).save(tmp_path / "p" / "wide.png")
    assert PublicImages(tmp_path / "p").read(SPEC).pixels.max() == 0
    assert PublicImages(tmp_path / "p", fit="pad").read(SPEC).pixels[0, 0, 0].min() == 255


def test_unlabelled_and_unreadable(tmp_path: Path) -> None:
    place = folder(tmp_path / "p", labels=False)
    (place / "broken.png").write_bytes(b"no picture")
    images = PublicImages(place)
    found = images.read(SPEC)
    assert found.labels is None
    assert found.classes == () == images.classes()
    assert len(found.pixels) == 4
    assert PublicImages(place, folder(tmp_path / "q")).read(SPEC).labels is None


def test_an_identity_is_all_that_is_read(tmp_path: Path) -> None:
    place = folder(tmp_path / "p")
    (before,) = PublicImages(place).identities()
    assert (before.name, before.images, before.licences) == (None, 4, ())
    assert "not stated" in str(before)
    (place / "SOURCE.json").write_text(json.dumps({"name": "squares"}))
    lines = [
        {"file_name": f"{'ab'[number % 2]}/{number}.png", "licence": ["CC0-1.0", "OFL-1.1"][number % 2]}
        for number in range(4)
    ]
    (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (after,) = PublicImages(place).identities()
    assert (after.name, after.licences) == ("squares", ("CC0-1.0", "OFL-1.1"))
    assert after.sha256 == before.sha256
    assert PublicIdentity.from_json(json.loads(json.dumps(to_facts([after])))[0]) == after
    assert "'squares'" in str(after)
    assert "CC0-1.0; OFL-1.1" in str(after)
    assert str(tmp_path) not in str(after)
    Image.new("L", (9, 9)).save(place / "a" / "0.png")
    assert PublicImages(place).identities()[0].sha256 != before.sha256
    (place / "a" / "0.png").rename(place / "a" / "00.png")
    assert PublicImages(place).identities()[0].images == 3  # the metadata does not name it any more


@pytest.mark.parametrize(
    ("public", "private", "sentence"),
    [
        ("none", "x", "does not exist"),
        ("x/inner", "x", "overlap"),
        ("x", "x/inner", "overlap"),
        ("x", "x", "overlap"),
    ],
)
def test_folders_that_would_mix(public: str, private: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x" / "inner").mkdir(parents=True)
    with pytest.raises(UserError, match=sentence):
        PublicImages(tmp_path / public).check(tmp_path / private)
    (tmp_path / "y").mkdir()
    PublicImages(tmp_path / "y").check(tmp_path / "x", [tmp_path / "new"])
    with pytest.raises(UserError, match="output"):
        PublicImages(tmp_path / "y").check(tmp_path / "x", [tmp_path / "y" / "out"])


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images in the public folder"):
        PublicImages(tmp_path).identities()
    with pytest.raises(UserError, match="no readable images in the public folder"):
        PublicImages(tmp_path).read(SPEC)


def test_what_is_not_allowed() -> None:
    with pytest.raises(UserError, match="at least one"):
        PublicImages()
    with pytest.raises(UserError, match="'any', 'dark' or 'light'"):
        PublicImages("x", ground="black")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="fit"):
        PublicImages("x", fit="squash")  # type: ignore[arg-type]
