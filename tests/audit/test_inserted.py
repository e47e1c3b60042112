"""Inserted images go through the whole product, and are scored by what it releases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.methods.spectral_parts import TINY
from tests.small_set import settings

from sfumato.audit.inserted import black_box, by_distance, random_blocks, write
from sfumato.audit.membership import _likelihoods
from sfumato.audit.standins import SHAPES, drawn
from sfumato.config import validated
from sfumato.data.decode import ImageSpec
from sfumato.data.folder import ImageFolder
from sfumato.errors import InternalError
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.noise import TestNoise


@pytest.mark.parametrize("method", ["privimage", "spectral"])
def test_a_run_with_canaries(method: str, tmp_path: Path) -> None:
    write(drawn(30, 16, 9), tmp_path / "public")
    chosen = settings(public_size=60, classes=list(SHAPES), image={"height": 16, "width": 16, "channels": 1})
    if method == "spectral":
        del chosen["privimage"]
        chosen |= {"method": "spectral", "spectral": TINY, "public": {"folders": [str(tmp_path / "public")]}}
    canaries = random_blocks(40, (1, 16, 16), SHAPES[0], 5)
    found = black_box(chosen, drawn(30, 16, 4), canaries, tmp_path / "run", TestNoise(b"x"))
    assert (found.canaries, found.epsilon, found.delta) == (40, 8.0, 1e-5)
    assert found.stricter is not None
    assert found.stricter > 7
    assert not found.verdict("three steps", 1).broken  # so short a training keeps nothing of single images
    assert len(list((tmp_path / "run" / "private").rglob("inserted-*.png"))) < 40
    place = tmp_path / "run" / "run"
    told: list[tuple[str, int, int | None]] = []
    likelihoods = _likelihoods(
        place,
        ImageSpec(16, 16, 1),
        (tmp_path / "run" / "private", tmp_path / "public"),
        12,
        lambda stage, done, of: told.append((stage, done, of)),
    )
    if method == "spectral":
        assert likelihoods is not None
        assert [len(each) for each in likelihoods] == [12, 12]
        assert all(np.isfinite(each).all() for each in likelihoods)
        assert told[-1] == ("likelihood of holdout images", 12, 12)
    else:
        assert likelihoods is None
    ledger = Ledger.open("audit-stand-in", tmp_path / "run" / "ledger.jsonl")
    assert [run.not_private for run in ledger.runs().values()] == [True]
    assert validated(json.loads((place / "config.json").read_text())).dataset == "audit-stand-in"


def test_canaries_of_another_shape_are_refused(tmp_path: Path) -> None:
    canaries = random_blocks(4, (3, 16, 16), SHAPES[0], 5)
    with pytest.raises(InternalError, match="shape"):
        black_box(settings(classes=list(SHAPES)), drawn(3, 16, 4), canaries, tmp_path, TestNoise(b"x"))


def test_copies_are_nearest() -> None:
    canaries = np.stack([canary.pixels for canary in random_blocks(50, (3, 16, 16), "", 5)])
    scores = by_distance(canaries[:20], canaries)
    assert scores[:20].min() == 0 > scores[20:].max()


def test_pictures_are_what_they_were(tmp_path: Path) -> None:
    pictures = [*drawn(6, 16, 1), *random_blocks(3, (1, 16, 16), "ring", 2)]
    write(pictures, tmp_path)
    assert len(list(ImageFolder(tmp_path).entries())) == 9
    assert len({picture.pixels.tobytes() for picture in pictures}) == 9
    assert torch.tensor(pictures[-1].pixels)[0, :4, :4].unique().numel() == 1
