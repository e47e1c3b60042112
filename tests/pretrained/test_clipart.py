"""The generator that comes with Sfumato: it draws what it is told, item by item, and varies what it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfumato._files import sha256_file
from sfumato.errors import UserError
from sfumato.pretrained import zoo
from sfumato.pretrained._colours import colour_of
from sfumato.pretrained.clipart import FILE, ClipartGenerator, load
from sfumato.pretrained.interfaces import Identity, ImageGenerator, Images, ImageVariator
from sfumato.pretrained.minilm import MiniLM

TEXTS = ["a green heart", "a cartoon cat", "a purple tree"]
WEIGHTS = Path(__file__).parents[2] / "src" / "sfumato" / "pretrained" / "weights"


@pytest.fixture(scope="module")
def generator(minilm: MiniLM) -> ClipartGenerator:
    return ClipartGenerator(embedder=minilm)


@pytest.fixture(scope="module")
def quick(minilm: MiniLM) -> ClipartGenerator:
    """For what does not depend on how well it draws."""
    return ClipartGenerator(embedder=minilm, steps=3)


@pytest.fixture(scope="module")
def drawn(quick: ClipartGenerator) -> Images:
    return quick.generate(TEXTS, seed=3)


def distance(a: Images, b: Images) -> np.ndarray:  # type: ignore[type-arg]
    return np.abs(a.astype(float) - b).mean((1, 2, 3))


def test_it_is_a_generator_and_a_variator_with_a_name(
    generator: ClipartGenerator, minilm: MiniLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "load_text_embedder", lambda name: {"minilm": minilm}[name])
    assert isinstance(generator, ImageGenerator)
    assert isinstance(generator, ImageVariator)
    assert generator.identity.sha256 == sha256_file(WEIGHTS / FILE)
    assert generator.identity.licence == "Apache-2.0"
    other = Identity("other", "7", "", "none", "nowhere")
    assert load(WEIGHTS, other).identity == other


def test_the_bundle_is_as_small_as_promised() -> None:
    assert (WEIGHTS / FILE).stat().st_size <= 30_000_000


def test_an_item_depends_on_its_text_and_its_place_s_seed_alone(quick: ClipartGenerator, drawn: Images) -> None:
    assert drawn.shape == (3, 3, 64, 64)
    assert drawn.dtype == np.uint8
    assert (quick.generate(TEXTS[1:2], seed=4)[0] == drawn[1]).all()
    longer = quick.generate([*TEXTS, *["a pizza"] * 15], seed=3)
    assert (longer[:3] == drawn).all()
    assert (quick.generate(["a pizza"], seed=3 + 17)[0] == longer[17]).all()
    assert distance(longer[3:4], longer[4:5]) > 3


def test_colours_are_obeyed(generator: ClipartGenerator) -> None:
    texts = ["a green heart", "a blue star", "a red house", "a purple flower", "a blue apple", "a pink balloon"]
    images = generator.generate(texts, seed=0).transpose(0, 2, 3, 1)
    wished = [text.split()[1] for text in texts]
    assert sum(found == colour for found, colour in zip(colour_of(images), wished, strict=True)) >= 4


def test_drawings_look_like_their_neighbours_but_are_no_copies(generator: ClipartGenerator) -> None:
    texts = ["a heart", "a banana", "a snowman", "a tree"]
    ours = np.concatenate([generator.generate(texts, seed=seed) for seed in (0, 10)])
    known = np.concatenate([generator.generate(texts, seed=seed, fast=True) for seed in range(0, 40, 4)])
    nearest = np.array([[distance(one[None], known[k::4]).min() for k in range(4)] for one in ours])
    assert (nearest.argmin(1) == np.tile(np.arange(4), 2)).mean() >= 0.75
    assert (nearest.min(1) > 0.5).all()


def test_the_fast_mode_takes_drawings_from_memory(minilm: MiniLM, generator: ClipartGenerator) -> None:
    fast = ClipartGenerator(fast=True, embedder=minilm)
    images = fast.generate(["a red heart"] * 12, seed=1)
    assert (images == generator.generate(["a red heart"] * 12, seed=1, fast=True)).all()
    different = np.unique(images.reshape(12, -1), axis=0)
    assert 2 <= len(different) <= 5
    assert (fast.generate(["qwxz vfjk"], seed=1) < 250).any()


def test_a_text_that_nothing_fits_is_drawn_all_the_same(quick: ClipartGenerator) -> None:
    image = quick.generate(["qwxz vfjk"], seed=1)
    assert image.shape == (1, 3, 64, 64)
    assert image.std() > 3
    assert quick.generate([], seed=1).shape == (0, 3, 64, 64)


def test_variations_go_further_with_strength(generator: ClipartGenerator) -> None:
    given = generator.generate(["a red heart", "a banana", "a house", "a fish"], seed=1, fast=True)
    away = [distance(generator.vary_images(given, 1, strength), given).mean() for strength in (0.1, 0.45, 1.0)]
    assert 0 < away[0] < away[1] < away[2]
    assert away[0] < 0.4 * away[2]


def test_variations_follow_texts_and_stand_alone(quick: ClipartGenerator, generator: ClipartGenerator) -> None:
    given = quick.generate(["a red heart", "a yellow star"], seed=1, fast=True)
    images = generator.vary_images(given, 2, 0.5, ["a green heart", "a blue star"])
    assert (generator.vary_images(given[1:], 3, 0.5, ["a blue star"])[0] == images[1]).all()
    assert colour_of(images.transpose(0, 2, 3, 1)) == ["green", "blue"]
    grey = np.repeat(given.mean(1, keepdims=True).astype(np.uint8)[:, :, ::2, ::2], 1, axis=1)
    assert quick.vary_images(grey, 2, 0.5).shape == (2, 3, 64, 64)
    assert quick.vary_images(given[:0], 2, 0.5).shape == (0, 3, 64, 64)


def test_what_cannot_be_is_refused(quick: ClipartGenerator, minilm: MiniLM, tmp_path: Path) -> None:
    images = np.zeros((2, 3, 8, 8), np.uint8)
    with pytest.raises(UserError, match="strength"):
        quick.vary_images(images, 1, 0)
    with pytest.raises(UserError, match="strength"):
        quick.vary_images(images, 1, 1.1)
    with pytest.raises(UserError, match="one text an image"):
        quick.vary_images(images, 1, 0.5, ["a cat"])
    with pytest.raises(UserError, match="uint8"):
        quick.vary_images(images.astype(float), 1, 0.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="guidance"):
        ClipartGenerator(guidance=0.5, embedder=minilm)
    with pytest.raises(UserError, match="steps"):
        ClipartGenerator(steps=0, embedder=minilm)
    with pytest.raises(UserError, match="missing"):
        ClipartGenerator(weights=tmp_path, embedder=minilm)
