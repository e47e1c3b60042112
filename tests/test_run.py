"""The order of things: folders, plan, ledger, model, release; and what a second look at a run finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import run
from sfumato.config import validated
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.methods import privimage_model
from sfumato.methods.denoising import draw_pictures
from sfumato.privacy.ledger import Cap, Ledger
from sfumato.privacy.noise import TestNoise
from tests.small_set import draw_folder, plan_of, settings


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("private"))


def start(private: Path, tmp_path: Path, name: str = "one", **changes: object) -> run.Run:
    config = validated(settings(**changes))
    return run.prepare(config, private, tmp_path / name, tmp_path / f"{name}.run", plan_of(config))


def test_a_whole_run(private: Path, tmp_path: Path) -> None:
    begun = start(private, tmp_path)
    seen: set[str] = set()
    out = run.finish(begun, lambda stage, done, of: seen.add(stage))
    assert out == tmp_path / "one"
    assert len(list(out.rglob("*.png"))) == 12
    assert {"private training", "sampling", "writing images"} <= seen
    statement = json.loads((out / "privacy.json").read_text())
    assert statement["epsilon"] <= 8.0
    assert statement["executed"] == {"warm start": 1, "fine-tuning": 5}
    assert begun.folder.stat().st_mode & 0o777 == 0o700
    assert not (begun.folder / "private").exists()
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    lines = len(begun.ledger.entries())
    assert run.finish(begun) == out
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    assert len(begun.ledger.entries()) == lines


def test_nothing_private_is_in_the_release(private: Path, tmp_path: Path) -> None:
    begun = start(private, tmp_path)
    out = run.finish(begun)
    assert out is not None
    facts = begun.facts
    words = [facts["run_id"], facts["key"], str(private), str(tmp_path), begun.ledger.fingerprint(begun.run_id)]
    for file in out.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not any(word.encode() in data for word in words), file


def test_sampling_is_free_and_repeatable(private: Path, tmp_path: Path) -> None:
    begun = start(private, tmp_path)
    model = run.train(begun)
    spent = begun.ledger.spent()
    one, same, other = (run.draw(begun, model, 9, seed) for seed in (1, 1, 2))
    assert np.array_equal(one.pixels, same.pixels)
    assert not np.array_equal(one.pixels, other.pixels)
    assert one.labels is not None
    assert np.bincount(one.labels).tolist() == [3, 3, 3]
    loaded = run.load_model(begun)
    assert np.array_equal(run.draw(begun, loaded, 9, 1).pixels, one.pixels)
    run.publish(begun, other, tmp_path / "more")
    assert begun.ledger.spent() == spent


def test_two_runs_draw_different_noise(private: Path, tmp_path: Path) -> None:
    Ledger.open("small").set_cap(Cap(20.0, 1e-4))
    models = [run.train(start(private, tmp_path, name)) for name in ("one", "two")]
    assert not torch.equal(models[0].prototypes.means, models[1].prototypes.means)


def test_a_second_run_needs_a_higher_cap(private: Path, tmp_path: Path) -> None:
    run.train(start(private, tmp_path, "one"))
    second = start(private, tmp_path, "two")
    with pytest.raises(PrivacyRefusal, match="cap"):
        run.train(second)
    assert "intent" not in {entry["kind"] for entry in second.ledger.entries() if entry.get("run") == second.run_id}
    Ledger.open("small").set_cap(Cap(20.0, 1e-4))
    run.train(second)
    statement = run.statement(second)
    assert statement.runs == 2
    assert statement.total is not None
    assert statement.total[0] > 8


def test_test_noise_cannot_be_released(private: Path, tmp_path: Path) -> None:
    begun = start(private, tmp_path)
    model = run.train(begun, noise=TestNoise(b"x"))
    assert (begun.folder / "model-NOT-PRIVATE.safetensors").exists()
    assert b"NOT PRIVATE" in (begun.folder / "model-NOT-PRIVATE.safetensors").read_bytes()
    assert "NOT PRIVATE" in begun.ledger.path.read_text()
    with pytest.raises(PrivacyRefusal, match="NOT PRIVATE"):
        run.publish(begun, run.draw(begun, model, 3, 0), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_a_crash_left_undone_at_the_end_is_done(private: Path, tmp_path: Path) -> None:
    begun = start(private, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_close", lambda _: None)
        patch.setattr(run, "_note", lambda *_: None)
        run.finish(begun)
    kinds = [entry["kind"] for entry in begun.ledger.entries()]
    assert (begun.folder / "private").exists()
    assert "finished" not in kinds
    assert "release" not in kinds
    for _ in range(2):
        run.finish(begun)
        kinds = [entry["kind"] for entry in begun.ledger.entries()]
        assert not (begun.folder / "private").exists()
        assert kinds.count("finished") == kinds.count("release") == 1


def test_a_drawing_that_was_cut_off_goes_on(private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, drawn = start(private, tmp_path), []

    def counted(*given: Any) -> torch.Tensor:
        drawn.append(len(given[3]))
        return draw_pictures(*given)

    def killed(stage: str, done: int, of: int | None) -> None:
        if stage == "writing images" and done > 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(privimage_model, "draw_pictures", counted)
    with pytest.raises(KeyboardInterrupt):
        run.finish(begun, killed)
    assert drawn == [12]
    assert not (tmp_path / "one").exists()
    assert run.finish(begun) == tmp_path / "one"
    model = run.load_model(begun)
    with pytest.raises(UserError, match="already exists"):
        run.make_release(begun, model, 12, 5, tmp_path / "one")
    assert drawn == [12]
    assert not any((begun.folder / run.DRAWN).iterdir())
    made = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "one").rglob("*.png"))]
    seed = begun.config.seed
    assert len(made) == 12
    assert sorted(map(bytes, made)) == sorted(map(bytes, run.draw(begun, model, 12, seed).pixels))


def test_what_is_left_of_a_drawing_goes_when_its_release_is_there(private: Path, tmp_path: Path) -> None:
    begun = start(private, tmp_path)
    run.finish(begun)
    left = run._drawn(begun, 12, begun.config.seed, tmp_path / "one")
    assert left is not None
    left.mkdir()
    run.finish(begun)
    assert not left.exists()


def test_a_private_run_cannot_go_on_with_test_noise(private: Path, tmp_path: Path) -> None:
    begun = start(private, tmp_path)
    run.train(begun)
    (begun.folder / "TRAINED").unlink()
    with pytest.raises(PrivacyRefusal, match="entered as private"):
        run.train(begun, noise=TestNoise())


def test_a_changed_folder_cannot_be_resumed(tmp_path: Path) -> None:
    private = draw_folder(tmp_path / "private", 30)
    begun = start(private, tmp_path)
    run.train(begun)
    (begun.folder / "TRAINED").unlink()
    next(private.rglob("*.png")).unlink()
    with pytest.raises(PrivacyRefusal, match="not what it was"):
        run.train(begun)


def test_an_empty_folder_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    begun = start(tmp_path / "empty", tmp_path)
    with pytest.raises(UserError, match="no images"):
        run.train(begun)
    assert begun.ledger.head()[0] == -1


def test_one_image_is_a_data_set(tmp_path: Path) -> None:
    private = draw_folder(tmp_path / "private", 1)
    assert run.finish(start(private, tmp_path, public_size=None, classes=None, classes_origin=None)) is not None


def test_the_plan_does_not_know_the_folder(private: Path, tmp_path: Path) -> None:
    other = draw_folder(tmp_path / "other", 31)
    config = validated(settings())
    for folder, name in ((private, "one"), (other, "two")):
        prepared = run.prepare(config, folder, tmp_path / name, tmp_path / f"{name}.run", run.make_plan(config))
        assert prepared.plan == plan_of(config)


def test_people(tmp_path: Path) -> None:
    private = draw_folder(tmp_path / "private", 30)
    lines = [
        {"file_name": str(file.relative_to(private)), "label": file.parent.name, "person_id": f"p{number % 10}"}
        for number, file in enumerate(sorted(private.rglob("*.png")))
    ]
    (private / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    begun = start(private, tmp_path, unit="person", public_size=10)
    run.finish(begun)
    assert json.loads((begun.folder / "intake.json").read_text())["records"] == 10
    assert "all images of one person" in run.statement(begun).render()


def test_a_missing_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        run.finish(run.Run(tmp_path))


def test_clean(private: Path, tmp_path: Path) -> None:
    begun = start(private, tmp_path)
    with pytest.raises(UserError, match="not finished"):
        run.clean(begun, everything=False)
    run.train(begun)
    run.clean(begun, everything=False)
    assert not (begun.folder / "touches").exists()
    run.draw(begun, run.load_model(begun), 3, 0)
    run.clean(begun, everything=True)
    assert not begun.folder.exists()
