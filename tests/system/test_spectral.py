"""Whole runs of Spectral: through the release, killed by the system, forecast, and refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.methods.spectral_parts import TINY
from tests.small_set import CLASSES, draw_folder, plan_of, settings
from tests.system.test_kill_and_resume import launch, length

import sfumato as sf
from sfumato import run
from sfumato.config import validated
from sfumato.errors import UserError
from sfumato.forecast_spectral import SpectralSpeed, forecast_spectral, with_spectral_steps
from sfumato.hardware import choose_hardware
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.training import Crew
from sfumato.report.render import METHODS

SPEED = SpectralSpeed("lora", 1000, 100.0, 30.0, 6.0, 0.0, 4.0)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("private"))


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = draw_folder(tmp_path_factory.mktemp("public"), 60)
    (folder / "SOURCE.json").write_text(json.dumps({"name": "drawn", "licence": "CC0-1.0"}))
    return folder


def spectral(images: Path, **changes: Any) -> dict[str, Any]:
    shape = {"height": 16, "width": 16, "channels": 1}
    plain = settings(method="spectral", public={"folders": [str(images)]}, spectral=TINY, image=shape)
    del plain["privimage"]
    return plain | changes


def test_a_whole_run(private: Path, public: Path, tmp_path: Path) -> None:
    config = validated(spectral(public))
    begun = run.prepare(config, private, tmp_path / "out", tmp_path / "out.run", plan_of(config))
    out = run.finish(begun)
    assert out is not None
    statement = json.loads((out / "privacy.json").read_text())
    assert statement["executed"] == {"warm start": 1, "fine-tuning": 3}
    assert statement["epsilon"] <= 8
    assert "60 public images 'drawn'" in statement["text"]
    assert "CC0-1.0" in statement["text"]
    assert "put together from pieces of these public images" in statement["text"]
    assert "No pretrained models were used." in statement["text"]
    assert statement["released"]["spectral"]["trained"] in ("full", "lora", "norms", "head")
    page = (out / "report.html").read_text()
    assert METHODS["spectral"] in page
    for told in (page, (out / "README.md").read_text(), (out / "croissant.json").read_text()):
        assert "put together from pieces of public images" in told
        assert "drawn by a model" not in told
    assert str(tmp_path) not in page + json.dumps(statement)
    assert len(list(out.rglob("*.png"))) == 12
    again = run.draw(begun, run.load_model(begun), 7, seed=3)
    assert again.pixels.shape == (7, 1, 16, 16)
    assert again.labels is not None
    assert again.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_kills_by_the_system(private: Path, public: Path, tmp_path: Path) -> None:
    """kill -9 in the warm start and in training: the same plan, nothing begun twice."""
    config, ledger, out = tmp_path / "c.yaml", tmp_path / "ledger.jsonl", tmp_path / "out"
    method = TINY | {"steps": 25, "warm_attempts": 3}
    values = spectral(public, spectral=method, count=4)
    del values["classes"], values["classes_origin"]
    config.write_text(yaml.safe_dump(values))
    kills = 0
    for attempt, grown in enumerate((2, 5)):
        begun, lines = length(ledger), 0
        words = ("synthesize", private, out, "--config", config, "--ledger", ledger)
        process = launch(*(words if attempt == 0 else ("resume", out.with_name("out.run"))))
        while process.poll() is None and lines < grown:
            if length(ledger) != begun:
                begun, lines = length(ledger), lines + 1
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
    last = launch("resume", out.with_name("out.run"))
    _, told = last.communicate(timeout=300)
    assert last.returncode == 0, told.decode()
    assert kills == 2
    statement = json.loads((out / "privacy.json").read_text())
    assert statement["plan"] == json.loads((out.with_name("out.run") / "plan.json").read_text())
    assert Ledger.verify(ledger) == []
    entries = Ledger.open("small", ledger).entries()
    written = Counter((entry["kind"], entry.get("touch"), entry.get("attempt")) for entry in entries)
    touched = {key: count for key, count in written.items() if key[0] in ("intent", "done")}
    assert set(touched.values()) == {1}, "an attempt was begun or finished twice"
    assert sum(key[:2] == ("intent", "fine-tuning") for key in touched) == 25


def test_other_public_images_end_a_run(private: Path, public: Path, tmp_path: Path) -> None:
    images = shutil.copytree(public, tmp_path / "images")
    config = validated(spectral(images))
    begun = run.prepare(config, private, tmp_path / "out", tmp_path / "out.run", plan_of(config))
    next(images.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="not what they were"):
        run.finish(begun)


def test_what_is_missing_is_said_before_anything_is_spent(private: Path, public: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--public"):
        validated(spectral(public, public=None))
    with pytest.raises(UserError, match=r"^Images of 16x16 .* multiples of 32"):
        validated(spectral(public, image={"height": 16, "width": 16}, spectral=TINY | {"levels": 3, "patch": 4}))
    for key in ("detail", "enlarge"):
        with pytest.raises(UserError, match="no upscaler called 'nothing'; known are lanczos, realesrgan"):
            forecast_spectral(validated(spectral(public, spectral=TINY | {key: "nothing"})))
    config = validated(spectral(public, spectral=TINY | {"detail": "realesrgan-x4plus"}))
    with pytest.raises(UserError, match="pull"):  # the tests' own home holds no models
        run.prepare(config, private, tmp_path / "out", tmp_path / "out.run", plan_of(config))
    assert not (tmp_path / "out.run").exists()


def test_texts_are_learnt_from_public_classes_or_refused(private: Path, public: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, file in enumerate(sorted(public.rglob("*.png"))):
        shutil.copy(file, flat / f"{number}.png")
    config = validated(spectral(flat, spectral=TINY | {"condition": "text"}))
    with pytest.raises(UserError, match="from public images with classes"):
        run.prepare(config, private, tmp_path / "out", tmp_path / "out.run", plan_of(config))


def test_forecast_counts_what_the_label_check_draws_and_judges(public: Path) -> None:
    def minutes(share: float, count: int) -> tuple[SpectralSpeed, float]:
        method = TINY | {"detail": "lanczos", "check": {"share": share, "steps": 2, "batch": 16}}
        found = forecast_spectral(validated(spectral(public, spectral=method, count=count)), choose_hardware("cpu"))
        return found.speed, found.total_minutes

    plain, _ = minutes(0.0, 100)
    few, _ = minutes(0.1, 100)
    many, total = minutes(0.1, 100_000)
    assert plain.check_seconds == 0 < 20 * few.check_seconds < many.check_seconds
    assert 60 * total > 100_000 / many.pictures_per_second + many.check_seconds


def test_forecast(public: Path) -> None:
    config = validated(spectral(public, public_size=5_000, spectral=TINY | {"detail": "lanczos"}))
    found = forecast_spectral(config, choose_hardware("cpu"))
    assert found.plan.planned_epsilon <= 8
    assert found.tokens == 16
    assert {floor.levels for floor in found.floors} == {1, 2, 3}
    assert [floor.levels for floor in found.floors if floor.detail == "lanczos"] == [1, 2, 3]
    assert found.reconstruction == ()
    assert found.speed.rows_per_second > 0
    text = str(found)
    assert "Oracle floor" in text
    assert "100 hours of private training" in str(replace(found, training_minutes=6000.0))
    assert "regression" in text
    assert json.loads(json.dumps(found.to_json()))["floors"][0]["levels"] == 1


def test_forecast_counts_noise_and_chunks_that_are_filled_up(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = TINY | {"detail": "lanczos"}
    config = validated(spectral(public, public_size=5_000, spectral=method | {"batch": 20, "steps": 6, "chunk": 4}))
    monkeypatch.setattr(Crew, "rows_per_second", lambda *_, **__: 10.0)
    monkeypatch.setattr(Crew, "seconds_beside", lambda *_: 3.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    found = forecast_spectral(config, choose_hardware("cpu"))
    assert found.speed.rows_per_second == pytest.approx(20 / ((20 + 4) / 10 + 3))
    assert found.training_minutes == pytest.approx(6 * 5.4 / 60)


def test_forecast_knows_the_run_s_own_detail_once_it_was_made(private: Path, public: Path, tmp_path: Path) -> None:
    images = sf.PrivateImages(
        private, dataset="small", public_size=90, classes=list(CLASSES), size=(16, 16), channels=1
    )
    public_images = sf.PublicImages(public)
    method = sf.Spectral(epsilon=8.0, delta=1e-5, public=public_images, **TINY | {"detail": "tokens"})
    model = method.fit(images, tmp_path / "run")
    assert model.sample(3).pixels.shape == (3, 1, 16, 16)
    found = method.forecast(images)
    assert [floor.detail for floor in found.floors if floor.levels == 1] == ["lanczos", "regression", "own"]

    pieces = sf.Spectral(epsilon=8.0, delta=1e-5, public=public_images, **TINY | {"detail": "examples"})  # nothing made
    measured = [floor for floor in pieces.forecast(images).floors if floor.detail == "examples"]
    assert [(floor.levels, floor.height) for floor in measured] == [(1, 8), (2, 4)]
    assert all(floor.sharpness > 0.2 for floor in measured)
    assert [error.height for error in found.reconstruction] == [8, 16]
    assert "Tokens up to 16x16" in str(found)


def test_minutes_decide_the_steps(public: Path) -> None:
    config = validated(spectral(public, public_size=160, minutes=2.0, count=40))
    timed = with_spectral_steps(config, SPEED)
    left = 120 * 0.94 - 160 / 2000 - 30 - 6 - 40 / 4
    assert timed.spectral.steps == int(left * 100 / 16)
    with pytest.raises(UserError, match="too few"):
        with_spectral_steps(validated(spectral(public, minutes=0.5)), SPEED)
    assert with_spectral_steps(validated(spectral(public)), SPEED).spectral.steps == 3
