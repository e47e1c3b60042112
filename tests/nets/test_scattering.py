"""Fixed features: bounded, blind to brightness, told apart by direction and place, and each picture's own."""

from __future__ import annotations

import math

import pytest
import torch

from sfumato.nets.scattering import DIRECTIONS, Scattering, ScatteringClassifier, morlet_wavelets

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 8, 8), (2, 5, 19), (1, 1, 1), (1, 96, 40)]


def stripes(angle: float, side: int = 28, period: float = 8 / 3) -> torch.Tensor:
    """`(1, 1, side, side)`: a wave that runs along `angle`."""
    down, right = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    along = right * math.cos(angle) + down * math.sin(angle)
    return torch.sin(2 * math.pi * along / period)[None, None]


def test_wavelets_do_not_see_brightness() -> None:
    wavelets = morlet_wavelets()
    assert wavelets.shape == (DIRECTIONS, 1, 7, 7)
    assert float(wavelets.sum((1, 2, 3)).abs().max()) < 1e-12


@pytest.mark.parametrize("number", range(DIRECTIONS))
def test_a_wave_moves_the_wavelet_of_its_direction_most(number: int) -> None:
    wave = stripes(math.pi * number / DIRECTIONS)
    wavelets = morlet_wavelets()
    answers = [torch.nn.functional.conv2d(wave.double(), part.contiguous()) for part in (wavelets.real, wavelets.imag)]
    strength = torch.hypot(*answers).mean((0, 2, 3))
    assert int(strength.argmax()) == number
    assert float(strength[number]) > 3 * float(strength[(number + DIRECTIONS // 2) % DIRECTIONS])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["noise", "black", "halves", "loud"])
def test_features_are_bounded_and_finite(shape: tuple[int, int, int], kind: str) -> None:
    torch.manual_seed(0)
    pictures = {
        "noise": torch.rand(3, *shape) * 2 - 1,
        "black": torch.full((3, *shape), -1.0),
        "halves": torch.where(torch.arange(shape[2]) < shape[2] / 2, -1.0, 1.0).expand(3, *shape),
        "loud": torch.randint(0, 2, (3, *shape)) * 2.0 - 1,
    }[kind]
    features = Scattering(shape)
    found = features(pictures)
    assert found.shape == (3, features.dimensions)
    assert bool(found.isfinite().all())
    assert float(found.norm(dim=1).max()) <= 1 + 1e-6
    if kind == "black":
        assert float(found.norm()) < 1e-3


def test_a_fashion_mnist_picture_has_833_features() -> None:
    """17 maps of 7 x 7 places: brightness, and two sizes of edges in eight directions."""
    assert (Scattering((1, 28, 28)).dimensions, Scattering((1, 28, 28)).cells) == (17 * 49, (7, 7))
    assert (Scattering((3, 64, 64)).dimensions, Scattering((3, 64, 64)).levels) == (3 * 25 * 64, 3)


def test_a_picture_has_its_features_whoever_is_beside_it() -> None:
    torch.manual_seed(0)
    pictures, features = torch.rand(9, 1, 28, 28) * 2 - 1, Scattering((1, 28, 28))
    together = features(pictures)
    changed = features(torch.cat((pictures[:4], -pictures[4:5] * 0.1, pictures[5:])))
    assert torch.equal(together[:4], changed[:4])
    assert torch.equal(together[5:], changed[5:])
    assert not torch.allclose(together[4], changed[4])


def test_the_fixed_part_is_not_trained_and_the_head_begins_at_zero() -> None:
    classifier = ScatteringClassifier((1, 28, 28), 10)
    assert sorted(name for name, _ in classifier.named_parameters()) == ["head.bias", "head.weight"]
    assert sorted(classifier.state_dict()) == ["head.bias", "head.weight"]
    assert not classifier(torch.rand(4, 1, 28, 28)).any()
