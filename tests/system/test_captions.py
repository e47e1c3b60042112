"""Whole runs of Spectral that are told captions: with a real text embedder, killed, prompted, and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.methods.spectral_parts import TINY
from tests.pretrained.conftest import HOME, loaded
from tests.small_set import draw_folder, plan_of, settings
from tests.system.test_kill_and_resume import launch, length
from tests.test_cli import typed

import sfumato as sf
from sfumato import run
from sfumato._home import home
from sfumato.audit import inserted, membership
from sfumato.audit.standins import drawn
from sfumato.config import validated
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.forecast_spectral import forecast_spectral
from sfumato.hardware import choose_hardware
from sfumato.pretrained import zoo
from sfumato.privacy.noise import TestNoise

SECRET = "canarywort"
VECTOR = 384 * 4  # bytes
KINDS = {"bars": "stripes of light", "disc": "a bright disc", "ring": "a bright ring"}


def captioned(folder: Path, count: int, told: str) -> Path:
    """Drawings without classes, each with two captions that hold `told`."""
    draw_folder(folder / "drawn", count)
    lines = []
    for number, file in enumerate(sorted((folder / "drawn").rglob("*.png"))):
        kind = file.parent.name
        file.rename(folder / f"{number:03}.png")
        text = [f"{KINDS[kind]}\n{told}", f"{told} {kind} number {number}"]
        lines.append(json.dumps({"file_name": f"{number:03}.png", "text": text if number % 5 else text[0]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioned(tmp_path_factory.mktemp("private"), 60, SECRET)


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioned(tmp_path_factory.mktemp("public"), 60, "seen in public")


@pytest.fixture
def pulled(_own_home: Path) -> None:
    """The test's own home, with the real text embedder in it."""
    loaded("minilm")
    (home() / "models").mkdir(parents=True)
    (home() / "models" / "minilm").symlink_to(HOME / "models" / "minilm")


def told(images: Path, **changes: Any) -> dict[str, Any]:
    method = TINY | {"condition": "captions"} | changes
    shape = {"height": 16, "width": 16, "channels": 1}
    plain = settings(method="spectral", public={"folders": [str(images)]}, spectral=method, image=shape, classes=None)
    del plain["privimage"]
    return plain | {"classes_origin": None}


def everything(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_captions_are_told_and_go_nowhere(
    pulled: None, private: Path, public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = validated(told(public))
    begun = run.prepare(config, private, tmp_path / "out", tmp_path / "out.run", plan_of(config))
    seen: list[bytes] = []
    vectors: list[bytes] = []

    def look(stage: str, done: int, of: int | None) -> None:
        if stage == "private training" and not seen:
            kept = (begun.folder / "private" / "captions.f32").read_bytes()
            assert len(kept) == (60 * 2 - 12) * VECTOR
            vectors.extend(kept[place : place + VECTOR] for place in range(0, len(kept), VECTOR))
            seen.append(everything(begun.folder))

    out = run.finish(begun, look)
    assert out is not None
    left = everything(begun.folder) + everything(out) + everything(home())
    assert SECRET.encode() not in seen[0] + left
    assert all(vector in seen[0] for vector in vectors)
    assert not any(vector in left for vector in vectors)
    assert not (begun.folder / "private").exists()
    assert json.loads((begun.folder / "intake.json").read_text())["captions"] == 108
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    prompts = set(begun.facts["prompts"])
    assert len(prompts) == 3 + 48
    assert {row["text"] for row in rows} <= prompts
    assert len({row["text"] for row in rows}) == 12
    statement = json.loads((out / "privacy.json").read_text())["text"]
    assert "Captions, of private images too, were told by" in statement
    assert "A record is an image with its captions" in statement
    assert "captions, told to private training" in (begun.folder / "internal.html").read_text()

    asked = tmp_path / "prompts.txt"
    asked.write_text("a bright ring\n\n  stripes of light \n")
    typed("sample", begun.folder, tmp_path / "more", "-n", 5, "--prompts", asked)
    lines = (tmp_path / "more" / "metadata.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert sorted(set(texts)) == ["a bright ring", "stripes of light"]
    typed("sample", begun.folder, tmp_path / "again", "-n", 5, "--prompts", asked)
    assert everything(tmp_path / "again" / "images") == everything(tmp_path / "more" / "images")
    asked.write_text("\n")
    with pytest.raises(UserError, match="no prompts in"):
        typed("sample", begun.folder, tmp_path / "none", "--prompts", asked)
    with pytest.raises(UserError, match="lie in a private folder"):
        typed("sample", begun.folder, tmp_path / "none", "--prompts", private / "metadata.jsonl")
    model = sf.load(begun.folder)
    assert model.sample(2, prompts="a bright ring").texts == ["a bright ring"] * 2
    with pytest.raises(UserError, match="none of them empty"):
        model.sample(2, prompts=["a", " "])
    other = zoo.load_text_embedder("minilm")
    other.identity = replace(other.identity, revision="later")
    with monkeypatch.context() as later:
        later.setattr(zoo, "load_text_embedder", lambda _: other)
        with pytest.raises(UserError, match="told captions by another text embedder"):
            model.sample(2, prompts="a bright ring")
        assert model.sample(2).texts is not None
    kept = {run._drawn(begun, 5, 1, tmp_path, prompts) for prompts in ((), ("a",), ("b",), ("a", "b"))}
    assert len(kept) == 4  # what is kept of a drawing is of its prompts

    spec = config.image.spec()
    found = membership._likelihoods(begun.folder, spec, (private, public), 6, lambda *_: None)
    assert found is not None
    assert [gains.shape for gains in found] == [(6,), (6,)]


def test_a_kill_changes_nothing(pulled: None, private: Path, public: Path, tmp_path: Path) -> None:
    config, ledger, out = tmp_path / "c.yaml", tmp_path / "ledger.jsonl", tmp_path / "out"
    config.write_text(yaml.safe_dump(told(public, prompts=["a bright disc"], steps=25) | {"count": 4}))
    process = launch("synthesize", private, out, "--config", config, "--ledger", ledger)
    begun, lines = length(ledger), 0
    while process.poll() is None and lines < 6:
        if length(ledger) != begun:
            begun, lines = length(ledger), lines + 1
    assert process.poll() is None
    process.kill()
    process.communicate()
    last = launch("resume", out.with_name("out.run"))
    _, said = last.communicate(timeout=300)
    assert last.returncode == 0, said.decode()
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["a bright disc"] * 4


def test_a_kill_while_captions_are_read_leaves_none(pulled: None, private: Path, public: Path, tmp_path: Path) -> None:
    """Their file is there already and nothing is spent; a resumption reads them anew and takes all away."""
    config, ledger, out = tmp_path / "c.yaml", tmp_path / "ledger.jsonl", tmp_path / "out"
    config.write_text(yaml.safe_dump(told(public, prompts=["a bright disc"]) | {"count": 4}))
    process = launch("synthesize", private, out, "--config", config, "--ledger", ledger)
    folder = out.with_name("out.run")
    while process.poll() is None and not (folder / "private" / "captions.f32").exists():
        pass
    assert process.poll() is None
    process.kill()
    process.communicate()
    assert (folder / "private" / "captions.f32").exists()
    assert not (folder / "intake.json").exists()
    last = launch("resume", folder)
    _, said = last.communicate(timeout=300)
    assert last.returncode == 0, said.decode()
    assert json.loads((folder / "intake.json").read_text())["captions"] == 108
    assert not (folder / "private").exists()
    assert SECRET.encode() not in everything(folder) + everything(out)


def test_captions_of_several_public_folders_teach_each_its_own_images(
    pulled: None, private: Path, public: Path, tmp_path: Path
) -> None:
    elsewhere, silent = captioned(tmp_path / "elsewhere", 30, "from elsewhere"), draw_folder(tmp_path / "silent", 30)
    folders = [str(folder) for folder in (public, elsewhere, silent)]
    config = validated(told(public) | {"public": {"folders": folders}, "public_size": 120})
    found = sf.PublicImages(*folders).read(config.image.spec())
    said = [" ".join(texts) for texts in found.captions]
    assert [sum(word in text for text in said) for word in ("seen in public", "from elsewhere")] == [60, 30]
    assert said.count("") == 30
    alone = sf.PublicImages(elsewhere).read(config.image.spec())
    assert {(image.tobytes(), texts) for image, texts in zip(alone.pixels, alone.captions, strict=True)} <= {
        (image.tobytes(), texts) for image, texts in zip(found.pixels, found.captions, strict=True)
    }
    begun = run.prepare(config, private, tmp_path / "out", tmp_path / "out.run", plan_of(config))
    prompts = " ".join(begun.facts["prompts"])
    assert "seen in public" in prompts
    assert "from elsewhere" in prompts
    out = run.finish(begun)
    assert out is not None
    assert len((out / "metadata.jsonl").read_text().splitlines()) == 12


def test_what_cannot_be_told_is_refused(pulled: None, private: Path, public: Path, tmp_path: Path) -> None:
    silent = draw_folder(tmp_path / "silent", 30)
    config = validated(told(silent))
    with pytest.raises(UserError, match="public images with captions"):
        run.prepare(config, private, None, tmp_path / "a.run", plan_of(config))
    with pytest.raises(UserError, match="leave out classes"):
        validated(told(public) | {"classes": ["a"], "classes_origin": "listed"})
    with pytest.raises(UserError, match="set 'condition' to captions"):
        validated(told(public, condition="class", prompts=["a"]))
    deaf = validated(told(public, condition="class"))
    begun = run.prepare(deaf, private, None, tmp_path / "deaf.run", plan_of(deaf))
    model = run.train(begun)
    with pytest.raises(UserError, match="hears no prompts"):
        run.draw(begun, model, 3, 0, prompts=("a",))


def test_forecast(pulled: None, public: Path, tmp_path: Path) -> None:
    hardware = choose_hardware("cpu")
    minutes = [
        forecast_spectral(
            validated(told(public, detail="lanczos", condition=condition) | {"public_size": 90_000}), hardware
        ).total_minutes
        for condition in ("class", "captions")
    ]
    assert minutes[1] - minutes[0] > 0.8 * 90_000 / 150 / 60  # captions take time to read
    with pytest.raises(UserError, match="public images with captions"):
        forecast_spectral(validated(told(draw_folder(tmp_path / "silent", 30))), hardware)


def test_inserted_images_are_scored_under_their_own_captions(
    pulled: None, public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[list[str]] = []
    pictures = [replace(p, label=None, text=(f"a {p.label}", "drawn")) for p in drawn(30, 16, 4)]
    blocks = inserted.random_blocks(20, (1, 16, 16), "", 5)
    canaries = [replace(p, label=None, text=(f"blocks {n}",) if n else ()) for n, p in enumerate(blocks)]
    original = inserted.hearing
    monkeypatch.setattr(inserted, "hearing", lambda *given: heard.append(list(given[2])) or original(*given))
    found = inserted.black_box(told(public), pictures, canaries, tmp_path / "run", TestNoise(b"x"))
    assert found.canaries == 20
    assert heard == [["", *(f"blocks {n}" for n in range(1, 20))]]
    assert json.loads((tmp_path / "run" / "run" / "intake.json").read_text())["captions"] >= 60


def test_private_images_without_captions_are_refused_before_anything_is_spent(
    pulled: None, public: Path, tmp_path: Path
) -> None:
    config = validated(told(public) | {"ledger": str(tmp_path / "ledger.jsonl")})
    begun = run.prepare(config, draw_folder(tmp_path / "silent", 30), None, tmp_path / "a.run", plan_of(config))
    with pytest.raises(UserError, match="nothing was spent"):
        run.train(begun)
    assert begun.ledger.runs() == {}


def test_other_captions_end_a_run(pulled: None, public: Path, tmp_path: Path) -> None:
    private = captioned(tmp_path / "private", 30, SECRET)
    config = validated(told(public))
    begun = run.prepare(config, private, None, tmp_path / "a.run", plan_of(config))

    class Killed(Exception):  # noqa: N818
        pass

    def kill(stage: str, done: int, of: int | None) -> None:
        if stage == "private training":
            raise Killed

    with pytest.raises(Killed):
        run.train(begun, kill)
    lines = (private / "metadata.jsonl").read_text()
    (private / "metadata.jsonl").write_text(lines.replace("stripes", "strips"))
    with pytest.raises(PrivacyRefusal, match="not what it was"):
        run.train(begun)
