"""Groups of pictures that look alike."""

from __future__ import annotations

import numpy as np

from sfumato.methods.clusters import cluster, small_versions


def pictures(count: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Noisy pictures, each with one bright quarter."""
    random, quarter = np.random.default_rng(0), np.arange(count) % 4
    found = random.integers(0, 60, (count, channels, 20, 20)).astype(np.uint8)
    for picture, number in zip(found, quarter, strict=True):
        picture[:, 10 * (number // 2) :][:, :10, 10 * (number % 2) :][:, :, :10] += 150
    return found, quarter


def test_pictures_that_look_alike_are_together() -> None:
    for channels in (1, 3):
        found, quarter = pictures(200, channels)
        groups = cluster(found, 4, seed=1)
        assert groups.dtype == np.int64
        assert len({(int(group), int(truth)) for group, truth in zip(groups, quarter, strict=True)}) == 4
        assert sorted(set(groups.tolist())) == [0, 1, 2, 3]


def test_a_seed_decides() -> None:
    found, _ = pictures(200)
    assert np.array_equal(cluster(found, 30, 1), cluster(found, 30, 1))
    assert not np.array_equal(cluster(found, 30, 1), cluster(found, 30, 2))


def test_more_groups_than_different_pictures() -> None:
    found = np.repeat(pictures(4)[0][:3], 5, axis=0)
    assert len(set(cluster(found, 12, 0).tolist())) == 3
    assert cluster(found[:1], 5, 0).tolist() == [0]


def test_small_versions() -> None:
    assert small_versions(np.full((2, 3, 40, 8), 255, np.uint8)).shape == (2, 16 * 8)
    assert float(small_versions(np.full((1, 1, 28, 28), 255, np.uint8)).min()) == 1.0


def test_an_embedder_decides_what_is_alike() -> None:
    """Features that see the picture's number only: neighbours in number are together, whatever they show."""
    found, _ = pictures(40)

    def embed(pixels: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        angle = np.arange(len(pixels)) // 20 * 2.0
        return np.stack((np.cos(angle), np.sin(angle)), axis=1).astype(np.float32) * 7

    assert cluster(found, 2, 0, embed)[[0, 19, 20, 39]].tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
