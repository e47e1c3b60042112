"""Private Evolution: images move towards what is private, by votes alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evolution_models import SIDE, Painter, Thumbnails, attempts, fit, identity, objects, paint

from sfumato.methods.evolution_settings import PrivateEvolutionConfig
from sfumato.methods.private_evolution import sampled
from sfumato.pretrained.interfaces import Images
from sfumato.pretrained.renders import Renders
from sfumato.privacy.noise import TestNoise


def settings(**changes: Any) -> PrivateEvolutionConfig:
    return PrivateEvolutionConfig(**({"rounds": 4, "population": 30, "part": 16} | changes))


def models(**changes: Any) -> dict[str, Any]:
    painter = changes.pop("images", Painter())
    return objects(images=painter, variator=painter) | changes


def distance(images: Images) -> float:
    """Mean distance to the nearer of the two private kinds."""
    kinds = Thumbnails().embed_images(np.stack([paint("large red disc"), paint("small blue bars")]))
    seen = Thumbnails().embed_images(images)
    return float(np.linalg.norm(seen[:, None] - kinds, axis=2).min(axis=1).mean())


def test_images_evolve_towards_the_private_ones(tmp_path: Path) -> None:
    population = fit(tmp_path, settings(), models())
    assert len(population.rounds) == 4
    assert len(population.numbers) == 30
    first = population.candidates.images(range(30))
    assert distance(population.candidates.images(population.numbers)) < 0.75 * distance(first)
    assert attempts(tmp_path) == 4


def test_a_resumed_run_is_the_run_it_would_have_been(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", settings(), models(), noise=TestNoise())

    class Failing(Painter):
        left = 40

        def vary_images(self, images: Images, *words: Any, **named: Any) -> Images:
            self.left -= len(images)
            if self.left < 0:
                raise ConnectionError
            return super().vary_images(images, *words, **named)

    with pytest.raises(ConnectionError):
        fit(tmp_path / "stopped", settings(), models(images=Failing()), noise=TestNoise())
    found = fit(tmp_path / "stopped", settings(), models(), noise=TestNoise())
    assert np.array_equal(found.candidates.images(found.numbers), whole.candidates.images(whole.numbers))


def test_lookahead_and_rank(tmp_path: Path) -> None:
    ahead = fit(tmp_path / "ahead", settings(lookahead=3, rounds=2), models(), noise=TestNoise())
    plain = fit(tmp_path / "plain", settings(rounds=2), models(), noise=TestNoise())
    own = Thumbnails().embed_images(plain.candidates.images(range(30)))
    assert np.array_equal(own, plain.candidates.embeddings[:30])
    assert not np.array_equal(own, ahead.candidates.embeddings[:30])
    ranked = fit(tmp_path / "ranked", settings(selection="rank", rounds=2), models(), noise=TestNoise())
    assert (
        len(set(ranked.candidates.parents[30:60].tolist())) == 30
    )  # everybody once where as many survive as there are


def test_a_source_of_images_needs_no_captions(tmp_path: Path) -> None:
    class Noise:
        identity = identity("noise")

        def draw(self, count: int, seed: int) -> Images:
            draw = [np.random.default_rng(seed + n) for n in range(count)]
            return np.stack([one.integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8) for one in draw])

    given = {"source": Noise(), "variator": Painter(), "embedder": Thumbnails()}
    found = fit(tmp_path, settings(source="offline:portraits", rounds=1), given)
    assert not any(found.texts)
    assert "texts" not in settings(source="offline:portraits").roles()


def test_failed_variations_are_replaced_by_what_they_should_have_varied(tmp_path: Path) -> None:
    class Failing(Painter):
        def try_vary_images(self, images: Images, *words: Any, **named: Any) -> Renders:
            return Renders(np.full_like(images, 128), np.arange(len(images)) % 2 > 0)

    found = fit(tmp_path, settings(rounds=1), models(images=Failing()))
    assert (found.candidates.images(found.numbers).std(axis=(1, 2, 3)) > 0).sum() >= 15
    assert found.candidates.made[found.numbers].all()


def test_classes_share_the_population(tmp_path: Path) -> None:
    population = fit(tmp_path, settings(rounds=3), models(), classes=("round", "striped"), noise=TestNoise())
    assert [one.votes for one in population.rounds] == [300] * 3
    assert np.bincount(population.labels).tolist() == [15, 15]
    top = population.candidates.images(population.numbers)
    red, blue = top[:, 0].astype(int).mean(axis=(1, 2)), top[:, 2].astype(int).mean(axis=(1, 2))
    assert (red - blue)[population.labels == 0].mean() > (red - blue)[population.labels == 1].mean()


def test_survivors_are_drawn_in_proportion_to_votes() -> None:
    labels = np.zeros(4, dtype=np.int64)
    votes, made = np.array([0.0, 30.0, 10.0, 90.0]), np.array([True, True, True, False])
    places = sampled(votes, made, labels, 4000, np.random.default_rng(0))
    assert np.bincount(places, minlength=4)[[0, 3]].tolist() == [0, 0]
    assert abs(np.mean(places == 1) - 0.75) < 0.03
    assert abs(np.mean(places[:1000] == 1) - 0.75) < 0.06  # whoever takes the first gets a fair sample
    nobody = sampled(np.zeros(4), made, labels, 3000, np.random.default_rng(0))
    assert set(nobody.tolist()) == {0, 1, 2}
    both = sampled(votes, np.ones(4, bool), np.array([0, 0, 1, 1]), 7, np.random.default_rng(0))
    assert np.bincount(np.array([0, 0, 1, 1])[both]).tolist() == [4, 3]


def test_degrees_fall_from_first_to_last() -> None:
    config = settings(rounds=5)
    assert [round(config.degree(number), 2) for number in range(1, 6)] == [0.9, 0.75, 0.6, 0.45, 0.3]
    assert settings(rounds=3, degrees=(1, 0.5, 0.2)).degree(2) == 0.5
    with pytest.raises(ValueError, match="degrees"):
        settings(degrees=(0.5, 0.4, 0.3))
