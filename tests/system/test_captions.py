"""Whole runs of Spectral that are told captions: with a real text embedder, killed, prompted, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.methods.spectral_parts import TINY
from tests.pretrained.conftest import HOME, loaded
from tests.small_set import draw_folder, plan_of, settings
from tests.system.test_kill_and_resume import launch, length
from tests.test_cli import typed

from sfumato import run
from sfumato._home import home
from sfumato.config import validated
from sfumato.errors import UserError
from sfumato.forecast_spectral import forecast_spectral
from sfumato.hardware import choose_hardware

SECRET = "canarywort"
KINDS = {"bars": "stripes of light", "disc": "a bright disc", "ring": "a bright ring"}


def captioned(folder: Path, count: int, told: str) -> Path:
    """Drawings without classes, each with two captions that hold `told`."""
    draw_folder(folder / "drawn", count)
    lines = []
    for number, file in enumerate(sorted((folder / "drawn").rglob("*.png"))):
        kind = file.parent.name
        file.rename(folder / f"{number:03}.png")
        text = [f"{KINDS[kind]} {told}", f"{told} {kind} number {number}"]
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


def test_captions_are_told_and_go_nowhere(pulled: None, private: Path, public: Path, tmp_path: Path) -> None:
    config = validated(told(public))
    begun = run.prepare(config, private, tmp_path / "out", tmp_path / "out.run", plan_of(config))
    seen: list[bytes] = []

    def look(stage: str, done: int, of: int | None) -> None:
        if stage == "private training" and not seen:
            assert (begun.folder / "private" / "captions.f32").stat().st_size == 60 * 2 * 384 * 4 - 12 * 384 * 4
            seen.append(everything(begun.folder))

    out = run.finish(begun, look)
    assert out is not None
    assert SECRET.encode() not in seen[0] + everything(begun.folder) + everything(out)
    assert not (begun.folder / "private").exists()
    assert json.loads((begun.folder / "intake.json").read_text())["captions"] == 108
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    prompts = set(begun.facts["prompts"])
    assert len(prompts) == 3 + 48
    assert {row["text"] for row in rows} <= prompts
    assert len({row["text"] for row in rows}) == 12
    statement = json.loads((out / "privacy.json").read_text())["text"]
    assert "Captions were told by" in statement
    assert "Images were drawn under public prompts." in statement

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


def test_forecast(pulled: None, public: Path) -> None:
    found = forecast_spectral(validated(told(public, detail="lanczos")), choose_hardware("cpu"))
    assert found.speed.rows_per_second > 0
    assert found.speed.parameters > 0
