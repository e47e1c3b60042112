"""Captions of private images: vectors, each its own record's, kept as nothing else, shown to private training alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfumato.errors import InternalError, PrivacyRefusal
from sfumato.privacy.captions import TOGETHER, CaptionWriter
from sfumato.privacy.noise import TestNoise
from sfumato.privacy.records import PrivateRecords, Rows
from sfumato.privacy.training import private_training
from tests.privacy import runs
from tests.privacy.memory_source import Picture, held, picture
from tests.privacy.test_training import train_together

SIZE = 4


def describe(texts: Sequence[str]) -> NDArray[np.float32]:
    """A vector that its text decides."""
    return np.array([np.frombuffer(f"{text:.<8}".encode()[:8], np.uint16) for text in texts], np.float32) + 1


def captioned(number: int, captions: int, person: int = 5, readable: bool = True) -> Picture:
    text = tuple(f"{number}-{which}" for which in range(captions))
    return replace(picture(number, "ab"[number % 2], f"person-{number % person}", readable), text=text)


PICTURES = [captioned(number, number % 4, readable=number != 7) for number in range(20)]


def told(records: PrivateRecords, rows: int, step: int = 1, size: int = 4) -> dict[bytes, tuple[bytes, bytes]]:
    """What each record shows: identity to (pixels, vectors)."""
    seen = {}
    for chunk, numbers in records._chunks(np.arange(records._size()), size, rows, "touch", step, captions=True):
        assert chunk.captions is not None
        assert chunk.captions.shape == (size * rows, SIZE)
        for place, number in enumerate(numbers):
            part = slice(place * rows, (place + 1) * rows)
            values = chunk.images[part].numpy().tobytes(), chunk.captions[part].numpy().tobytes()
            seen[records._identities[number].tobytes()] = values
    return seen


@pytest.mark.parametrize("unit", ["image", "person"])
@pytest.mark.parametrize("rows", [1, 3])
def test_removing_a_record_leaves_what_the_others_are_told(unit: str, rows: int, tmp_path: Path) -> None:
    everyone = told(held(PICTURES, tmp_path / "all", unit=unit, describe=describe), rows)  # type: ignore[arg-type]
    for gone in {p.identity if unit == "image" else str(p.person) for p in PICTURES}:
        rest = [p for p in PICTURES if gone not in (p.identity, p.person)]
        fewer = told(held(rest, tmp_path / gone, unit=unit, describe=describe), rows)  # type: ignore[arg-type]
        assert len(fewer) == len(everyone) - 1
        assert all(everyone[name] == seen for name, seen in fewer.items())


@pytest.mark.parametrize("unit", ["image", "person"])
def test_a_row_is_told_a_caption_of_the_image_that_it_shows(unit: str, tmp_path: Path) -> None:
    records, heard = held(PICTURES, tmp_path, unit=unit, describe=describe), set()  # type: ignore[arg-type]
    by_pixels = {p.pixels.tobytes(): p for p in PICTURES if p.pixels is not None}
    for step in range(80):
        for pixels, vectors in told(records, 2, step).values():
            for row in range(2):
                shown = by_pixels.get(pixels[row * 64 : (row + 1) * 64])
                vector = np.frombuffer(vectors, np.float32).reshape(2, SIZE)[row]
                if shown is None or not shown.text:
                    assert not vector.any()
                else:
                    (match,) = (text for text in shown.text if np.array_equal(describe([text])[0], vector))
                    heard.add(match)
    assert heard == {text for p in PICTURES if p.pixels is not None for text in p.text}  # each of them, some time


def test_captions_are_embedded_in_calls_of_one_shape_and_kept_as_vectors_alone(tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def spy(texts: Sequence[str]) -> NDArray[np.float32]:
        calls.append(list(texts))
        return describe(texts)

    writer = CaptionWriter(spy, tmp_path)
    given = [[f"canary {image} {which}" for which in range(image % 5)] for image in range(60)]
    for texts in given:
        writer.add(texts)
    captions = writer.finished()
    assert {len(call) for call in calls} == {TOGETHER}
    flat = [text for texts in given for text in texts]
    assert np.array_equal(captions.vectors, describe(flat))
    assert captions.starts.tolist() == np.cumsum([0, *map(len, given)]).tolist()
    assert (tmp_path / "captions.f32").stat().st_mode & 0o777 == 0o600
    assert b"canary" not in (tmp_path / "captions.f32").read_bytes()
    assert "canary" not in repr(captions) + json.dumps({key: str(value) for key, value in vars(captions).items()})


def test_two_intakes_of_one_run_do_not_mix(tmp_path: Path) -> None:
    """As when a run is resumed while it is still reading."""
    one, other = CaptionWriter(describe, tmp_path), CaptionWriter(describe, tmp_path)
    for number in range(200):
        one.add([f"x{number}"])
        other.add([f"y{number}", "more"])
    assert np.array_equal(one.finished().vectors, describe([f"x{number}" for number in range(200)]))
    assert len(other.finished().vectors) == 400


def test_no_captions_at_all(tmp_path: Path) -> None:
    plain = [replace(p, text=()) for p in PICTURES]
    assert {vectors for _, vectors in told(held(plain, tmp_path, describe=describe), 1).values()} == {bytes(4 * SIZE)}


def test_an_embedder_that_changes_its_shape_is_a_bug(tmp_path: Path) -> None:
    def moody(texts: Sequence[str]) -> NDArray[np.float32]:
        return describe(texts)[:, : 4 if not any(texts) else 3]

    with pytest.raises(InternalError, match="one vector a text"):
        held(PICTURES, tmp_path, describe=moody)


class Listener(runs.TinyLearner):
    """Notes what it is told; its loss hears it."""

    def __init__(self, mixed: bool = False) -> None:
        super().__init__()
        self.told: list[Tensor | None] = []
        self.mixed = mixed

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        self.told.append(rows.captions)
        plain = super().loss(model, rows)
        if rows.captions is None:
            return plain
        heard = rows.captions.mean(1) / 1e4
        return plain * (1 + (heard.mean() if self.mixed else heard))


def test_training_alone_is_told(tmp_path: Path) -> None:
    """Votes and sums of the same run see no caption; without an embedder nobody does."""
    for name, embedder in (("told", describe), ("untold", None)):
        session = runs.session(tmp_path / name, pictures=PICTURES, noise=TestNoise(), describe=embedder)
        seen: list[Tensor | None] = []

        def cells(rows: Rows, seen: list[Tensor | None] = seen) -> Tensor:
            seen.append(rows.captions)
            return torch.zeros(len(rows.present), 1, dtype=torch.int64)

        def vectors(rows: Rows, seen: list[Tensor | None] = seen) -> tuple[Tensor, Tensor]:
            seen.append(rows.captions)
            return torch.zeros(len(rows.present), dtype=torch.int64), torch.zeros(len(rows.present), 2)

        session.noisy_histogram("votes", cells, 3)
        session.noisy_sum("sum", vectors, (1, 2))
        assert len(seen) >= 2
        assert all(captions is None for captions in seen)
        learner = Listener()
        list(private_training(session, "training", learner, divisor=10.0, chunk=4))
        assert all((captions is not None) == (name == "told") for captions in learner.told)


def test_losses_in_which_captions_meet_are_refused(tmp_path: Path) -> None:
    def train(folder: Path, learner: Listener) -> None:
        session = runs.session(folder, pictures=PICTURES, noise=TestNoise(), describe=describe)
        list(private_training(session, "training", learner, divisor=10.0, chunk=4))

    train(tmp_path / "fine", Listener())
    with pytest.raises(PrivacyRefusal, match="which other records"):
        train(tmp_path / "mixed", Listener(mixed=True))


def test_one_caption_moves_a_step_by_no_more_than_its_record_may(tmp_path: Path) -> None:
    """Neighbours that differ in a record whose caption is huge."""

    def loud(texts: Sequence[str]) -> NDArray[np.float32]:
        return describe(texts) * np.array([[1e6 if text.startswith("19-") else 1.0] for text in texts], np.float32)

    sums = []
    for name, pictures in (("all", PICTURES), ("less", PICTURES[:-1])):
        session = runs.session(tmp_path / name, pictures=pictures, noise=TestNoise(), describe=loud)
        sums.append(runs.sum_of_step(session, Listener()))
    assert 0.5 < float((sums[0] - sums[1]).norm()) <= 1 + 1e-6


HEARD = """
import sys, torch, torch.distributed as distributed
from pathlib import Path
from sfumato.privacy.noise import TestNoise
from sfumato.privacy.training import private_training
from tests.privacy import runs
from tests.privacy.test_captions import PICTURES, Listener, describe

rank, folder, kind = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
if rank:
    distributed.barrier()  # the first makes the run
hears = (lambda texts: 2 * describe(texts)) if rank and kind == "otherwise" else describe
session = runs.session(folder / "run", pictures=PICTURES, noise=TestNoise(b"n" if rank == 0 else b""), describe=hears)
if not rank:
    distributed.barrier()
learner = Listener()
list(private_training(session, "training", learner, divisor=10.0, chunk=4))
torch.save(torch.cat([value.flatten() for value in learner.state().values()]), folder / f"{rank}.pt")
distributed.barrier()
distributed.destroy_process_group()
"""


def test_two_processes_hear_as_one(tmp_path: Path) -> None:
    """Each reads the captions itself, beside the other; an embedder that differs between them is seen."""
    session = runs.session(tmp_path / "alone", pictures=PICTURES, noise=TestNoise(b"n"), describe=describe)
    learner = Listener()
    list(private_training(session, "training", learner, divisor=10.0, chunk=4))
    expected = torch.cat([value.flatten() for value in learner.state().values()])
    first, second = train_together(tmp_path, "alike", HEARD)
    assert torch.equal(first, second)
    assert torch.allclose(first, expected, rtol=1e-5, atol=1e-6)
    (tmp_path / "other").mkdir()
    with pytest.raises(RuntimeError, match="read different folders"):
        train_together(tmp_path / "other", "otherwise", HEARD)


def test_files_of_the_run_folder_are_private(tmp_path: Path) -> None:
    held(PICTURES, tmp_path / "private", describe=describe)
    assert os.stat(tmp_path / "private").st_mode & 0o777 == 0o700
