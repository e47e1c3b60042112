"""Forecasts of SPTI and Private Evolution: the published numbers, and warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sfumato import cli
from sfumato.config import validated
from sfumato.errors import PrivacyRefusal
from sfumato.forecast_evolution import forecast_evolution
from sfumato.methods.evolution_settings import Pace, Prices
from tests.evolution_models import objects

PACE = Pace(images=10, texts=100, embeddings=1000)


def settings(method: str = "spti", **changes: Any) -> dict[str, Any]:
    own = changes.pop("own", {})
    return {
        "dataset": "lsun",
        "method": method,
        "epsilon": 1.0,
        "delta": 1 / (300_000 * 12.611537753638338),
        "public_size": 300_000,
        method.replace("-", "_"): {"population": 2000} | own,
    } | changes


def test_the_published_experiment() -> None:
    found = forecast_evolution(validated(settings()), pace=PACE)
    assert found.noise == pytest.approx(13.474, rel=1e-3)
    assert (found.population, found.candidates) == (2000, 14_000)
    assert found.votes_per_candidate == pytest.approx(21.4, abs=0.1)
    assert found.texts == found.images == 14_000 + 8 * 12_000
    assert found.calls_over_published == pytest.approx(220 / 244)
    assert found.images_for_release == 8_000
    assert found.hours == pytest.approx((110_000 / 100 + 118_000 / 10 + 410_000 / 1000) / 3600)
    assert not any("noise decides" in note or "stand" in note for note in found.notes)


def test_money_and_tokens() -> None:
    own = {"texts": "openai:x@http://127.0.0.1:1/v1", "prices": Prices(image=0.01, input_tokens=1, output_tokens=2)}
    found = forecast_evolution(validated(settings(own=own)), pace=PACE)
    assert found.tokens == (350 * 110_000, 100 * 110_000)
    assert found.money == pytest.approx(118_000 * 0.01 + 38.5 + 22)
    assert "Money" in str(found)
    assert found.to_json()["money"] == found.money


def test_few_records_are_warned_of() -> None:
    notes = " ".join(forecast_evolution(validated(settings(public_size=200, delta=1e-4)), pace=PACE).notes)
    assert "Private Evolution" in notes
    assert "popular candidates" in notes
    assert "few" not in " ".join(
        forecast_evolution(validated(settings("private-evolution", public_size=200, delta=1e-4)), pace=PACE).notes
    ).replace("few prompts", "").replace("fewer", "")


def test_private_evolution() -> None:
    found = forecast_evolution(validated(settings("private-evolution", own={"lookahead": 4, "rounds": 7})), pace=PACE)
    assert found.images == 2000 * 8 * 5
    assert found.candidates == 2000


def test_the_pace_of_own_models_is_tried() -> None:
    given = objects()
    own = {name: f"object:{name}" for name in given}
    found = forecast_evolution(validated(settings(own=own, image={"height": 16, "width": 16})), given)
    assert found.hours is not None
    assert all(rate is not None and rate > 1 for rate in found.pace.model_dump().values())
    remote = dict.fromkeys(given, "openai:x@https://far.example.org/v1")
    unknown = forecast_evolution(validated(settings(own=remote)))
    assert unknown.hours is None
    assert "not known" in str(unknown)


RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize(
    ("recipe", "scale", "ratio"),
    [("lsun-bedroom", "13.4", "0.90"), ("lsun-bedroom-as-published", "11.1", "1.00"), ("mm-celeba-hq", "11.9", "0.90")],
)
def test_the_recipes_as_typed(recipe: str, scale: str, ratio: str, tmp_path: Path) -> None:
    words = ["forecast", str(tmp_path), "--config", str(RECIPES / f"spti-{recipe}.yaml")]
    told = CliRunner().invoke(cli.app, words, catch_exceptions=False, standalone_mode=False).stdout
    assert f"9 rounds, noise of scale {scale}" in told
    assert f"({ratio} of the published procedure)" in told
    assert ("popular candidates" in told) == (recipe == "mm-celeba-hq")


def test_nothing_is_begun_with_a_far_embedder(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir()
    settings = tmp_path / "far.yaml"
    far = "openai:x@https://far.example.org/v1"
    settings.write_text(f"spti: {{images: '{far}', texts: '{far}', embedder: '{far}'}}")
    words = ["synthesize", private, tmp_path / "out", "--dataset", "far", "--method", "spti", "--epsilon", 1]
    words += ["--config", settings]
    with pytest.raises(PrivacyRefusal, match="--allow-private-to"):
        CliRunner().invoke(cli.app, [str(word) for word in words], catch_exceptions=False, standalone_mode=False)
    assert not (tmp_path / "out.run").exists()
