"""Models of a run: the right kind, behind the wall, and named in the statement."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.evolution_models import Painter, ShapeTexts, Thumbnails, objects

from sfumato.errors import PrivacyRefusal, UserError
from sfumato.methods.evolution_settings import PrivateEvolutionConfig, SPTIConfig
from sfumato.methods.models import Models

FAR = "openai:clip@https://models.example.org/v1"


def test_private_images_stay_here_unless_the_place_is_named(tmp_path: Path) -> None:
    settings = SPTIConfig(embedder=FAR, options={"embedder": {"answers": None}})
    given = {"texts": ShapeTexts(), "images": Painter()}
    with pytest.raises(PrivacyRefusal, match=r"models\.example\.org"):
        Models(settings, given)["embedder"]
    allowed = Models(settings, given, ("models.example.org",), tmp_path / "answers")
    assert any("remote endpoint models.example.org" in line for line in allowed.sentences())
    near = SPTIConfig(embedder="openai:clip@http://127.0.0.1:8000/v1", options=settings.options)
    assert Models(near, given, (), tmp_path / "answers")["embedder"] is not None


def test_generators_may_be_anywhere() -> None:
    settings = SPTIConfig(images="openai:painter@https://models.example.org/v1", options={"images": {"answers": None}})
    models = Models(settings, {"texts": ShapeTexts(), "embedder": Thumbnails()})
    assert models["images"].private is False
    varying = PrivateEvolutionConfig(
        variator="openai:painter@https://models.example.org/v1", options={"variator": {"answers": None}}
    )
    assert Models(varying, {})["variator"].private is False


def test_every_model_is_named() -> None:
    found = Models(SPTIConfig(), objects()).sentences()
    assert len(found) == 3
    assert all("revision 1" in line and "in this process" in line for line in found)


def test_kinds_are_checked() -> None:
    with pytest.raises(UserError, match="image embedder"):
        Models(SPTIConfig(), objects(embedder=ShapeTexts()))["embedder"]
    with pytest.raises(UserError, match="names no model"):
        Models(SPTIConfig(embedder="nowhere"), {})["embedder"]
    with pytest.raises(UserError, match="your own"):
        Models(SPTIConfig(embedder="object:mine"), {})["embedder"]


def test_domain_and_qualifiers_reach_the_text_model() -> None:
    settings = SPTIConfig(domain="a bedroom", qualifiers=("at night",), options={"texts": {"temperature": 0.5}})
    assert settings.model_options("texts") == {"temperature": 0.5, "domain": "a bedroom", "qualifiers": ("at night",)}
    assert settings.model_options("images") == {}
