from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import mlcroissant
import numpy as np
import pytest
import yaml
from PIL import Image

from sfumato.data import _staging
from sfumato.data.release import Finding, Provenance, Samples, contact_sheet, verify_release, write_release
from sfumato.errors import PrivacyRefusal, UserError

CLASSES = ("coat", "ankle boot", "bag")
PAGES = {"README.md", "croissant.json", "metadata.jsonl", "privacy.json", "report.html", "MANIFEST.sha256", "DONE"}


def statement(**changes: Any) -> dict[str, Any]:
    sentences = ["These images were made under (0.98765, 1e-06)-differential privacy.", "Protected is one image."]
    facts = {
        "text": " ".join(sentences),
        "sentences": sentences,
        "not_private": False,
        "release_id": "5eed5eed5eed5eed",
        "epsilon": 0.98765,
        "delta": 1e-6,
        "unit": "image",
        "attacker": {"false_alarm": 0.05, "most_recognised": 0.1312},
        "not_covered": ["Side channels."],
    }
    return facts | changes


def samples(count: int = 12, channels: int = 1, **changes: Any) -> Samples:
    generator = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "pixels": generator.integers(0, 256, (count, channels, 8, 10), np.uint8),
        "labels": np.arange(count, dtype=np.int64) % 3,
        "classes": CLASSES,
        "texts": None,
        "provenance": Provenance("secret-run-name", "privimage", statement()),
    }
    return Samples(**(parts | changes))


def unlabelled(**changes: Any) -> Samples:
    return samples(labels=None, classes=None, **changes)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_release(samples(), tmp_path / "release")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_release_holds_the_images_and_its_pages_and_nothing_else(tmp_path: Path, channels: int) -> None:
    given = samples(channels=channels)
    told: list[int] = []
    out = write_release(given, tmp_path / "release", progress=told.append)
    names = [f"images/{CLASSES[index % 3]}/{index:06}.png" for index in range(12)]
    assert set(files(out)) == PAGES | set(names)
    assert told == list(range(1, 13))
    for name, pixels in zip(names, given.pixels, strict=True):
        with Image.open(out / name) as image:
            assert (np.atleast_3d(np.asarray(image)).transpose(2, 0, 1) == pixels).all()
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert lines == [{"file_name": name, "label": CLASSES[index % 3]} for index, name in enumerate(names)]
    assert json.loads((out / "privacy.json").read_text()) == statement()
    assert verify_release(out) == []


def test_images_without_labels_and_captions(tmp_path: Path) -> None:
    out = write_release(unlabelled(texts=[f'a "green" häart {i}' for i in range(12)]), tmp_path / "release")
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert lines[7] == {"file_name": "images/000007.png", "text": 'a "green" häart 7'}
    assert verify_release(out) == []


def test_png_files_hold_pixels_only(folder: Path) -> None:
    for path in folder.glob("images/*/*.png"):
        data, chunks, place = path.read_bytes(), [], 8
        while place < len(data):
            (length,) = struct.unpack(">I", data[place : place + 4])
            chunks.append(data[place + 4 : place + 8])
            place += length + 12
        assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}


def test_same_samples_same_bytes_wherever_and_whenever(tmp_path: Path) -> None:
    first, second = (files(write_release(samples(), tmp_path / name)) for name in ("one", "two"))
    assert first == second


def test_checksums_are_those_of_sha256sum(folder: Path) -> None:
    for listing in ("DONE", "MANIFEST.sha256"):
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", listing], cwd=folder, check=True)
    listed = {line[66:] for line in (folder / "MANIFEST.sha256").read_text().splitlines()}
    assert listed == set(files(folder)) - {"MANIFEST.sha256", "DONE"}


def test_run_folder_and_run_name_stay_inside(folder: Path, tmp_path: Path) -> None:
    everything = b"".join(files(folder).values())
    assert b"secret-run-name" not in everything
    assert str(tmp_path).encode() not in everything


@pytest.mark.parametrize("bare", [np.zeros((1, 1, 8, 8), np.uint8), [np.zeros((8, 8))], None])
def test_bare_images_are_refused(tmp_path: Path, bare: object) -> None:
    with pytest.raises(PrivacyRefusal, match="provenance"):
        write_release(bare, tmp_path / "release")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"not_private": True},
        {"not_private": None},
        {"not_private": 0},
        {"epsilon": float("inf")},
        {"epsilon": float("nan")},
        {"epsilon": None},
        {"delta": -1e-6},
        {"text": ""},
        {"release_id": None},
    ],
)
def test_samples_without_a_whole_private_statement_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    given = samples(provenance=Provenance("run", "privimage", statement(**changes)))
    with pytest.raises(PrivacyRefusal):
        write_release(given, tmp_path / "release")
    assert list(tmp_path.iterdir()) == []


def test_a_statement_without_the_word_about_noise_is_refused(tmp_path: Path) -> None:
    facts = statement()
    del facts["not_private"]
    with pytest.raises(PrivacyRefusal):
        write_release(samples(provenance=Provenance("run", "privimage", facts)), tmp_path / "release")
    with pytest.raises(PrivacyRefusal):
        write_release(samples(provenance=facts), tmp_path / "release")


@pytest.mark.parametrize(
    "changes",
    [
        {"pixels": np.zeros((12, 1, 8, 8), np.float32)},
        {"pixels": np.zeros((12, 2, 8, 8), np.uint8)},
        {"pixels": np.zeros((0, 1, 8, 8), np.uint8), "labels": np.zeros(0, np.int64)},
        {"classes": None},
        {"labels": np.arange(12)},
        {"labels": np.zeros(11, np.int64)},
        {"labels": np.full(12, -1)},
        {"labels": np.zeros(12)},
        {"classes": ("a", "b", "a")},
        {"classes": ("a", "b", " ")},
        {"classes": ("a", "b", "c\nd")},
        {"texts": ["only one"]},
        {"texts": ["\ud800"] * 12},
    ],
)
def test_samples_that_do_not_fit_together_are_one_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        write_release(samples(**changes), tmp_path / "release")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "classes",
    [
        ("test", "coat", "bag"),  # loaders would take it for a split
        ("dev board", "coat", "bag"),
        ("Coat", "coat", "bag"),  # one folder where case does not count
        ("../../etc", "coat", "bag"),
        ("a/b", "coat", "bag"),
        (".hidden", "coat", "bag"),
        ("nul", "coat", "bag"),
        ("пальто", "coat", "bag"),
        ("x" * 300, "coat", "bag"),
    ],
)
def test_odd_class_names_get_numbered_folders_and_keep_their_labels(tmp_path: Path, classes: tuple[str, ...]) -> None:
    out = write_release(samples(classes=classes), tmp_path / "release")
    assert {path.name for path in (out / "images").iterdir()} == {"class-0000", "class-0001", "class-0002"}
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(tmp_path / "cache"), split="train")
    assert list(loaded["label"]) == [classes[index % 3] for index in range(12)]


def test_occupied_places_are_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "release"
    place.mkdir()
    (place / "mine").write_text("x")
    with pytest.raises(UserError, match="already exists"):
        write_release(samples(), place)
    with pytest.raises(UserError, match="already exists"):
        write_release(samples(), place / "mine")
    assert files(tmp_path) == {"release/mine": b"x"}
    (place / "mine").unlink()
    assert verify_release(write_release(samples(), place)) == []


def test_a_release_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_release(samples(), tmp_path / "release", progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_release_is_not_visible_and_is_swept_by_the_next(tmp_path: Path) -> None:
    def die(done: int) -> None:
        if done == 5:
            os._exit(9)

    child = os.fork()
    if child == 0:
        try:
            write_release(samples(), tmp_path / "release", progress=die)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [path.name.startswith(".release.") for path in tmp_path.iterdir()] == [True]
    write_release(samples(), tmp_path / "release")
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_release_in_the_making_is_not_swept_by_another(tmp_path: Path) -> None:
    def start_another(done: int) -> None:
        if done == 5:
            write_release(samples(), tmp_path / "release")
            assert len(list(tmp_path.glob(".release.*/images/*/*.png"))) == 5

    with pytest.raises(UserError, match="already exists"):
        write_release(samples(), tmp_path / "release", progress=start_another)
    assert [path.name for path in tmp_path.iterdir()] == ["release"]
    assert verify_release(tmp_path / "release") == []


def test_where_no_sibling_can_be_made_the_marker_is_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "mounted"
    out.mkdir()
    monkeypatch.setattr(_staging.os.path, "ismount", lambda path: Path(path) == out)
    seen: list[bool] = []

    def fail(done: int) -> None:
        seen.append((out / "DONE").exists())
        if done == 12 and len(seen) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_release(samples(), out, progress=fail)
    assert list(out.iterdir()) == []
    write_release(samples(), out, progress=fail)
    assert seen == [False] * 24
    assert verify_release(out) == []


def replace(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def add_line(line: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "MANIFEST.sha256").open("a").write(line) and None


def repack(folder: Path) -> None:
    """Makes manifest and marker right again, as a forger would."""
    names = sorted(set(files(folder)) - {"MANIFEST.sha256", "DONE"})
    lines = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / "MANIFEST.sha256").write_text(lines)
    (folder / "DONE").write_text(f"{hashlib.sha256(lines.encode()).hexdigest()}  MANIFEST.sha256\n")


@pytest.mark.parametrize(
    ("harm", "path", "problem"),
    [
        (lambda folder: (folder / "DONE").unlink(), "DONE", "missing"),
        (lambda folder: (folder / "DONE").write_text(""), "DONE", "does not match"),
        (lambda folder: (folder / "MANIFEST.sha256").unlink(), "MANIFEST.sha256", "missing"),
        (lambda folder: (folder / "images/bag/000002.png").unlink(), "images/bag/000002.png", "missing"),
        (lambda folder: (folder / "images/bag/000002.png").write_bytes(b""), "images/bag/000002.png", "changed"),
        (lambda folder: (folder / "notes.txt").write_text("x"), "notes.txt", "not in the manifest"),
        (lambda folder: (folder / "images/bag/.x").write_text("x"), "images/bag/.x", "not in the manifest"),
        (lambda folder: (folder / "link").symlink_to("/etc/passwd"), "link", "symbolic link"),
        (lambda folder: (folder / "more").symlink_to("/etc"), "more", "symbolic link"),
        (lambda folder: os.mkfifo(folder / "pipe"), "pipe", "neither a file nor a folder"),
        (add_line(f"{'0' * 64}  ../outside\n"), "MANIFEST.sha256", "outside the release"),
        (add_line(f"{'0' * 64}  /etc/passwd\n"), "MANIFEST.sha256", "outside the release"),
        (add_line("gibberish\n"), "MANIFEST.sha256", "not a checksum"),
        (lambda folder: (folder / "privacy.json").write_text("{"), "privacy.json", "not a privacy statement"),
        (lambda folder: (folder / "privacy.json").write_text("[" * 10**5), "privacy.json", "not a privacy statement"),
        (lambda folder: (folder / "privacy.json").unlink(), "privacy.json", "is missing"),
        (replace("privacy.json", '"not_private": false', '"not_private": true'), "privacy.json", "NOT PRIVATE"),
        (replace("privacy.json", "0.98765,", "Infinity,"), "privacy.json", "NOT PRIVATE"),
        (replace("privacy.json", "0.98765,", "0.5,"), "README.md", "does not quote"),
        (replace("privacy.json", "0.98765,", "0.5,"), "report.html", "does not quote"),
        (replace("README.md", "| Delta | 1e-6 |", "| Delta | 1e-9 |"), "README.md", "does not quote"),
        (replace("report.html", 'value="0.98765"', 'value="0.1"'), "report.html", "does not quote"),
        (replace("metadata.jsonl", "000002", "000003"), "metadata.jsonl", "exactly once"),
        (replace("metadata.jsonl", "{", "["), "metadata.jsonl", "not a list"),
    ],
)
def test_what_is_wrong_is_found(folder: Path, harm: Callable[[Path], None], path: str, problem: str) -> None:
    harm(folder)
    found = verify_release(folder)
    assert any(finding.path == path and problem in finding.problem for finding in found), found


@pytest.mark.parametrize(
    ("harm", "path"),
    [
        (replace("privacy.json", "0.98765,", "0.5,"), "report.html"),
        (replace("privacy.json", '"not_private": false', '"not_private": true'), "privacy.json"),
        (lambda folder: (folder / "images/bag/000002.png").unlink(), "metadata.jsonl"),
        (lambda folder: (folder / "images/bag/999999.png").write_bytes(b""), "metadata.jsonl"),
    ],
)
def test_a_new_manifest_does_not_hide_a_contradiction(folder: Path, harm: Callable[[Path], None], path: str) -> None:
    harm(folder)
    repack(folder)
    assert path in [finding.path for finding in verify_release(folder)]


def test_only_a_folder_can_be_verified(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a folder"):
        verify_release(tmp_path / "nothing")
    assert str(Finding("DONE", "is missing")) == "DONE: is missing"


def test_the_library_datasets_loads_a_release(folder: Path, tmp_path: Path) -> None:
    for arguments in ({"path": "imagefolder", "data_dir": str(folder)}, {"path": str(folder)}):
        loaded = datasets.load_dataset(**arguments, cache_dir=str(tmp_path / "cache"))
        assert list(loaded) == ["train"]
        assert list(loaded["train"]["label"]) == [CLASSES[index % 3] for index in range(12)]
        assert (np.asarray(loaded["train"][4]["image"]) == samples().pixels[4, 0]).all()
        shutil.rmtree(tmp_path / "cache")


def test_the_card_has_a_header_that_hubs_read(tmp_path: Path) -> None:
    title = 'He said: "# no" <b> & so on'
    out = write_release(samples(), tmp_path / "release", title=title)
    _, header, body = (out / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(header)
    assert facts["pretty_name"] == title
    assert "synthetic" in facts["tags"]
    assert facts["size_categories"] == ["n<1K"]
    assert facts["task_categories"] == ["image-classification"]
    assert "| Epsilon | 0.98765 |" in body
    assert "<b>" not in body


def test_mlcroissant_reads_every_record(folder: Path) -> None:
    dataset = mlcroissant.Dataset(jsonld=folder / "croissant.json")
    described = json.loads((folder / "croissant.json").read_text())
    assert described["rai:hasSyntheticData"] is True
    assert not dataset.metadata.ctx.issues.errors
    records = list(dataset.records("records"))
    assert [record["records/name"].decode() for record in records] == [f"{index:06}.png" for index in range(12)]
    assert [record["records/label"].decode() for record in records] == [CLASSES[index % 3] for index in range(12)]
    for record, pixels in zip(records, samples().pixels, strict=True):
        assert (np.asarray(record["records/image"].convert("L")) == pixels[0]).all()


def test_mlcroissant_reads_captions(tmp_path: Path) -> None:
    out = write_release(unlabelled(texts=[f"caption {index}" for index in range(12)]), tmp_path / "release")
    records = mlcroissant.Dataset(jsonld=out / "croissant.json").records("records")
    assert [record["records/text"].decode() for record in records] == [f"caption {index}" for index in range(12)]


def test_contact_sheet_has_a_row_a_class_and_keeps_pixels() -> None:
    pixels = np.stack([np.full((1, 5, 5), 20 * index, np.uint8) for index in range(12)])
    sheet = contact_sheet(pixels, np.arange(12) % 3, rows=2, columns=3, scale=2)
    grid = np.asarray(sheet)
    assert grid.shape == (2 * 13 - 3 + 24, 3 * 13 - 3 + 24, 3)
    for corner in (12, 12 + 9):
        assert grid[corner::13, corner::13, 0][:2, :3].tolist() == [[0, 60, 120], [20, 80, 140]]
    assert (grid[12 + 10 : 12 + 13] == 255).all()


def test_contact_sheet_of_unlabelled_colour_images_fills_its_grid() -> None:
    pixels = np.stack([np.full((3, 40, 40), 20 * index, np.uint8) for index in range(5)])
    grid = np.asarray(contact_sheet(pixels, rows=2, columns=2, scale=0.5))
    assert grid[22::23, 22::23, 1][:2, :2].tolist() == [[0, 20], [40, 60]]


@pytest.mark.parametrize("changes", [{"rows": 0}, {"columns": -1}, {"scale": 0}, {"pixels": np.zeros((2, 8, 8))}])
def test_contact_sheet_refuses_what_is_no_grid(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        contact_sheet(**({"pixels": np.zeros((2, 1, 8, 8), np.uint8)} | changes))
