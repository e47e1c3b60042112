from __future__ import annotations

import numpy as np
import pytest
from tests.pretrained.huggingface.conftest import Saved

from sfumato.errors import UserError
from sfumato.pretrained.huggingface import load
from sfumato.pretrained.huggingface.captioners import QUESTION, Captions
from sfumato.pretrained.interfaces import Captioner, Images

pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize("name", ["blip", "llava"])
def test_a_caption_depends_on_its_image_alone(saved: Saved, images: Images, name: str) -> None:
    model: Captions = load(str(saved(name)), "captioner", batch=3, max_tokens=8)
    assert isinstance(model, Captioner)
    captions = model.caption(images)
    assert len(captions) == len(images)
    assert len(set(captions)) > 3
    assert model.caption(images[5:]) == captions[5:]
    assert model.caption(images[::-1].copy()) == captions[::-1]
    assert model.caption(images[:0]) == []
    assert not any(sign in "".join(captions) for sign in ("<user>", "</s>", "<image>", QUESTION))


def test_two_devices_write_what_one_writes(saved: Saved, images: Images) -> None:
    one = load(str(saved("blip")), "captioner", devices="cpu", batch=2, max_tokens=6)
    two = load(str(saved("blip")), "captioner", devices=["cpu", "cpu"], batch=2, max_tokens=6)
    assert len(two._replicas.copies) == 2
    assert two._replicas.copies[0][0] is not two._replicas.copies[1][0]
    assert one.caption(images) == two.caption(images)


def test_the_prompt_matters(saved: Saved, images: Images) -> None:
    plain = load(str(saved("llava")), "captioner", batch=2, max_tokens=6)
    other = load(str(saved("llava")), "captioner", batch=2, max_tokens=6, prompt="Which colour is it?")
    assert plain.prompt == QUESTION
    assert plain.caption(images[:2]) != other.caption(images[:2])
    begun = load(str(saved("blip")), "captioner", batch=2, max_tokens=6, prompt="a photo of")
    assert all(caption.startswith("a photo of") for caption in begun.caption(images[:2]))


def test_grey_images_are_shown_as_rgb(saved: Saved, images: Images) -> None:
    model = load(str(saved("blip")), "captioner", batch=1, max_tokens=6)
    grey = images[:1, :1]
    assert model.caption(grey) == model.caption(grey.repeat(3, 1))


def test_what_is_no_captioner_is_refused(saved: Saved) -> None:
    with pytest.raises(UserError, match=r"llama cannot be loaded as a captioner"):
        load(str(saved("llama")), "captioner")
    with pytest.raises(UserError, match="Images must be uint8"):
        load(str(saved("blip")), "captioner", max_tokens=2).caption(np.zeros((1, 3, 8, 8), np.float32))
