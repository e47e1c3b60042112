from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sfumato._home import home
from sfumato.errors import UserError
from sfumato.pretrained import _cache
from sfumato.pretrained.interfaces import Identity

IDENTITY = Identity("tiny", "1.0", "0" * 64, "MIT", "PyPI tiny 1.0")
FILES = {"weights.safetensors": b"numbers", "LICENSE": b"do as you like"}


def test_a_model_is_what_its_record_says() -> None:
    assert not _cache.is_installed("tiny", IDENTITY)
    folder = _cache.install("tiny", IDENTITY, FILES)
    assert folder == home() / "models" / "tiny" == _cache.checked("tiny", IDENTITY)
    assert {path.name for path in folder.iterdir()} == {*FILES, "model.json"}
    record = json.loads((folder / "model.json").read_text())
    assert record["identity"] == IDENTITY.to_json()
    assert record["files"]["weights.safetensors"]["bytes"] == 7
    assert _cache.is_installed("tiny", IDENTITY)


def test_another_version_is_not_this_model() -> None:
    _cache.install("tiny", IDENTITY, FILES)
    newer = Identity("tiny", "1.1", "1" * 64, "MIT", "PyPI tiny 1.1")
    assert not _cache.is_installed("tiny", newer)
    with pytest.raises(UserError, match="tiny is not on this machine; run: sfumato models pull tiny"):
        _cache.checked("tiny", newer)


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_damage_is_seen(damage: str) -> None:
    weights = _cache.install("tiny", IDENTITY, FILES) / "weights.safetensors"
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(b"Numbers" if damage == "changed" else b"number")
    with pytest.raises(UserError, match=r"weights.safetensors is missing or has changed .* models pull tiny"):
        _cache.checked("tiny", IDENTITY)
    _cache.install("tiny", IDENTITY, FILES)
    _cache.checked("tiny", IDENTITY)


@pytest.mark.parametrize("record", ["", "{}", "[]", "null", '{"layout": 1, "identity": {}, "files": []}'])
def test_a_broken_record_is_no_model(record: str) -> None:
    (_cache.install("tiny", IDENTITY, FILES) / "model.json").write_text(record)
    assert not _cache.is_installed("tiny", IDENTITY)


def test_a_killed_pull_leaves_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _cache.install("tiny", IDENTITY, FILES)

    def killed(path: Path, data: bytes) -> None:
        if path.name == "LICENSE":
            raise KeyboardInterrupt
        path.write_bytes(data)

    monkeypatch.setattr(_cache, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        _cache.install("tiny", IDENTITY, FILES)
    assert (folder / "weights.safetensors").exists()
    assert not _cache.is_installed("tiny", IDENTITY)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SFUMATO_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written to .* set SFUMATO_HOME"):
        _cache.install("tiny", IDENTITY, FILES)


def test_one_process_at_a_time_brings_a_model() -> None:
    script = (
        "import sys, time; from sfumato.pretrained import _cache\n"
        "with _cache.alone('tiny'): print('in', flush=True); time.sleep(float(sys.argv[1])); print('out', flush=True)"
    )
    first = subprocess.Popen([sys.executable, "-c", script, "1.5"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "in\n"
    begun = time.monotonic()
    with _cache.alone("other"):
        assert time.monotonic() - begun < 1, "another model is not waited for"
    with _cache.alone("tiny"):
        assert first.stdout.readline() == "out\n"
    assert first.wait(10) == 0
