from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data import datasets
from sfumato.data.collections._folder import Collection
from sfumato.data.datasets import COLLECTIONS, NAMES, fetch
from sfumato.data.folder import ImageFolder
from sfumato.errors import UserError

SMALL = ("mnist-5k", "noto-emoji")  # fetched from the registries whenever the tests run
LARGE = ("glyphs", "openclipart", "cutouts", "openmoji", "tuxpaint-stamps", "furniture", "twemoji", "drawings")


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Downloaded packages, kept for the session, or longer in the folder that SFUMATO_TEST_ARCHIVES names."""
    return Path(os.environ.get("SFUMATO_TEST_ARCHIVES") or tmp_path_factory.mktemp("archives"))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def check(name: str, out: Path) -> None:
    """What holds for every set: each line has its plain PNG, each PNG its line, and what is said about both is true."""
    known, described = COLLECTIONS[name], lines(out)
    source = json.loads((out / "SOURCE.json").read_text())
    assert len(described) == source["count"]
    assert source["count"] == known.images or any(p["authenticated"] != "pinned SHA-256" for p in source["packages"])
    assert {line["file_name"] for line in described} == {path.relative_to(out).as_posix() for path in out.glob("*/*")}
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "DONE",
        "LICENSE",
        "SOURCE.json",
        "metadata.jsonl",
    }
    assert all(line["label"] and line["source"] and line["licence"] for line in described)
    assert sum(line["text"] is not None for line in described) > 0.99 * len(described)
    assert len((out / "LICENSE").read_text()) > 500
    assert all(package["name"] and len(package["sha256"]) == 64 for package in source["packages"])
    for line in described[:: max(1, len(described) // 200)]:
        with Image.open(out / line["file_name"]) as image:
            assert (image.format, image.info) == ("PNG", {})
            assert image.mode in ("L", "RGB")
            assert max(image.size) <= 256
    folder = ImageFolder(out, workers=0)
    assert sum(1 for _ in folder.entries()) == len(described)
    assert folder.findings == {"not_an_image": 3}


@pytest.fixture(scope="session")
def fetched(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small sets, fetched from the registries."""
    return {name: fetch(name, tmp_path_factory.mktemp("sets") / name, archives=archives) for name in SMALL}


@pytest.mark.parametrize("name", SMALL)
def test_small_sets_are_fetched_whole(name: str, fetched: dict[str, Path]) -> None:
    check(name, fetched[name])


def test_digits_are_what_they_are_labelled(fetched: dict[str, Path]) -> None:
    images, labels = [], []
    for line in lines(fetched["mnist-5k"]):
        with Image.open(fetched["mnist-5k"] / line["file_name"]) as image:
            images.append(np.asarray(image, float).ravel())
        labels.append(int(line["label"]))
    pixels, digits = np.array(images), np.array(labels)
    assert (np.bincount(digits) == 500).all()
    means = np.array([pixels[::2][digits[::2] == digit].mean(0) for digit in range(10)])
    nearest = ((pixels[1::2, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == digits[1::2]).mean() > 0.75


@pytest.mark.skipif(not os.environ.get("SFUMATO_TEST_LARGE"), reason="480 MB of packages: set SFUMATO_TEST_LARGE=1")
@pytest.mark.parametrize("name", LARGE)
def test_large_sets_are_fetched_whole(name: str, archives: Path, tmp_path: Path) -> None:
    check(name, fetch(name, tmp_path / "out", archives=archives))


def given(monkeypatch: pytest.MonkeyPatch, **written: str) -> None:
    """A set called `small` that writes these files; the text `fault` is raised instead."""

    def write(folder: Path, archives: Path, progress: object) -> None:
        archives.mkdir(exist_ok=True)
        (archives / "package.tgz").write_text("x")
        for name, text in written.items():
            if text == "fault":
                raise ValueError("a zip archive that cannot be read")
            (folder / name).write_text(text)

    monkeypatch.setitem(datasets.COLLECTIONS, "small", Collection("small", "", "CC0-1.0", 1, 1, write))


def test_a_folder_is_sealed_and_holds_no_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, LICENSE="free")
    out = fetch("small", tmp_path / "out")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"LICENSE": "free", "DONE": "small\n"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_packages_are_kept_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, LICENSE="free")
    monkeypatch.chdir(tmp_path)
    fetch("small", Path("out"), archives=Path("kept"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "out"]
    assert (tmp_path / "kept" / "package.tgz").exists()


def test_a_finished_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, LICENSE="free")
    out = fetch("small", tmp_path / "out")
    (out / "mine").write_text("kept")
    fetch("small", out)
    assert (out / "mine").read_text() == "kept"


@pytest.mark.parametrize("done", [None, "another-set\n"])
def test_another_folder_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: str | None) -> None:
    given(monkeypatch, LICENSE="free")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ("DONE" if done else "mine")).write_text(done or "x")
    with pytest.raises(UserError, match="already exists"):
        fetch("small", tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_damaged_source_is_one_sentence_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, LICENSE="free", broken="fault")
    with pytest.raises(UserError, match=r"small cannot be read: its source is a zip archive that cannot be read\.$"):
        fetch("small", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    assert {"fashion-mnist", "shapes", *SMALL, *LARGE} == set(NAMES)
    with pytest.raises(UserError, match=r"'cifar'.*fashion-mnist"):
        fetch("cifar", tmp_path)
