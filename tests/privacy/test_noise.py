"""The noise has the scale it is priced at: false alarms below 1e-6, and 10 % too little is always seen."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import sfumato.privacy
from sfumato.errors import UserError
from sfumato.privacy.noise import Noise, TestNoise, normals

FALSE_ALARM = 1e-6
SAMPLES = 100_000


def variance_fits(draws: np.ndarray, scale: float) -> bool:
    """Two-sided chi-square test of the variance of normal draws."""
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], len(draws))
    return bool(low < (draws**2).sum() / scale**2 < high)


def shape_fits(draws: np.ndarray, scale: float) -> bool:
    """Kolmogorov-Smirnov test against the normal law."""
    return bool(stats.kstest(draws / scale, "norm").pvalue > FALSE_ALARM)


def test_gaussian_has_its_scale_and_a_wrong_scale_is_seen() -> None:
    draws = Noise().gaussian(SAMPLES, 2.5)
    assert variance_fits(draws, 2.5)
    assert shape_fits(draws, 2.5)
    for wrong in (0.9, 1.1):
        assert not variance_fits(draws * wrong, 2.5)
        assert not shape_fits(draws * wrong, 2.5)


def test_gaussian_draws_are_uncorrelated() -> None:
    draws = Noise().gaussian(SAMPLES, 1.0)
    for lag in (1, 2, SAMPLES // 2):
        correlation = float((draws[lag:] * draws[:-lag]).mean()) * np.sqrt(SAMPLES - lag)
        assert abs(correlation) < stats.norm.isf(FALSE_ALARM / 6)


def discrete_fits(draws: np.ndarray, scale: float) -> bool:
    """Chi-square test against the probabilities of the discrete Gaussian, computed here from its definition."""
    values = np.arange(-60, 61)
    weights = np.exp(-(values.astype(float) ** 2) / (2 * scale**2))
    expected = SAMPLES * weights / weights.sum()
    counts = np.array([(draws == value).sum() for value in values])
    common = expected > 20
    observed = np.append(counts[common], len(draws) - counts[common].sum())
    expected = np.append(expected[common], SAMPLES - expected[common].sum())
    return bool(stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > FALSE_ALARM)


@pytest.mark.parametrize("scale", [0.8, 3.0])
def test_discrete_gaussian_has_its_scale_and_a_wrong_scale_is_seen(scale: float) -> None:
    noise = Noise()
    assert discrete_fits(noise.discrete_gaussian(SAMPLES, scale), scale)
    assert not discrete_fits(noise.discrete_gaussian(SAMPLES, 0.9 * scale), scale)
    assert not discrete_fits(noise.discrete_gaussian(SAMPLES, 1.1 * scale), scale)


def test_discrete_gaussian_of_a_fine_grid_has_its_scale() -> None:
    scale = 2.0**20 * 3.3
    draws = Noise().discrete_gaussian(20_000, scale).astype(float)
    assert variance_fits(draws, scale)
    assert not variance_fits(draws * 0.9, scale)
    assert not variance_fits(draws * 1.1, scale)


def rate_fits(included: int, trials: int, rate: float) -> bool:
    return stats.binomtest(included, trials, rate).pvalue > FALSE_ALARM


def test_poisson_mask_has_its_rate_and_includes_pairs_independently() -> None:
    noise, rate, rounds = Noise(), 0.3, 2_000
    masks = np.stack([noise.poisson_mask(50, rate) for _ in range(rounds)])
    assert rate_fits(int(masks.sum()), masks.size, rate)
    assert not rate_fits(int(masks.sum()), masks.size, rate * 0.9)
    pairs = masks.T.astype(float) @ masks.astype(float)
    together = pairs[np.triu_indices(50, 1)]
    deviation = np.sqrt(rounds * rate**2 * (1 - rate**2))
    assert np.abs(together - rounds * rate**2).max() / deviation < stats.norm.isf(FALSE_ALARM / len(together) / 2)


def test_batch_sizes_vary_as_poisson_sampling_must() -> None:
    noise = Noise()
    sizes = np.array([noise.poisson_mask(400, 0.1).sum() for _ in range(2_000)])
    variance = 400 * 0.1 * 0.9
    assert abs(sizes.var() / variance - 1) < 5 * np.sqrt(2 / len(sizes))


def test_poisson_mask_at_the_ends_of_the_range() -> None:
    assert Noise().poisson_mask(1_000, 1.0).all()
    assert not Noise().poisson_mask(1_000, 1e-18).any()
    for rate in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(UserError):
            Noise().poisson_mask(10, rate)


def test_a_fork_draws_other_masks() -> None:
    noise = Noise()
    noise.bytes(8)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, noise.poisson_mask(256, 0.5).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(reader, 256), dtype=np.bool_)
    os.close(reader)
    os.close(writer)
    assert not np.array_equal(theirs, noise.poisson_mask(256, 0.5))


def test_no_two_draws_agree() -> None:
    draws = np.concatenate([Noise().gaussian(1_000, 1.0) for _ in range(20)])
    assert len(np.unique(draws)) == len(draws)


@pytest.mark.parametrize("count", [0, 1, 2**16, 3 * 2**16 + 1])
def test_threads_draw_all_of_it_and_none_what_another_draws(count: int) -> None:
    draws = Noise().gaussian(count, 1.0)
    assert draws.shape == (count,)
    assert np.isfinite(draws).all()
    assert len(np.unique(draws)) == count


def test_what_a_thread_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def few(self: Noise, count: int) -> bytes:
        asked.append(count)
        if len(asked) > 6:
            raise OSError("no more")
        return os.urandom(count)

    monkeypatch.setattr(Noise, "bytes", few)
    with pytest.raises(OSError, match="no more"):
        Noise().gaussian(3 * 2**16, 1.0)


def test_normals_reach_their_whole_range() -> None:
    zero, one = bytes(8), b"\xff" * 8
    assert np.isfinite(normals(zero + zero)).all()
    assert normals(zero + zero)[0] == pytest.approx(8.57, abs=0.01)
    assert abs(normals(one + zero)[0]) < 1e-7


def test_test_noise_is_marked_and_repeats() -> None:
    assert not TestNoise.private
    assert Noise.private
    assert not TestNoise().gaussian(10, 5.0).any()
    assert np.array_equal(TestNoise(b"a").poisson_mask(100, 0.5), TestNoise(b"a").poisson_mask(100, 0.5))


FORBIDDEN = {
    "Generator", "manual_seed", "seed", "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "normal_",
    "uniform_", "bernoulli", "bernoulli_", "multinomial", "default_rng", "RandomState", "shuffle", "choice", "dropout",
}  # fmt: skip


def test_no_other_generator_is_used_in_the_trusted_core() -> None:
    for path in sorted(Path(next(iter(sfumato.privacy.__path__))).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in FORBIDDEN, f"{path.name} uses {node.attr}"
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            assert not {"random", "numpy.random", "torch.random"} & {*names, module}, f"{path.name} imports random"
