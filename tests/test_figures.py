"""Bought figures: near the truth, charged before anything is read, refused where no touch can give them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import run
from sfumato.bought import Share, Space, right_or_wrong, share_of
from sfumato.config import validated
from sfumato.errors import PrivacyRefusal, UserError
from sfumato.figures import ACCURACY, DISTANCE, buy_figures, check_figures, plan_figures
from sfumato.measure.features import Pixels
from sfumato.measure.frechet import frechet_distance
from sfumato.privacy.draws import Draws
from sfumato.privacy.histogram import ABSTAIN
from sfumato.privacy.ledger import Cap
from sfumato.privacy.records import Rows
from tests.small_set import SMALL, draw_folder, plan_of, settings


def rows_of(images: np.ndarray, labels: list[int] | None = None) -> Rows:
    count = len(images)
    numbers = torch.tensor(labels if labels is not None else [0] * count)
    draws = Draws(bytes(32), "test", 0, [bytes(16)] * count)
    return Rows(torch.from_numpy(images), numbers, torch.ones(count, dtype=torch.bool), draws)


def pictures(count: int, bright: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    base = random.integers(0, 60, (count, 1, 4, 4))
    noisy = np.kron(base, np.ones((1, 1, 4, 4), np.int64)) + random.integers(0, 30, (count, 1, 16, 16)) + bright
    return noisy.astype(np.uint8)


def test_a_vote_says_right_or_wrong_and_depends_on_no_neighbour() -> None:
    images = pictures(5, 0, 0)
    seen: list[int] = []

    def predict(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return np.full(len(batch), 1)

    assert right_or_wrong(predict)(rows_of(images, [1, 0, 1, -1, 2])).tolist() == [[0], [1], [0], [ABSTAIN], [1]]
    assert seen == [1, 1, 1, 1]


def test_a_share_and_its_error() -> None:
    assert share_of(np.array([30, 10]), 0.0) == Share(0.75, 0.0)
    assert share_of(np.array([-5, 10]), 2.0).share == 0.0
    draws = np.random.default_rng(1).normal(0, 20, (4000, 2))
    shares = [share_of(np.array([700, 300]) + noise, 20.0).share for noise in draws]
    assert share_of(np.array([700, 300]), 20.0).error == pytest.approx(2 * np.std(shares), rel=0.1)


def test_no_vector_is_ever_longer_than_one() -> None:
    embedder = Pixels()
    synthetic = pictures(80, 40, 1)
    space = Space.of(embedder, embedder.embed_images(synthetic.repeat(3, axis=1)), 6)
    extreme = np.stack([np.full((1, 16, 16), value, np.uint8) for value in (0, 255)])
    for images in (synthetic, extreme, pictures(20, 190, 3)):
        block, vectors = space.vectors(rows_of(images))
        assert vectors.shape == (len(images), space.length)
        assert (vectors.norm(dim=1) <= 1 + 1e-6).all()
        assert not block.any()


def test_without_noise_the_distance_is_that_of_the_projected_features() -> None:
    embedder = Pixels()
    synthetic, private = pictures(300, 40, 1), pictures(200, 60, 2)
    seen = embedder.embed_images(synthetic.repeat(3, axis=1))
    space = Space.of(embedder, seen, 6)
    total = space.vectors(rows_of(private))[1].double().sum(0).numpy()

    def projected(features: np.ndarray) -> np.ndarray:
        rows = (features - space.centre) @ space.axes
        return rows * (space.radius / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=space.radius))

    theirs = projected(embedder.embed_images(private.repeat(3, axis=1)).astype(np.float64))
    expected = frechet_distance(theirs, projected(seen.astype(np.float64))).distance
    assert space.distance(total) == pytest.approx(expected, rel=0.03)
    assert space.by_noise_alone(total, 1e-9) < 0.01 * expected
    assert space.by_noise_alone(total, 3.0) > space.by_noise_alone(total, 0.3) > 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[run.Run, Path, Path]:
    place = tmp_path_factory.mktemp("figures")
    private = draw_folder(place / "private", 240)
    method = SMALL | {"steps": 5, "warm_steps": 60}  # the warm start alone draws bars, discs and rings
    ledger = str(place / "ledger.jsonl")
    config = validated(settings(public_size=240, count=60, privimage=method, ledger=ledger))
    begun = run.prepare(config, private, place / "out", place / "out.run", plan_of(config))
    out = run.finish(begun)
    assert out is not None
    return begun, private, out


def test_figures_are_bought(finished: tuple[run.Run, Path, Path], tmp_path: Path) -> None:
    begun, private, out = finished
    ledger = begun.ledger
    ledger.set_cap(Cap(100.0, 1e-3))
    before = len(ledger.runs())
    facts = buy_figures(
        out,
        private,
        ledger=ledger,
        out=tmp_path,
        epsilon=8.0,
        delta=1e-6,
        size=240,
        embedder="pixels",
        classifier="logistic",
    )
    assert facts["epsilon"] <= 8.0
    assert facts["figures"][ACCURACY]["share"] > 0.5  # bars, discs and rings are easy
    assert 0 < facts["figures"][ACCURACY]["error"] < 0.1
    distance = facts["figures"][DISTANCE]
    assert distance["frechet"] > 0
    assert distance["by_noise_alone"] > 0
    assert json.loads((tmp_path / "figures.json").read_text()) == facts
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]  # decoded images are gone
    assert len(ledger.runs()) == before + 1
    executed = ledger.attempts(list(ledger.runs())[-1])
    assert {name: one.used for name, one in executed.items()} == {ACCURACY: 1, DISTANCE: 1}
    assert run.statement(begun).runs == before + 1


def test_a_cap_forbids_them_before_anything_is_asked(finished: tuple[run.Run, Path, Path], tmp_path: Path) -> None:
    begun, private, out = finished
    ledger = begun.ledger
    spent = ledger.spent().epsilon
    ledger.set_cap(Cap(spent + 0.1, 1e-3))
    with pytest.raises(PrivacyRefusal):
        buy_figures(
            out, private, ledger=ledger, out=tmp_path, epsilon=1.0, delta=1e-6, wanted=[DISTANCE], embedder="pixels"
        )
    assert ledger.spent().epsilon == spent
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_bought_is_refused_by_name() -> None:
    for name in ("precision", "nearest", "memorisation"):
        with pytest.raises(PrivacyRefusal, match=name):
            check_figures(["accuracy", name])
    with pytest.raises(UserError, match="No figure"):
        check_figures([])
    assert check_figures(["distance", "accuracy"]) == (ACCURACY, DISTANCE)


def test_the_plan_pays_for_both() -> None:
    plan = plan_figures((ACCURACY, DISTANCE), 1.0, 1e-6, "image", 1000)
    assert plan.attempts() == {ACCURACY: 2, DISTANCE: 2}
    assert plan.shares()[ACCURACY] == pytest.approx(0.2, rel=0.01)
    assert plan_figures((ACCURACY,), 1.0, 1e-6, "image", None).main == ACCURACY
