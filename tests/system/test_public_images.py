"""Whole runs that learn from public images first: through the release, killed between stages, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.small_set import CLASSES, SMALL, draw_folder, plan_of, settings

import sfumato as sf
from sfumato import run
from sfumato.config import validated
from sfumato.errors import UserError
from sfumato.methods import privimage
from sfumato.privacy.noise import TestNoise
from sfumato.privacy.plan import HistogramTouch
from sfumato.report.render import METHODS

METHOD = SMALL | {
    "semantic": {"votes": 1, "steps": 12},
    "pretraining": {"steps": 4, "batch": 16, "guides": 4},
}


class Killed(Exception):  # noqa: N818
    """Stands for a kill between two stages."""


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("private"))


@pytest.fixture
def public(tmp_path: Path) -> Path:
    folder = draw_folder(tmp_path / "public", 60)
    (folder / "SOURCE.json").write_text(json.dumps({"name": "drawn", "licence": "CC0-1.0"}))
    return folder


def start(private: Path, images: Path, tmp_path: Path, name: str = "one", **changes: Any) -> run.Run:
    config = validated(settings(**({"public": {"folders": [str(images)]}, "privimage": METHOD} | changes)))
    anywhere = config.public and config.public.model_copy(update={"folders": ("anywhere",)})
    plan = plan_of(config.model_copy(update={"public": anywhere, "ledger": None}))  # one for tests that differ in these
    return run.prepare(config, private, tmp_path / name, tmp_path / f"{name}.run", plan)


def test_a_whole_run(private: Path, public: Path, tmp_path: Path) -> None:
    begun = start(private, public, tmp_path)
    stages: list[str] = []
    out = run.finish(begun, lambda stage, done, of: stages.append(stage))
    assert out is not None
    assert list(dict.fromkeys(stage for stage in stages if "images" not in stage or "public" in stage)) == [
        "reading public images",
        "classifier of public images",
        "semantic query",
        "pretraining on public images",
        "noisy sum of the class models",
        "warm-up on the class models",
        "private training",
        "sampling",
    ]
    statement = json.loads((out / "privacy.json").read_text())
    assert statement["executed"] == {"semantic query": 1, "warm start": 1, "fine-tuning": 5}
    assert statement["epsilon"] <= 8
    assert "60 public images 'drawn'" in statement["text"]
    assert "CC0-1.0" in statement["text"]
    assert "No public images" not in statement["text"]
    query = begun.plan.touches[0]
    assert isinstance(query, HistogramTouch)
    assert (query.cells, query.attempts) == (1, 2)
    assert begun.plan.shares()["semantic query"] == pytest.approx(0.02, rel=1e-3)
    curves = {json.loads(line)["stage"] for line in (begun.folder / "losses.jsonl").read_text().splitlines()}
    assert curves == {"pretraining on public images", "warm-up on the class models"}
    chosen = statement["released"]["public_classes"]
    assert list(chosen) == list(CLASSES)
    assert {row[0][0] for row in chosen.values()} == set(CLASSES)  # disjoint, one for each
    kept = json.loads((begun.folder / "selection.json").read_text())
    assert kept["public_classes"] == list(CLASSES)
    assert [len(row) for row in kept["noisy_votes"]] == [3, 3, 3]
    with Image.open(begun.folder / "selection.png") as sheet:
        assert sheet.width > 16 * 16
        assert sheet.height > 3 * 16
    page = (out / "report.html").read_text()
    assert "Public images that came first" in page
    assert METHODS["privimage"] in page
    assert str(tmp_path) not in page + json.dumps(statement)


@pytest.mark.parametrize(
    ("side", "classes", "changes"),
    [
        (32, CLASSES, {"label_dropout": 0.2, "sampler": {"steps": 3, "guidance": 1.0}}),
        (64, None, {"draws": 2, "chunk": 8}),
    ],
    ids=["with classes and guidance", "without classes"],
)
def test_in_colour(
    side: int, classes: tuple[str, ...] | None, changes: dict[str, Any], private: Path, public: Path, tmp_path: Path
) -> None:
    semantic = {"votes": 1, "steps": 12, "rule": "overlapping"}
    begun = start(
        private,
        public,
        tmp_path,
        image={"height": side, "width": side, "channels": 3},
        classes=classes,
        classes_origin="listed" if classes else None,
        privimage=METHOD | changes | {"semantic": semantic},
    )
    out = run.finish(begun)
    assert out is not None
    made = sorted(out.rglob("*.png"))
    assert len(made) == begun.config.count
    for file in made:
        with Image.open(file) as picture:
            assert (picture.mode, picture.size) == ("RGB", (side, side))
    chosen = json.loads((out / "privacy.json").read_text())["released"]["public_classes"]
    assert list(chosen) == list(classes or ["all images"])


def test_without_public_images_nothing_of_it_is_said(private: Path, public: Path, tmp_path: Path) -> None:
    begun = start(private, public, tmp_path, public=None)
    assert [touch.name for touch in begun.plan.touches] == ["warm start", "fine-tuning"]
    out = run.finish(begun)
    assert out is not None
    statement = json.loads((out / "privacy.json").read_text())
    assert statement["released"] == {}
    assert "No public images or pretrained models were used." in statement["text"]
    assert "Public images that came first" not in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("classifier of public images", set()),
        ("semantic query", {"classifier.safetensors"}),
        ("pretraining on public images", {"classifier.safetensors", "selection.json"}),
        ("noisy sum of the class models", {"classifier.safetensors", "selection.json", "pretrained.safetensors"}),
        ("private training", {"classifier.safetensors", "selection.json", "pretrained.safetensors"}),
    ],
)
def test_killed_between_stages(
    stage: str, left: set[str], private: Path, public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = start(private, public, tmp_path)

    def kill(now: str, done: int, of: int | None) -> None:
        if now == stage:
            raise Killed

    with pytest.raises(Killed):
        run.finish(begun, kill)
    files = {"classifier.safetensors", "selection.json", "pretrained.safetensors"}
    assert {file.name for file in begun.folder.iterdir()} & files == left
    touches = begun.folder / "touches"
    drawn = {file.name: file.read_bytes() for file in touches.iterdir() if "fine-tuning" not in file.name}
    stages: set[str] = set()
    if stage == "private training":
        shutil.rmtree(public)  # what is learnt is in the state: public images are not needed any more
    out = run.finish(begun, lambda now, done, of: stages.add(now))
    assert out is not None
    assert all((touches / name).read_bytes() == value for name, value in drawn.items()), "a value was drawn again"
    executed = json.loads((out / "privacy.json").read_text())["executed"]
    assert executed == {"semantic query": 1, "warm start": 1, "fine-tuning": 5}
    assert ("pretraining on public images" in stages) == ("pretrained.safetensors" not in left)
    assert ("classifier of public images" in stages) == ("classifier.safetensors" not in left)
    assert len(privimage.read_selection(begun.folder, not_private=False)) == 3


def test_test_noise_is_stamped(private: Path, public: Path, tmp_path: Path) -> None:
    begun = start(private, public, tmp_path)
    run.train(begun, noise=TestNoise())
    names = {file.name for file in begun.folder.iterdir()}
    assert {"selection-NOT-PRIVATE.json", "selection-NOT-PRIVATE.png", "pretrained-NOT-PRIVATE.safetensors"} <= names
    assert not {"selection.json", "pretrained.safetensors"} & names
    assert b"NOT PRIVATE" in (begun.folder / "pretrained-NOT-PRIVATE.safetensors").read_bytes()
    # Nothing hides the truth now: each class resembles itself most.
    chosen = privimage.read_selection(begun.folder, not_private=True)
    assert [row[0][0] for row in chosen.values()] == list(CLASSES)


def test_a_second_run_finds_the_classifier(private: Path, public: Path, tmp_path: Path) -> None:
    run.train(start(private, public, tmp_path, "one", ledger=str(tmp_path / "one.jsonl")))
    stages: set[str] = set()
    second = start(private, public, tmp_path, "two", ledger=str(tmp_path / "two.jsonl"))
    run.train(second, lambda stage, done, of: stages.add(stage))
    assert "semantic query" in stages
    assert "classifier of public images" not in stages


def test_changed_public_images_are_refused(private: Path, public: Path, tmp_path: Path) -> None:
    begun = start(private, public, tmp_path)
    next(public.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="public images are not what they were"):
        run.train(begun)
    assert not any(entry["kind"] == "intent" for entry in begun.ledger.entries())


@pytest.mark.parametrize("classes", [list(CLASSES), None])
def test_unlabelled_public_images(private: Path, tmp_path: Path, classes: list[str] | None) -> None:
    public = draw_folder(tmp_path / "drawn", 60)
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in public.rglob("*.png"):
        file.rename(flat / file.name)
    method = METHOD | {"semantic": {"votes": 2, "steps": 12, "clusters": 8, "kept": 1.0}}
    origin = classes and "listed"
    begun = start(private, flat, tmp_path, privimage=method, classes=classes, classes_origin=origin)
    assert run.finish(begun) is not None
    chosen = run.statement(begun).to_json()["released"]["public_classes"]
    assert [len(row) for row in chosen.values()] == ([2, 2, 2] if classes else [8])
    assert list(chosen) == (classes or ["all images"])


def test_what_is_refused(private: Path, public: Path, tmp_path: Path) -> None:
    def words(folder: Path, **semantic: Any) -> dict[str, Any]:
        return {"public": {"folders": [str(folder)]}, "privimage": METHOD | {"semantic": semantic}}

    (tmp_path / "empty").mkdir()
    plan = start(private, public, tmp_path).plan
    for changes, sentence in (
        (words(tmp_path / "none"), "does not exist"),
        (words(private / "bars"), "overlap"),
        (words(tmp_path / "empty"), "no images in the public folder"),
        (words(public, votes=4), "votes for 4 public classes, but there are 3"),
        (words(public, votes=1, clusters=2), "only 2 public ones"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            run.prepare(validated(settings(**changes)), private, tmp_path / "x", tmp_path / "refused.run", plan)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "refused.run").exists()


def test_the_python_interface(private: Path, public: Path, tmp_path: Path) -> None:
    images = sf.PrivateImages(private, dataset="api", public_size=90, classes=CLASSES, size=(16, 16))
    method = sf.PrivImage(epsilon=8.0, delta=1e-5, count=6, public=sf.PublicImages(public, ground="dark"), **METHOD)
    forecast = method.forecast(images)
    assert forecast.plan.touches[0].name == "semantic query"
    assert any("public pretraining" in note for note in forecast.notes)
    bare = sf.PrivImage(epsilon=8.0, delta=1e-5, count=6, **METHOD).forecast(images)
    assert [touch.name for touch in bare.plan.touches] == ["warm start", "fine-tuning"]
    model = method.fit(images, tmp_path / "run")
    assert "'drawn'" in model.statement
    assert len(model.sample(3).pixels) == 3


def test_the_published_settings_run(private: Path, public: Path, tmp_path: Path) -> None:
    """The network, clipping, label dropout, selection rule and sampler of the paper, at a size that takes seconds."""
    paper = {
        "preset": "paper",
        "ddpmpp": {"width": 8, "multiples": [1, 2], "attention": [8], "blocks": 1},
        "batch": 40,
        "steps": 2,
        "draws": 2,
        "chunk": 16,
        "sampler": {"steps": 3},
        "semantic": {"votes": 1, "steps": 12},
        "pretraining": {"steps": 2, "batch": 16},
    }
    begun = start(private, public, tmp_path, privimage=paper)
    assert [touch.name for touch in begun.plan.touches] == ["semantic query", "fine-tuning"]
    out = run.finish(begun)
    assert out is not None
    assert len(list(out.rglob("*.png"))) == 12
    model = run.load_model(begun)
    assert model.prototypes is None
    assert sum(p.numel() for p in model.network.parameters()) > 1_000


@pytest.mark.parametrize("selection", ["random", "all"])
def test_images_that_nobody_asked_for(selection: str, private: Path, public: Path, tmp_path: Path) -> None:
    begun = start(private, public, tmp_path, privimage=METHOD | {"selection": selection})
    stages: list[str] = []
    out = run.finish(begun, lambda stage, done, of: stages.append(stage))
    assert out is not None
    assert "pretraining on public images" in stages
    assert not {"classifier of public images", "semantic query"}.intersection(stages)
    statement = json.loads((out / "privacy.json").read_text())
    assert statement["executed"] == {"warm start": 1, "fine-tuning": 5}
    assert "60 public images 'drawn'" in statement["text"]
    assert "public_classes" not in statement["released"]
    assert not (begun.folder / "selection.json").exists()
