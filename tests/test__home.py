from __future__ import annotations

from pathlib import Path

import pytest

from sfumato._home import home
from sfumato.errors import UserError


def test_home_never_depends_on_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for name in ("SFUMATO_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert home() == Path("/home/someone/.local/share/sfumato")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert home() == Path("/home/someone/.local/share/sfumato")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert home() == Path("/data/sfumato")
    monkeypatch.setenv("SFUMATO_HOME", "/own")
    assert home() == Path("/own")
    monkeypatch.setenv("SFUMATO_HOME", "own")
    with pytest.raises(UserError, match="not an absolute path"):
        home()
