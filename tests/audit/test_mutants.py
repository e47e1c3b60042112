"""The deliberate breaks of `bench/mutations.py` must go on finding what they break."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_every_break_finds_its_text_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    groups = importlib.import_module("mutants_beneath").GROUPS
    assert sum(map(len, groups.values())) > 60
    for mutant in (one for group in groups.values() for one in group):
        text = (ROOT / "src" / "sfumato" / mutant.file).read_text()
        for old, new in filter(None, ((mutant.old, mutant.new), mutant.also)):
            assert text.count(old) == 1, f"{mutant.name}: {old!r} stands {text.count(old)} times in {mutant.file}"
            text = text.replace(old, new)
        assert (ROOT / "tests" / mutant.test.partition("::")[0]).exists(), mutant.test
