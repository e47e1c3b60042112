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


def test_a_fashion_mnist_picture_has_3969_features() -> None:
    """81 maps of 7 x 7 places: brightness, two sizes of edges in 8 directions, edges among those of the smaller."""
    assert (Scattering((1, 28, 28)).dimensions, Scattering((1, 28, 28)).cells) == (81 * 49, (7, 7))
    assert (Scattering((3, 64, 64)).dimensions, Scattering((3, 64, 64)).levels) == ((3 * 25 + 3 * 64) * 64, 3)


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
    classifier.look_at([torch.rand(20, 1, 28, 28) * 2 - 1], seed=0)
    assert sorted(name for name, _ in classifier.named_parameters()) == ["head.bias", "head.weight"]
    assert sorted(classifier.state_dict()) == ["directions", "head.bias", "head.weight", "mean"]
    assert not classifier(torch.rand(4, 1, 28, 28)).any()


def coordinates(classifier: ScatteringClassifier, pictures: torch.Tensor) -> torch.Tensor:
    """What the linear layer sees, over its norm."""
    seen: list[torch.Tensor] = []
    classifier.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    classifier(pictures)
    return seen[0] / seen[0].norm(dim=1, keepdim=True)


def test_second_order_sees_which_way_bands_of_stripes_run() -> None:
    """Upright stripes in upright bands or in lying ones: edges among the strengths of one and the same edges."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    features = Scattering((1, 64, 64))
    across, along = 0, DIRECTIONS // 2  # of the stripes
    for place, seen, unseen in ((columns, across, along), (rows, along, across)):
        picture = (stripes(0.0, 64, 4)[0, 0] * (place // 4 % 2))[None, None]
        strength = torch.nn.functional.avg_pool2d(features._edges(picture), 2)
        second = features._edges(strength.movedim(1, 0))
        assert float(second[across, seen].mean() / second[across, unseen].mean()) > 3
        places = torch.nn.functional.adaptive_avg_pool2d(second, (8, 8)).flatten(0, 1)
        variance, mean = torch.var_mean(places, dim=(1, 2), correction=0, keepdim=True)
        maps = features(picture).reshape(-1, 8, 8)[1 + DIRECTIONS :][: DIRECTIONS**2]
        expected = (places - mean) / (variance + 1e-4).sqrt() / math.sqrt(features.dimensions)
        assert torch.allclose(maps, expected, atol=1e-6)


def test_the_directions_are_those_in_which_public_pictures_differ() -> None:
    """Uncorrelated over the public pictures, each with the fourth root of its variance, the largest first."""
    torch.manual_seed(0)
    public = torch.nn.functional.interpolate(torch.rand(600, 1, 4, 4), (28, 28)) * 2 - 1
    classifier = ScatteringClassifier((1, 28, 28), 2)
    classifier.look_at(torch.split(public, 100), seed=0)
    found = (classifier.features(public) - classifier.mean) @ classifier.directions[:, :20]
    spread = found.std(0)
    assert float(torch.corrcoef(found.T).fill_diagonal_(0).abs().max()) < 0.05
    assert bool((spread[1:] < spread[:-1] * 1.01).all())
    whole = torch.linalg.svdvals(classifier.features(public) - classifier.mean)[:20]
    assert torch.allclose(spread**2 / spread[0] ** 2, whole / whole[0], rtol=0.02)


def test_fewer_public_pictures_than_coordinates() -> None:
    """The coordinates that they cannot choose stay zero; all others stay finite."""
    classifier = ScatteringClassifier((1, 28, 28), 2)
    classifier.look_at([torch.rand(5, 1, 28, 28)] * 2, seed=0)
    seen = coordinates(classifier, torch.rand(4, 1, 28, 28))
    assert not seen[:, 10:].any()
    assert bool(seen.isfinite().all())
    assert seen[:, :4].any()


@pytest.mark.parametrize("image", [(1, 28, 28), (3, 1, 1)])
def test_public_pictures_that_are_all_alike(image: tuple[int, int, int]) -> None:
    classifier = ScatteringClassifier(image, 2)
    classifier.look_at([torch.zeros(9, *image)], seed=0)
    torch.nn.init.ones_(classifier.head.weight)
    assert bool(classifier(torch.rand(3, *image)).isfinite().all())


def test_the_choice_hangs_on_its_seed_alone() -> None:
    public, found = torch.rand(30, 1, 28, 28), []
    for state in (1, 2):
        torch.manual_seed(state)
        classifier = ScatteringClassifier((1, 28, 28), 2)
        classifier.look_at([public], seed=5)
        found.append(classifier.directions)
        assert torch.initial_seed() == state
    assert torch.equal(*found)
