from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato.data import datasets
from sfumato.data.datasets import FASHION_MNIST_CLASSES, NAMES, fetch, read_deb, read_idx
from sfumato.errors import UserError

WANTED = {"a.gz": 1000, "b.gz": 1000}


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def ar(*members: tuple[str, bytes]) -> bytes:
    parts = [b"!<arch>\n"]
    for name, data in members:
        header = f"{name:16}{0:<12}{0:<6}{0:<6}{'100644':8}{len(data):<10}`\n"
        parts.append(header.encode() + data + b"\n" * (len(data) % 2))
    return b"".join(parts)


def tar(mode: str = "w:xz", **files: bytes | tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def deb(data: bytes, name: str = "data.tar.xz") -> bytes:
    return ar(("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), (name, data))


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


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TinyFashion:
    fashion = TinyFashion()
    monkeypatch.setattr(datasets, "FASHION_MNIST", fashion.pins)
    monkeypatch.setattr(datasets, "FASHION_MNIST_INSTALLED", tmp_path / "not-installed")
    monkeypatch.setattr(datasets, "FASHION_MNIST_ADDRESS", (tmp_path / "upstream").as_uri() + "/")
    monkeypatch.setattr(datasets.shutil, "which", lambda _: None)
    return fashion


def place(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def fake_apt(monkeypatch: pytest.MonkeyPatch, package: bytes) -> list[list[str]]:
    """An apt-get that delivers `package`; returns the commands it will have been given."""
    commands = []

    def run(command: list[str], cwd: Path, **_: object) -> None:
        commands.append(command[-2:])
        if command[-2] == "download":
            (cwd / f"{command[-1]}_1_all.deb").write_bytes(package)

    monkeypatch.setattr(datasets.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(datasets.subprocess, "run", run)
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


@pytest.mark.parametrize(("mode", "name"), [("w:xz", "data.tar.xz"), ("w:gz", "data.tar.gz"), ("w", "data.tar")])
def test_a_package_gives_the_files_asked_for(mode: str, name: str) -> None:
    data = tar(mode, **{"./usr/share/x/a.gz": b"A" * 7, "./usr/b.gz": b"B", "./usr/other": b"O"})
    assert read_deb(deb(data, name), WANTED) == {"a.gz": b"A" * 7, "b.gz": b"B"}


def test_links_folders_and_large_files_of_a_package_are_left_out() -> None:
    link, folder = tarfile.TarInfo("./usr/a.gz"), tarfile.TarInfo("./b.gz")
    link.type, link.linkname, folder.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.DIRTYPE
    assert read_deb(deb(tar(link=link, folder=folder)), WANTED) == {}
    assert read_deb(deb(tar(**{"x/a.gz": b"A" * 1001})), WANTED) == {}


@pytest.mark.parametrize(
    "package",
    [
        b"",
        b"PK\x03\x04",
        ar(("debian-binary", b"2.0\n")),
        deb(b"\x28\xb5\x2f\xfd junk", "data.tar.zst"),
        deb(tar(**{"a.gz": b"A" * 500}))[:-100],
        deb(lzma.compress(b"no tar" * 100)),
        b"!<arch>\n" + b"x" * 60,
    ],
)
def test_packages_that_cannot_be_read_are_refused(package: bytes) -> None:
    with pytest.raises(ValueError, match="Debian package"):
        read_deb(package, WANTED)


def assert_laid_out(out: Path, tiny: TinyFashion) -> None:
    assert {path.name for path in out.iterdir()} == {"train", "test", "LICENSE", "DONE"}
    for split, (images, labels) in tiny.arrays.items():
        assert {path.name for path in (out / split).iterdir()} == set(FASHION_MNIST_CLASSES)
        assert len(list((out / split).glob("*/*"))) == len(images)
        for index, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            with Image.open(out / split / FASHION_MNIST_CLASSES[label] / f"{index:05}.png") as image:
                assert (np.asarray(image) == pixels).all()


@pytest.mark.parametrize("source", ["installed", "apt", "authors"])
def test_every_source_gives_the_same_folder(
    tiny: TinyFashion, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "installed":
        place(tmp_path / "not-installed", tiny.files)
    elif source == "apt":
        package = deb(tar(**{f"./usr/share/datasets/fashion-mnist/{name}": data for name, data in tiny.files.items()}))
        commands = fake_apt(monkeypatch, package)
    else:
        place(tmp_path / "upstream", tiny.files)
    told: list[int] = []
    out = fetch("fashion-mnist", tmp_path / "data", told.append)
    assert_laid_out(out, tiny)
    assert told == list(range(1, 51))
    if source == "apt":
        assert [command[-1] for command in commands] == ["update", "dataset-fashion-mnist"]


def test_a_finished_folder_is_left_alone(tiny: TinyFashion, tmp_path: Path) -> None:
    place(tmp_path / "upstream", tiny.files)
    out = fetch("fashion-mnist", tmp_path / "data")
    (out / "mine").write_text("kept")
    fetch("fashion-mnist", out)
    assert (out / "mine").read_text() == "kept"


@pytest.mark.parametrize("done", [None, "another-set\n"])
def test_another_folder_is_not_overwritten(tiny: TinyFashion, tmp_path: Path, done: str | None) -> None:
    place(tmp_path / "upstream", tiny.files)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ("DONE" if done else "mine")).write_text(done or "x")
    with pytest.raises(UserError, match="already exists"):
        fetch("fashion-mnist", tmp_path / "data")
    assert len(list((tmp_path / "data").iterdir())) == 1


def test_no_source_is_one_sentence_and_no_folder(tiny: TinyFashion, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be fetched.*not installed.*no apt-get.*cannot be reached"):
        fetch("fashion-mnist", tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_not_what_was_pinned_are_refused(
    tiny: TinyFashion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "t10k-labels-idx1-ubyte.gz"
    other = idx(np.ones(20, np.uint8))
    place(tmp_path / "not-installed", tiny.files | {name: gzip.compress(other)})
    place(tmp_path / "upstream", tiny.files | {name: b"<html>moved</html>"})
    fake_apt(monkeypatch, deb(tar(**(tiny.files | {name: gzip.compress(bytes(10**7))}))))
    with pytest.raises(UserError, match="is not the file known by that name"):
        fetch("fashion-mnist", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_file_that_swells_is_not_unpacked(tiny: TinyFashion) -> None:
    files = tiny.files | {"train-images-idx3-ubyte.gz": gzip.compress(bytes(50_000_000), 1)}
    tracemalloc.start()
    with pytest.raises(datasets._Unavailable):
        datasets._checked(files)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_apt_keeps_its_state_to_itself(tiny: TinyFashion, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fake_apt(monkeypatch, deb(tar(**tiny.files)))
    fake = datasets.subprocess.run

    def run(command: list[str], cwd: Path, **more: object) -> None:
        assert command[0] == "/usr/bin/apt-get"
        assert "sudo" not in command
        configuration = Path(command[command.index("-c") + 1])
        assert configuration.parent == Path(cwd).parent
        seen.append(configuration.read_text())
        for line in ("Dir::State", "Dir::State::status", "Dir::Cache"):
            assert f'{line} "{configuration.parent}/' in seen[-1]
        fake(command, cwd)

    monkeypatch.setattr(datasets.subprocess, "run", run)
    assert datasets._checked(datasets._from_apt())
    assert len(seen) == 2


def test_a_hanging_apt_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> None:
        raise datasets.subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(datasets.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(datasets.subprocess, "run", run)
    with pytest.raises(datasets._Unavailable, match="hangs"):
        datasets._from_apt()


def test_unknown_names_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    assert NAMES == ("fashion-mnist",)
    with pytest.raises(UserError, match=r"'cifar'.*fashion-mnist"):
        fetch("cifar", tmp_path)
