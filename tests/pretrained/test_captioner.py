from __future__ import annotations

from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tests.pretrained.conftest import loaded

from sfumato.errors import UserError
from sfumato.pretrained import zoo
from sfumato.pretrained.captioner import AS_GOOD, FILE, ClipartCaptioner, phrase, sentence, spoken
from sfumato.pretrained.interfaces import Captioner, Images

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def captioner() -> ClipartCaptioner:
    loaded("efficientnet-lite0")
    return cast(ClipartCaptioner, loaded("captioner"))


@pytest.fixture(scope="module")
def drawings() -> Images:
    """A red heart, a yellow smiling face, a green tree and a blue arrow, as a child would draw them."""
    pictures = []
    for number in range(4):
        picture = Image.new("RGB", (96, 96), "white")
        draw = ImageDraw.Draw(picture)
        if number == 0:
            draw.ellipse((10, 14, 50, 54), "#e01020")
            draw.ellipse((46, 14, 86, 54), "#e01020")
            draw.polygon([(13, 43), (83, 43), (48, 86)], "#e01020")
        elif number == 1:
            draw.ellipse((8, 8, 88, 88), "#ffd030")
            draw.ellipse((30, 32, 40, 46), "#402000")
            draw.ellipse((56, 32, 66, 46), "#402000")
            draw.arc((28, 38, 68, 72), 20, 160, "#402000", 5)
        elif number == 2:
            draw.rectangle((42, 60, 54, 90), "#804010")
            draw.ellipse((14, 8, 82, 68), "#20a030")
        else:
            draw.polygon([(8, 38), (52, 38), (52, 20), (90, 48), (52, 76), (52, 58), (8, 58)], "#2060e0")
        pictures.append(np.asarray(picture).transpose(2, 0, 1))
    return np.stack(pictures)


def test_it_names_what_is_drawn(captioner: ClipartCaptioner, drawings: Images) -> None:
    assert isinstance(captioner, Captioner)
    described = captioner.describe(drawings)
    for one, word, colour in zip(
        described, ("heart", "face", "tree", "arrow"), ("red", "yellow", "green", "blue"), strict=True
    ):
        assert word in one.words, one
        assert one.colour == colour
        assert one.caption == sentence(one.words, one.colour)
    assert captioner.caption(drawings) == [one.caption for one in described]
    assert [len(one.words) for one in described] == [5] * 4


def test_each_image_is_looked_at_alone(captioner: ClipartCaptioner, drawings: Images) -> None:
    seen = captioner._eyes.see(drawings)
    assert np.array_equal(captioner._eyes.see(drawings[::-1]), seen[::-1])
    assert np.array_equal(captioner._eyes.see(drawings[2:3]), seen[2:3])
    scores = captioner.scores(np.tile(seen, (2, 1)))  # more than one batch
    assert np.array_equal(captioner.scores(seen[1:2]), scores[5:6])
    assert captioner.caption(drawings[:0]) == []


def test_paper_around_a_drawing_does_not_matter(captioner: ClipartCaptioner, drawings: Images) -> None:
    wide = np.full((4, 3, 160, 240), 255, np.uint8)
    wide[:, :, 20:116, 100:196] = drawings
    np.testing.assert_array_equal(captioner._eyes.see(wide), captioner._eyes.see(drawings))


def test_any_size_and_grey_and_blank(captioner: ClipartCaptioner) -> None:
    grey = np.zeros((1, 1, 28, 28), np.uint8)
    assert np.array_equal(captioner._eyes.see(grey), captioner._eyes.see(grey.repeat(3, 1)))
    assert captioner.caption(np.full((1, 3, 30, 20), 255, np.uint8))[0]
    with pytest.raises(UserError, match="must be uint8 of shape"):
        captioner.caption(np.zeros((1, 3, 8, 8), np.float32))


def test_the_shipped_weights(captioner: ClipartCaptioner) -> None:
    assert (zoo.entry("captioner").folder / FILE).stat().st_size < 8e6
    assert captioner.identity == zoo.entry("captioner").identity
    assert 500 < len(captioner.vocabulary) == len(set(captioner.vocabulary))
    assert not {"hash", "theme", "blue square", "red", "left"} & set(captioner.vocabulary)
    remembered = captioner._heads.remembered
    assert torch.all((remembered == 0) | (remembered == 1))
    assert float(remembered.sum(1).min()) >= 1


def test_the_noun_is_the_rarest_of_the_good_words() -> None:
    """Words are sorted by how common they are, the commonest first."""
    scores = np.array([1.0, 0.2, AS_GOOD + 0.01, AS_GOOD - 0.01, 0.1], np.float32)
    assert spoken(scores, 4) == [2, 0, 3, 1]
    assert spoken(np.array([0.1, 1.0, 0.1], np.float32), 2) == [1, 0]
    assert spoken(np.array([-0.2, -0.1], np.float32), 2)[0] == 1, "also where no word fits"


@pytest.mark.parametrize(
    ("noun", "colour", "found"),
    [
        ("apple", None, "an apple"), ("apple", "red", "a red apple"), ("car", "orange", "an orange car"),
        ("scissors", "blue", "blue scissors"), ("bus", "red", "a red bus"), ("water", "blue", "blue water"),
        ("unicorn", None, "a unicorn"), ("hourglass", None, "an hourglass"), ("red heart", "red", "a red heart"),
        ("glass", "green", "a green glass"), ("a man singing", None, "a man singing"),
    ],
)  # fmt: skip
def test_phrases(noun: str, colour: str | None, found: str) -> None:
    assert phrase(noun, colour) == found


def test_a_caption_has_a_noun_and_two_words() -> None:
    assert sentence(("apple", "fruit", "food", "plant"), "red") == "a red apple, fruit, food"
    assert sentence(("arrow",), None) == "an arrow"
