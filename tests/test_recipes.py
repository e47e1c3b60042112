"""Recipes: every file resolves, and asks for what its comments say."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.config import read_config
from sfumato.nets.ddpmpp import DDPMpp, DDPMppShape

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_a_recipe_resolves(file: Path) -> None:
    config = read_config(file, {"epsilon": 1.0})
    assert config.epsilon == 1.0
    assert file.name in file.read_text(), "its own commands name it"
    assert file.stem.startswith(config.method)


@pytest.mark.parametrize(
    ("name", "parameters", "rate"),
    [
        ("mnist", 1_485_217, 1 / 14),
        ("fashion-mnist", 1_485_217, 1 / 14),
        ("cifar10", 1_754_499, 1 / 3),
        ("celeba32", 1_804_451, 1 / 9),
        ("celeba64", 1_999_907, 1 / 20),
        ("camelyon17", None, 1 / 66),
    ],
)
def test_privimage_as_published(name: str, parameters: int | None, rate: float) -> None:
    (file,) = (file for file in RECIPES if file.stem == f"privimage-{name}")
    config = read_config(file, {})
    image = (config.image.channels, config.image.height, config.image.width)
    shape = config.privimage.shape(image, len(config.classes or ()))
    assert isinstance(shape, DDPMppShape)
    if parameters:
        assert sum(p.numel() for p in DDPMpp(shape).parameters()) == parameters
    assert config.privimage.sampling_rate(config.public_size) == pytest.approx(rate, rel=1e-3)
