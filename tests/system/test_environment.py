"""What must not be installed, opened or imported."""

from __future__ import annotations

import importlib.util
import re
import socket
from pathlib import Path

import pytest
from tests.small_set import draw_folder, plan_of, settings

from sfumato import run
from sfumato.config import validated

ROOT = Path(__file__).parents[2]


def test_torchvision_is_absent() -> None:
    for name in ("torchvision", "timm", "open_clip", "torch_fidelity"):
        assert importlib.util.find_spec(name) is None, f"{name} breaks PyTorch's companions here"
    assert "torchvision" not in (ROOT / "constraints.txt").read_text()


def test_a_whole_run_opens_no_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    config = validated(settings())
    private = draw_folder(tmp_path / "private")
    begun = run.prepare(config, private, tmp_path / "out", tmp_path / "out.run", plan_of(config))
    assert run.finish(begun) is not None


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports."""
    return set(re.findall(r"^\s*(?:from|import) (sfumato[\w.]*)", path.read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("room", "may_use"),
    [
        ("privacy", {"privacy", "errors", "_compiled", "_files", "_home", "__version__"}),
        ("nets", {"nets", "_compiled"}),
        ("methods", {"methods", "privacy", "nets", "pretrained", "data", "hardware", "errors", "_files", "_threads"}),
        ("data", {"data", "report", "errors", "_files", "_packages", "__version__"}),
        ("pretrained", {"pretrained", "nets", "errors", "_files", "_home", "_packages", "_threads"}),
        ("report", {"report", "errors", "_files", "__version__"}),
        ("measure", {"measure", "data", "nets", "pretrained", "hardware", "errors"}),
    ],
)
def test_arrows_never_run_back_up(room: str, may_use: set[str]) -> None:
    for path in (ROOT / "src" / "sfumato" / room).rglob("*.py"):
        rooms = {[*name.split("."), "__version__"][1] for name in imports(path)}
        assert rooms <= may_use, f"{path.name} imports {rooms - may_use}"


def test_no_file_of_ours_unpickles() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"import pickle|pickle\.|weights_only=False|allow_pickle=True", text), path
        assert not re.search(r"torch\.load\((?!.*weights_only=True)", text), path
