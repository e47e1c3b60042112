from __future__ import annotations

import subprocess
import sys

import pytest
from tests.pretrained.huggingface.conftest import Saved

from sfumato.errors import UserError
from sfumato.pretrained.backends import open_model
from sfumato.pretrained.huggingface import KINDS, load


def test_wrong_kinds_and_options_are_told() -> None:
    with pytest.raises(UserError, match="no kind of model called 'painter'; choose one of: captioner"):
        load("me/model", "painter")
    for kind in KINDS:
        with pytest.raises(UserError, match=rf"The kind {kind!r} takes no option hurry; it takes: revision, devices"):
            load("me/model", kind, hurry=True)


@pytest.mark.parametrize("missing", ["transformers", "diffusers", "huggingface_hub"])
def test_a_missing_package_is_told(missing: str, monkeypatch: pytest.MonkeyPatch, saved: Saved) -> None:
    kind, name = ("image generator", str(saved("sdxl"))) if missing == "diffusers" else ("captioner", "me/model")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"need the package {missing}; run: pip install 'sfumato\[huggingface\]'"):
        load(name, kind)


def test_nothing_heavy_is_imported_before_a_model_is_loaded() -> None:
    code = (
        "import sys, sfumato.pretrained.huggingface; print({'torch', 'transformers', 'diffusers'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert printed.strip() == "set()"


@pytest.mark.usefixtures("offline")
def test_models_open_by_one_line(saved: Saved) -> None:
    model = open_model(f"huggingface:{saved('dinov2')}", "image embedder")
    assert model.identity.name == "dinov2"
    assert len(model.identity.sha256) == 64
