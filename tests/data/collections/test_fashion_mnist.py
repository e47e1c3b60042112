from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.archives import deb

from sfumato.data.collections import _debian, fashion_mnist
from sfumato.data.collections._debian import Unavailable
from sfumato.data.collections.fashion_mnist import CLASSES, read_idx
from sfumato.data.datasets import fetch
from sfumato.errors import UserError


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


class TinyFashion:
    """A Fashion-MNIST of 30 + 20 images, and the pins that go with it."""

    def __init__(self) -> None:
        generator = np.random.default_rng(1)
        self.files: dict[str, bytes] = {}
        self.pins: dict[str, tuple[int, str]] = {}
        self.arrays: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for split, prefix, count in (("train", "train", 30), ("test", "t10k", 20)):
            images = generator.integers(0, 256, (count, 28, 28), np.uint8)
            labels = (np.arange(count) * 7 % 10).astype(np.uint8)
            self.arrays[split] = images, labels
            for name, array in ((f"{prefix}-images-idx3-ubyte.gz", images), (f"{prefix}-labels-idx1-ubyte.gz", labels)):
                content = idx(array)
                self.files[name] = gzip.compress(content)
                self.pins[name] = len(content), hashlib.sha256(content).hexdigest()

    def package(self, **changed: bytes) -> bytes:
        files = self.files | changed
        return deb({f"usr/share/datasets/fashion-mnist/{name}": data for name, data in files.items()})


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TinyFashion:
    fashion = TinyFashion()
    monkeypatch.setattr(fashion_mnist, "FILES", fashion.pins)
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "not-installed")
    monkeypatch.setattr(fashion_mnist, "ADDRESS", (tmp_path / "upstream").as_uri() + "/")
    monkeypatch.setattr(_debian.shutil, "which", lambda _: None)
    return fashion


def place(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def apt_with(monkeypatch: pytest.MonkeyPatch, package: bytes) -> list[list[str]]:
    """An apt that delivers `package`; returns the commands it will have been given."""
    commands = []

    def run(command: list[str], folder: Path) -> None:
        commands.append(command[4:])
        if command[4] == "download":
            (folder / f"{command[5]}_1_all.deb").write_bytes(package)

    monkeypatch.setattr(_debian.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(_debian, "run_apt", run)
    return commands


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_idx_arrays_of_any_form_come_back(shape: list[int]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert np.array_equal(read_idx(idx(array)), array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\x08",
        b"\0\0\x0d\x01\0\0\0\0",
        b"\0\0\x08\x03\0\0\0\x01",
        idx(np.zeros(5, np.uint8))[:-1],
        b"\x1f\x8b\x08\0",
    ],
)
def test_idx_files_that_are_not_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="IDX"):
        read_idx(data)


def assert_laid_out(out: Path, tiny: TinyFashion) -> None:
    assert {path.name for path in out.iterdir()} == {"train", "test", "LICENSE", "DONE"}
    for split, (images, labels) in tiny.arrays.items():
        assert {path.name for path in (out / split).iterdir()} == set(CLASSES)
        assert len(list((out / split).glob("*/*"))) == len(images)
        for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            with Image.open(out / split / CLASSES[label] / f"{index:05}.png") as image:
                assert (np.asarray(image) == pixels).all()


@pytest.mark.parametrize("source", ["installed", "apt", "authors"])
def test_every_source_gives_the_same_folder(
    tiny: TinyFashion, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "installed":
        place(tmp_path / "not-installed", tiny.files)
    elif source == "apt":
        commands = apt_with(monkeypatch, tiny.package())
    else:
        place(tmp_path / "upstream", tiny.files)
    told: list[int] = []
    out = fetch("fashion-mnist", tmp_path / "data", told.append)
    assert_laid_out(out, tiny)
    assert told == list(range(1, 51))
    if source == "apt":
        assert commands == [["update"], ["download", "dataset-fashion-mnist"]]


def test_no_source_is_one_sentence_and_no_folder(tiny: TinyFashion, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be fetched.*not installed.*no apt-get.*cannot be reached"):
        fetch("fashion-mnist", tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_what_was_pinned_are_refused(
    tiny: TinyFashion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "t10k-labels-idx1-ubyte.gz"
    place(tmp_path / "not-installed", tiny.files | {name: gzip.compress(idx(np.ones(20, np.uint8)))})
    place(tmp_path / "upstream", tiny.files | {name: b"<html>moved</html>"})
    apt_with(monkeypatch, tiny.package(**{name: gzip.compress(bytes(10**7))}))
    with pytest.raises(UserError, match="is not the file known by that name"):
        fetch("fashion-mnist", tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("package", [b"", deb({"other": b"x"}), deb(b"junk", "data.tar.zst")])
def test_an_odd_package_is_a_reason(tiny: TinyFashion, package: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    apt_with(monkeypatch, package)
    with pytest.raises(Unavailable):
        fashion_mnist._checked(fashion_mnist._from_apt())


def test_a_file_that_swells_is_not_unpacked(tiny: TinyFashion) -> None:
    files = tiny.files | {"train-images-idx3-ubyte.gz": gzip.compress(bytes(50_000_000), 1)}
    tracemalloc.start()
    with pytest.raises(Unavailable):
        fashion_mnist._checked(files)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
