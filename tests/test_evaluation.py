"""The internal report: looks before reading, a reference beside each figure, and nothing of it in the release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from sfumato import evaluation
from sfumato.cli_evaluate import evaluate
from sfumato.data.release import Provenance, Samples, verify_release, write_release
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.evaluation import evaluate_release, ledger_of
from sfumato.measure import recipes
from sfumato.privacy.ledger import Cap, Ledger
from sfumato.report.evaluation import NOTICE
from tests.measure.lines import CLASSES, folder_of, pictures

SHAPE = {"height": 12, "width": 12, "channels": 1, "fit": "crop", "range16": [0, 65535]}


@pytest.fixture(autouse=True)
def _short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "LEAST", 2000)


@pytest.fixture
def ledger() -> Ledger:
    ledger = Ledger.open("lines")
    ledger.set_cap(Cap(1.0, 1e-6))
    return ledger


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    names = {"private": 1, "holdout": 2}
    return {name: folder_of(tmp_path / name, 90, seed) for name, seed in names.items()}


def release_of(place: Path, ledger: Ledger, pixels: np.ndarray, labels: np.ndarray | None, **image: Any) -> Path:
    statement = {
        "text": "These images were made under (1.0, 1e-06)-differential privacy.",
        "not_private": False,
        "release_id": "5eed5eed5eed5eed",
        "epsilon": 1.0,
        "delta": 1e-6,
        "unit": "image",
        "declared": {"image": SHAPE | image},
        "data_set": {"ledger": ledger.public_id()},
    }
    classes = None if labels is None else CLASSES
    return write_release(Samples(pixels, labels, classes, None, Provenance("run", "privimage", statement)), place)


@pytest.fixture
def release(tmp_path: Path, ledger: Ledger) -> Path:
    return release_of(tmp_path / "release", ledger, *pictures(60, 0))


def looks(ledger: Ledger) -> list[str]:
    return [str(entry["what"]) for entry in ledger.entries() if entry["kind"] == "look"]


def measured(release: Path, places: dict[str, Path], ledger: Ledger, out: Path, **options: Any) -> dict[str, Any]:
    settings = {"embedders": ["pixels"], "classifiers": ["logistic"], "device": "cpu"} | options
    return evaluate_release(release, places["private"], places["holdout"], ledger=ledger, out=out, **settings)


def test_every_figure_has_its_reference_and_all_of_it_stays_inside(
    release: Path, places: dict[str, Path], ledger: Ledger, tmp_path: Path
) -> None:
    told: dict[str, tuple[int, int | None]] = {}
    facts = measured(
        release,
        places,
        ledger,
        tmp_path / "in",
        classifiers=["logistic", "mlp"],
        report=lambda stage, done, of: told.update({stage: (done, of)}),
    )
    found = facts["distances"]["pixels"]
    assert found["images"] == 60
    assert found["release"].keys() == found["reference"].keys()
    assert len(found["release"]) == 5
    for side in ("release", "reference"):
        assert {(one["real"], one["generated"]) for one in found[side].values()} == {(60, 60)}
        assert found[side]["precision_recall"]["precision"] > 0.5  # both are drawn like the private ones
        assert abs(found[side]["density_coverage"]["coverage"] - found["expected"]["coverage"]) < 0.25
        assert found[side]["nearest"]["copies"] == 0
    assert abs(found["lean"]["share"] - 0.5) < 4 * found["lean"]["deviation"]
    table = facts["classifiers"]
    assert [one["classifier"] for one in table["synthetic"]] == ["logistic", "mlp"]
    assert {one["train_images"] for one in (*table["synthetic"], *table["real"])} == {60}
    assert {one["test_images"] for one in (*table["synthetic"], *table["real"])} == {90}
    assert {"pixels: private images", "pixels: distances", "mlp on real images"} <= told.keys()
    inside = {path.name: path for path in (tmp_path / "in").iterdir()}
    assert inside.keys() == {"evaluation.json", "neighbours.png", "internal.html"}
    assert (tmp_path / "in").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in inside.values()} == {0o600}
    assert json.loads(inside["evaluation.json"].read_text()) == facts
    assert facts["notice"] == NOTICE
    assert NOTICE in inside["internal.html"].read_text()
    assert verify_release(release) == []


def test_a_release_of_copies_and_one_of_noise_are_told_from_an_honest_one(
    places: dict[str, Path], ledger: Ledger, tmp_path: Path
) -> None:
    copies = release_of(tmp_path / "copies", ledger, *pictures(90, 1))
    found = measured(copies, places, ledger, tmp_path / "a", classifiers=[])["distances"]["pixels"]
    assert found["release"]["nearest"]["copies"] == 90
    assert found["lean"]["share"] == 1
    assert found["release"]["frechet"]["distance"] < 1e-6 < found["reference"]["frechet"]["distance"]
    noise = np.random.default_rng(0).integers(0, 256, (90, 1, 12, 12), np.uint8)
    poor = release_of(tmp_path / "noise", ledger, noise, pictures(90, 0)[1])
    facts = measured(poor, places, ledger, tmp_path / "b")
    found = facts["distances"]["pixels"]
    for metric in ("frechet", "kernel"):
        name = {"frechet": "distance", "kernel": "mean"}[metric]
        assert found["release"][metric][name] > 3 * abs(found["reference"][metric][name])
    assert found["release"]["density_coverage"]["coverage"] < 0.2
    assert facts["classifiers"]["real_mean"] > facts["classifiers"]["mean"] + 0.05


def test_the_looks_are_on_the_ledger_before_a_file_is_opened(
    release: Path, places: dict[str, Path], ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(folder: Path, *_: object) -> Any:
        seen.append(len(looks(ledger)))
        raise RuntimeError("a crash")

    monkeypatch.setattr(evaluation, "read_images", watched)
    with pytest.raises(RuntimeError):
        measured(release, places, ledger, tmp_path / "in")
    assert seen == [2]
    found = looks(ledger)
    assert [word in look for word, look in zip(("private", "holdout"), found, strict=True)] == [True, True]
    assert all("5eed5eed5eed5eed" in look and str(tmp_path) not in look for look in found)
    assert ledger.looks() == 2


def test_colour_images_and_private_ones_of_other_sizes(places: dict[str, Path], ledger: Ledger, tmp_path: Path) -> None:
    pixels, labels = pictures(45, 0)
    large = np.repeat(np.repeat(np.repeat(pixels, 3, 1), 8, 2), 8, 3)  # 96 x 96; classifiers see 64 x 64
    release = release_of(tmp_path / "release", ledger, large, labels, height=96, width=96, channels=3)
    for path in places["private"].glob("*/*.png"):
        with Image.open(path) as image:
            image.convert("RGB").resize((48, 24)).save(path)
    facts = measured(release, places, ledger, tmp_path / "in")
    assert facts["distances"]["pixels"]["images"] == 45
    assert facts["classifiers"]["synthetic"][0]["test_images"] == 90


def test_classes_that_only_one_side_has_are_left_out_and_no_labels_are_no_fault(
    places: dict[str, Path], ledger: Ledger, tmp_path: Path
) -> None:
    (places["private"] / "other").mkdir()
    Image.new("L", (12, 12)).save(places["private"] / "other" / "0.png")
    for path in (places["holdout"] / "both").iterdir():
        path.unlink()
    release = release_of(tmp_path / "release", ledger, *pictures(60, 0))
    (one,) = measured(release, places, ledger, tmp_path / "a")["classifiers"]["synthetic"]
    assert one["per_class"].keys() == {"down", "across"}
    assert one["test_images"] == 60
    bare = release_of(tmp_path / "bare", ledger, pictures(60, 0)[0], None)
    facts = measured(bare, places, ledger, tmp_path / "b")
    assert "no readable images with labels" in facts["classifiers"]["absent"]
    assert "no readable images with labels" in (tmp_path / "b" / "internal.html").read_text()


def test_what_is_refused_leaves_no_look(release: Path, places: dict[str, Path], ledger: Ledger, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, **changes: Any) -> None:
        given = {"release": release, **places, "ledger": ledger, "out": tmp_path / "in", "embedders": ["pixels"]}
        with pytest.raises(error, match=match) as caught:
            evaluate_release(**(given | changes))
        assert "\n" not in str(caught.value)
        assert looks(ledger) == []

    refused(UserError, "does not exist", private=tmp_path / "none")
    refused(UserError, "does not exist", release=tmp_path / "none")
    refused(UserError, "other images", holdout=places["private"])
    refused(UserError, "other images", holdout=places["private"] / "down")
    refused(UserError, "release folder", out=release / "in")
    refused(UserError, "private folder", out=places["private"])
    refused(UserError, "holdout folder", out=places["holdout"] / "x")
    (tmp_path / "file").touch()
    refused(UserError, "not a folder", out=tmp_path / "file")
    refused(UserError, "cannot be written", out=tmp_path / "file" / "in")
    refused(UserError, "12 or more", images=3)
    refused(UserError, "no embedder 'vgg'", embedders=["vgg"])
    refused(UserError, "pull", embedders=["efficientnet-lite0"])
    stranger = Ledger.open("stranger")
    stranger.set_cap(Cap(1.0, 1e-6))
    refused(UserError, "not the one", ledger=stranger)
    refused(UserError, "not the one", ledger=Ledger.open("nothing-yet"))
    assert not Ledger.open("nothing-yet").path.exists()
    (release / "README.md").write_text("changed")
    refused(UserError, "not as it was written")
    (release / "DONE").unlink()
    refused(PrivacyRefusal, "no DONE")
    assert not (tmp_path / "in").exists()


def test_too_few_images_are_one_sentence(
    release: Path, places: dict[str, Path], ledger: Ledger, tmp_path: Path
) -> None:
    for path in sorted(places["holdout"].glob("*/*.png"))[5:]:
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="at least 12 readable images"):
        measured(release, places, ledger, tmp_path / "in")


def test_the_ledger_is_named_by_the_run_folder_or_by_hand(release: Path, ledger: Ledger, tmp_path: Path) -> None:
    run = tmp_path / "release.run"
    with pytest.raises(UserError, match="--dataset"):
        ledger_of(release, run, None, None)
    assert ledger_of(release, run, "lines", None).path == ledger.path
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"dataset": "lines", "ledger": None}))
    assert ledger_of(release, run, None, None).path == ledger.path
    (run / "config.json").write_text(json.dumps({"dataset": "lines", "ledger": str(tmp_path / "own.jsonl")}))
    assert ledger_of(release, run, None, None).path == tmp_path / "own.jsonl"
    assert ledger_of(release, run, None, tmp_path / "given.jsonl").path == tmp_path / "given.jsonl"


def test_the_command(release: Path, places: dict[str, Path], ledger: Ledger) -> None:
    app = typer.Typer()
    app.command()(evaluate)

    def typed(*words: object) -> str:
        given = [release, "--private", places["private"], "--holdout", places["holdout"], "--dataset", "lines", *words]
        given += ["--embedder", "pixels"]
        return CliRunner().invoke(app, list(map(str, given)), catch_exceptions=False, standalone_mode=False).stdout

    with pytest.raises(PrivacyRefusal, match="--look"):
        typed("--classifiers", "none")
    with pytest.raises(UserError, match="tree"):
        typed("--look", "--classifiers", "tree")
    assert looks(ledger) == []
    text = typed("--look", "--classifiers", "logistic")
    assert text.startswith("INTERNAL: do not publish")
    assert "60 images" in text
    assert (release.parent / "release.run" / "internal.html").exists()
    facts = json.loads(typed("--look", "--classifiers", "none", "--json", "--images", 30))
    assert facts["notice"].startswith("INTERNAL: do not publish")
    assert facts["distances"]["pixels"]["images"] == 30
    assert "absent" in facts["classifiers"]
    assert len(looks(ledger)) == 4
    assert "sfumato evaluate" in CliRunner().invoke(app, ["--help"]).stdout
