"""The compiled kernels of the networks: there, of these sources, and no better than asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato import _compiled
from sfumato.nets import compiled

LEVELS = _compiled.LEVELS[: compiled.level() + 1]


def test_the_library_is_there_where_the_processor_can_run_it() -> None:
    """A stale or missing library would be silent: the network is complete without it, and slower."""
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    best = 1 if {"avx2", "fma"} <= flags else 0
    best = 2 if best and {"avx512f", "avx512vl", "avx512dq", "avx512bw"} <= flags else best
    best = 3 if best == 2 and {"avx512_bf16", "amx_bf16", "amx_tile"} <= flags else best
    assert compiled.level() == best, "rebuild: pip install --no-deps -e ."


def test_the_level_can_be_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(_compiled.LEVELS):
        monkeypatch.setenv("SFUMATO_KERNELS", name)
        assert compiled.level() == min(number, len(LEVELS) - 1)
    monkeypatch.setenv("SFUMATO_KERNELS", "nonsense")
    assert compiled.level() == 0


def test_a_library_of_other_sources_is_not_loaded(tmp_path: Path) -> None:
    folder = Path(compiled.__file__).parent
    for file in (*folder.glob("*.?pp"), folder / "_kernels.so"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert _compiled.load(tmp_path) is not None
    (tmp_path / "film.cpp").write_text("// other\n")
    _compiled.load.cache_clear()
    assert _compiled.load(tmp_path) is None
    assert _compiled.load(tmp_path / "nowhere") is None
