"""SPTI and Private Evolution as whole runs: folder, ledger, release, resumption, statement."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.evolution_models import Namer, ShapeTexts, Words, draw_private, objects

import sfumato as sf
from sfumato import run
from sfumato.errors import UserError
from sfumato.workflows import workflow


def images(private: Path, name: str) -> sf.PrivateImages:
    return sf.PrivateImages(private, dataset=name, public_size=60, size=(16, 16), channels=3)


def test_spti_from_folder_to_release(tmp_path: Path) -> None:
    private = draw_private(tmp_path / "private", text="topsecret patient")
    models = objects()
    method = sf.SPTI(epsilon=8.0, delta=1e-4, rounds=2, population=6, count=6, part=16, **models)
    source = images(private, "whole")
    assert "2 rounds, noise of scale" in str(method.forecast(source))
    fitted = method.fit(source, tmp_path / "run")
    out = sf.release(fitted.sample(6), tmp_path / "out")

    assert len(list(out.rglob("*.png"))) == 6
    assert '"text": "' in (out / "metadata.jsonl").read_text()
    assert all(name in fitted.statement for name in ("painter", "shape captions", "thumbnails", "in this process"))
    begun = run.Run(tmp_path / "run")
    assert run.statement(begun).executed == {"votes": 2}
    assert not (begun.folder / "private").exists()
    assert all(file.stat().st_mode & 0o77 == 0 for file in begun.folder.rglob("*"))
    for file in out.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            words = (begun.facts["key"], begun.run_id, str(private), "topsecret")
            assert not any(word.encode() in data for word in words), file

    # Prompts are never what is written about private images.
    assert models["images"].prompts
    assert not any("secret" in prompt or "patient" in prompt for prompt in models["images"].prompts)
    assert b"topsecret" not in b"".join(file.read_bytes() for file in begun.folder.rglob("*") if file.is_file())

    # A finished run, opened again: the user's own objects are asked for, and no budget is.
    with pytest.raises(UserError, match="models="):
        sf.load(begun.folder).sample(7)
    again = sf.load(begun.folder, models=objects()).sample(6)
    assert again.texts == fitted.sample(6).texts
    assert begun.ledger.attempts(begun.run_id)["votes"].used == 2


def test_private_evolution_from_folder_to_release(tmp_path: Path) -> None:
    private = draw_private(tmp_path / "private")
    models = objects()
    method = sf.PrivateEvolution(
        epsilon=8.0, delta=1e-4, rounds=1, population=8, count=4, part=16, **models, variator=models["images"]
    )
    fitted = method.fit(images(private, "pe"), tmp_path / "run")
    assert len(list(sf.release(fitted.sample(4), tmp_path / "out").rglob("*.png"))) == 4
    assert "varied by painter" in fitted.statement


def test_models_are_checked_before_anything_is_written(tmp_path: Path) -> None:
    private = draw_private(tmp_path / "private", 4)
    with pytest.raises(UserError, match="image generator"):
        sf.SPTI(epsilon=8.0, delta=1e-4, **objects(images=ShapeTexts())).fit(images(private, "x"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_settings_that_no_evolution_has(tmp_path: Path) -> None:
    for wrong in ({"minutes": 5}, {"public": {"folders": [str(tmp_path)]}}):
        with pytest.raises(UserError, match="spti"):
            run.validated({"dataset": "x", "method": "spti", "epsilon": 1.0} | wrong)
    config = run.validated({"dataset": "x", "method": "spti", "epsilon": 1.0, "image": {"height": 32}})
    assert config.image.spec().shape == (3, 32, 64)
    assert run.validated(config.to_json()) == config


def test_text_votes_are_told_of(tmp_path: Path) -> None:
    given = objects(captioner=Namer(), text_embedder=Words())
    private = draw_private(tmp_path / "private", 30)
    method = sf.SPTI(epsilon=8.0, delta=1e-4, rounds=1, population=6, voting="text", **given)
    fitted = method.fit(images(private, "texts"), tmp_path / "run")
    assert "captioned by namer" in fitted.statement
    assert fitted.sample(3).pixels.shape == (3, 3, 16, 16)


def test_every_method_has_a_workflow() -> None:
    for name in ("privimage", "spti", "private-evolution"):
        assert callable(workflow(name).fit)
