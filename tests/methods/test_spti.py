"""SPTI: captions move towards what is private, by votes alone; what is lost is never drawn again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evolution_models import SIDE, Namer, Painter, Words, attempts, fit, objects

from sfumato.errors import PrivacyRefusal, UserError
from sfumato.methods import spti
from sfumato.methods.evolution_settings import SPTIConfig, signal_warning
from sfumato.methods.models import Models
from sfumato.methods.population import Population, images_of, to_size
from sfumato.privacy.noise import TestNoise
from sfumato.privacy.session import Session


def settings(**changes: Any) -> SPTIConfig:
    return SPTIConfig(**({"rounds": 4, "population": 8, "first_variations": 3, "variations": 3, "part": 16} | changes))


def test_captions_evolve_towards_the_private_images(tmp_path: Path) -> None:
    def share(texts: list[str]) -> float:
        return float(np.mean(["red" in text or "blue" in text for text in texts]))

    found: list[str] = []
    first: list[str] = []
    for number in range(5):  # together, so that the noise of one run in thirty does not decide
        population = fit(tmp_path / str(number), settings(), objects())
        assert len(population.rounds) == 4
        assert len(set(population.numbers.tolist())) == 8
        assert {"red", "blue"} <= {word for text in population.texts[:4] for word in text.split()}
        assert (np.diff(population.estimates) <= 0).all()
        found += population.texts
        first += population.candidates.texts[: population.rounds[0].cells]
    assert share(found) > 1.5 * share(first)


def test_nothing_is_made_that_is_not_needed(tmp_path: Path) -> None:
    n, f, rounds = 8, 3, 4
    for last, made in ((False, n * (f + 1) + (rounds - 1) * n * f), (True, n * (f + 1) + rounds * n * f)):
        models = objects()
        fit(tmp_path / str(last), settings(merge_duplicates=False, children_last=last), models)
        assert (models["texts"].asked, len(models["images"].prompts)) == (made, made)


def test_a_resumed_run_is_the_run_it_would_have_been(tmp_path: Path) -> None:
    first = Painter()
    whole = fit(tmp_path / "whole", settings(), objects(images=first), noise=TestNoise())
    for calls in (0, 20, len(first.prompts) - 1):
        painter = Painter()
        painter.fail_after = calls
        with pytest.raises(ConnectionError):
            fit(tmp_path / str(calls), settings(), objects(images=painter), noise=TestNoise())
        painter.fail_after = None
        found = fit(tmp_path / str(calls), settings(), objects(images=painter), noise=TestNoise())
        assert (found.texts, found.rounds) == (whole.texts, whole.rounds)
        assert np.array_equal(found.candidates.images(found.numbers), whole.candidates.images(whole.numbers))
        assert painter.prompts == first.prompts  # nothing was drawn twice
        assert attempts(tmp_path / str(calls)) == 4


@pytest.mark.parametrize("lost", [2, 4])
def test_a_lost_round_is_used_up(lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between intent and value loses that attempt: T - 1 rounds remain, and no value is drawn twice."""
    finish = Session.finish

    def crash(self: Session, name: str, attempt: int, value: bytes) -> None:
        if attempt == lost:
            raise KeyboardInterrupt
        finish(self, name, attempt, value)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "finish", crash)
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path, settings(), objects())
    assert len(fit(tmp_path, settings(), objects()).rounds) == 3
    assert attempts(tmp_path) == 4
    values = {file.name for file in (tmp_path / "touches").iterdir()}
    assert values == {f"votes.{attempt}" for attempt in range(1, 5)} - {f"votes.{lost}"}


def test_when_every_round_was_lost_there_is_no_further_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Session, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                fit(tmp_path, settings(rounds=2), objects())
    with pytest.raises(PrivacyRefusal):
        fit(tmp_path, settings(rounds=2), objects())
    assert attempts(tmp_path) == 2


def test_candidates_are_stored_before_the_intent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    begin = Session.begin

    def watched(self: Session, name: str) -> int:
        drawn.append(sum(len(np.load(file)["made"]) for file in (tmp_path / "candidates").glob("*.npz")))
        return begin(self, name)

    monkeypatch.setattr(Session, "begin", watched)
    population = fit(tmp_path, settings(), objects())
    assert len(drawn) == 4
    assert drawn[0] == population.rounds[0].cells
    assert all(now >= before for before, now in itertools.pairwise(drawn))
    assert drawn[-1] == len(population.candidates)
    assert all(file.stat().st_mode & 0o77 == 0 for file in (tmp_path / "candidates").iterdir())


def test_refused_drawings_keep_their_cells_and_are_never_chosen(tmp_path: Path) -> None:
    population = fit(tmp_path, settings(), objects(images=Painter(refuses="red")))
    refused = [number for number, text in enumerate(population.candidates.texts) if "red" in text]
    assert refused
    assert not set(refused) & set(population.numbers.tolist())
    assert population.rounds[0].cells == population.candidates.starts[2]  # all of the first two generations


def test_nothing_can_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not draw"):
        fit(tmp_path, settings(), objects(images=Painter(refuses=" ")))


def test_classes_have_their_own_captions_and_one_vote_a_record(tmp_path: Path) -> None:
    models = objects()
    population = fit(
        tmp_path, settings(prompt="{label}, {text}"), models, classes=("round", "striped"), noise=TestNoise()
    )
    assert [one.votes for one in population.rounds] == [300] * 4  # every record once, not once a class
    assert np.bincount(population.labels).tolist() == [4, 4]
    top = [population.texts[int(np.flatnonzero(population.labels == label)[0])] for label in (0, 1)]
    assert "red" in top[0]
    assert "blue" in top[1]
    assert {prompt.split(", ")[0] for prompt in models["images"].prompts} == {"round", "striped"}
    assert population.labels[population.places(6, 2)].tolist() == [0, 1] * 3


def test_captions_may_vote_instead(tmp_path: Path) -> None:
    models = objects(captioner=Namer(), text_embedder=Words())
    config = settings(voting="text", captioner="offline:captioner", rounds=3)
    population = fit(tmp_path, config, models)
    assert not models["images"].prompts  # nothing is drawn before the end
    assert not population.drawn
    assert {"red", "blue"} <= {word for text in population.texts for word in text.split()}
    with pytest.raises(ValueError, match="captioner"):
        settings(voting="text")


def test_switches(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", settings(), objects(), noise=TestNoise())
    fresh = fit(tmp_path / "fresh", settings(keep_renders=False), objects(), noise=TestNoise())
    assert len(fresh.candidates) > len(plain.candidates)
    doubled = fit(tmp_path / "doubled", settings(merge_duplicates=False), objects(), noise=TestNoise())
    assert doubled.rounds[0].cells == 32 > plain.rounds[0].cells
    assert len(set(plain.candidates.texts[: plain.rounds[0].cells])) == plain.rounds[0].cells
    last = fit(tmp_path / "last", settings(combine_votes=False), objects(), noise=TestNoise())
    assert float(last.estimates[0]).is_integer()


def test_images_of_winners_then_further_ones(tmp_path: Path) -> None:
    models = objects()
    config = settings(rounds=1)
    found = fit(tmp_path, config, models)
    found.save(tmp_path)
    population = Population.load(tmp_path, not_private=False)
    won = population.candidates.images(population.numbers)
    opened = Models(config, models)

    def images(count: int, own: bool, keep: Path | None = None) -> np.ndarray:
        parts = images_of(
            population,
            population.places(count, 1),
            lambda some, first: spti.redraw(config, population, opened, (), some, 99 + first),
            as_they_are=own,
            part=5,
            finish=lambda images: to_size(images, None, (24, 40)) if count > 8 else images,
            keep=keep,
        )
        return np.concatenate(list(parts))

    assert np.array_equal(images(8, True), won)
    assert not np.array_equal(images(8, False), won)
    made = len(models["images"].prompts)
    assert images(20, True).shape == (20, 3, 24, 40)
    assert models["images"].prompts[made:] == (population.texts * 3)[8:20]
    kept = images(20, True, tmp_path / "drawn")
    assert np.array_equal(kept, images(20, True))
    asked = len(models["images"].prompts)
    assert np.array_equal(kept, images(20, True, tmp_path / "drawn"))
    assert len(models["images"].prompts) == asked  # nothing is drawn twice
    models["images"].refuses = population.texts[0]
    assert np.array_equal(images(8, False)[0], won[0])  # what cannot be drawn again is replaced by what won


def test_an_upscaler_works_until_the_size_is_reached() -> None:
    class Doubling:
        identity = Painter.identity
        factor = 2

        def upscale(self, images: np.ndarray) -> np.ndarray:
            return images.repeat(2, axis=2).repeat(2, axis=3)

    images = np.zeros((2, 3, SIDE, SIDE), np.uint8)
    assert to_size(images, Doubling(), None).shape == (2, 3, 32, 32)
    assert to_size(images, Doubling(), (100, 90)).shape == (2, 3, 100, 90)
    assert to_size(images, None, (8, 8)).shape == (2, 3, 8, 8)


def test_a_population_from_test_noise_says_so(tmp_path: Path) -> None:
    fit(tmp_path, settings(rounds=1), objects(), noise=TestNoise()).save(tmp_path)
    assert "NOT PRIVATE" in (tmp_path / "population-NOT-PRIVATE.json").read_text()
    with pytest.raises(UserError):
        Population.load(tmp_path, not_private=False)


def test_the_population_follows_the_declared_size() -> None:
    config = SPTIConfig()
    assert config.population_for(300_000, 13.5, 1) == 2000
    assert config.population_for(30_000, 12.0, 1) == int(30_000 / 7 / 2.4)
    assert config.population_for(None, 12.0, 1) == 2000
    assert config.population_for(100, 12.0, 1) == 10
    assert config.population_for(100, 12.0, 25) == 25
    assert SPTIConfig(population=77).population_for(100, 12.0, 1) == 77
    assert signal_warning(30_000, 7 * 1785, 12.0) is None
    assert "Take 17 %" in str(signal_warning(30_000, 72_000, 12.0))
