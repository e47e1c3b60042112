from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.pretrained.huggingface.conftest import Hf, Saved

from sfumato.errors import UserError
from sfumato.pretrained.huggingface import load
from sfumato.pretrained.huggingface.diffusion import Diffusion, enough_steps, pixels
from sfumato.pretrained.interfaces import ImageGenerator, Images, ImageVariator

pytestmark = pytest.mark.usefixtures("offline")
TEXTS = ["a red house", "two dogs", "the sea at night", "a cat", "a boat"]


@pytest.fixture(scope="module")
def painter(saved: Saved) -> Diffusion:
    model: Diffusion = load(str(saved("sdxl")), "image generator", batch=2)
    return model


@pytest.fixture(scope="module")
def drawn(painter: Diffusion) -> Images:
    return painter.generate(TEXTS, seed=5)


def far(one: Images, other: Images) -> float:
    return float(np.abs(one.astype(float) - other).mean())


def test_an_image_depends_on_its_text_place_and_seed_alone(painter: Diffusion, drawn: Images) -> None:
    assert isinstance(painter, ImageGenerator)
    assert drawn.shape == (5, 3, 64, 64)
    assert drawn.dtype == np.uint8
    assert (painter.generate(TEXTS[3:4], seed=8) == drawn[3:4]).all()
    assert far(painter.generate(TEXTS[:1], seed=6), drawn[:1]) > 5, "the seed does not matter"
    assert far(painter.generate(["a boat"], seed=5), drawn[:1]) > 0.2, "the text does not matter"
    assert painter.generate([], seed=1).shape == (0, 3, 64, 64)


def test_it_draws_what_the_library_draws_with_the_settings_of_the_paper(saved: Saved, drawn: Images, hf: Hf) -> None:
    """SDXL-Turbo in SPTI: four steps, guidance 0."""
    pipe = hf.diffusers.StableDiffusionXLPipeline.from_pretrained(saved("sdxl"))
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(5 + number) for number in range(2)]
    found = pipe(TEXTS[:2], num_inference_steps=4, guidance_scale=0.0, generator=generators, output_type="np").images
    assert far(np.rint(found.transpose(0, 3, 1, 2) * 255).astype(np.uint8), drawn[:2]) < 0.01


def test_two_devices_draw_as_one(saved: Saved, drawn: Images) -> None:
    two = load(str(saved("sdxl")), "image generator", batch=2, devices=["cpu", "cpu"])
    assert (two.generate(TEXTS, seed=5) == drawn).all()


def test_variations_stay_nearer_the_weaker_they_are(painter: Diffusion, drawn: Images) -> None:
    assert isinstance(painter, ImageVariator)
    weak, strong = (painter.vary_images(drawn, 3, strength, TEXTS) for strength in (0.25, 1.0))
    assert weak.shape == drawn.shape
    # The autoencoder was never trained, so what it makes of an image without any step is the measure.
    still = painter.vary_images(drawn, 3, 1e-3, TEXTS)
    assert far(weak, still) < far(strong, still)
    assert (painter.vary_images(drawn[3:4], 6, 0.25, TEXTS[3:4]) == weak[3:4]).all()
    assert far(painter.vary_images(drawn[:1], 4, 0.25, TEXTS[:1]), weak[:1]) > 0.5, "the seed does not matter"
    assert (painter.generate(TEXTS[:2], seed=5) == drawn[:2]).all(), "varying has changed how it draws"


def test_a_variator_takes_images_of_any_size(saved: Saved) -> None:
    varying = load(str(saved("sdxl")), "image variator", batch=1, prompt="a boat", size=(32, 48))
    images = np.full((1, 1, 20, 24), 90, np.uint8)
    varied = varying.vary_images(images, 1, 0.5)
    assert varied.shape == (1, 3, 32, 48)
    assert (varying.vary_images(images, 1, 0.5, ["a boat"]) == varied).all()
    assert varying.vary_images(images[:0], 1, 0.5).shape == (0, 3, 32, 48)


@pytest.mark.parametrize("steps", [1, 4, 50])
def test_at_least_one_step_is_done(steps: int) -> None:
    for strength in (1.0, 0.5, 0.3, 0.25, 0.2, 0.1, 1 / 49, 0.07, 0.001):
        enough = enough_steps(steps, strength)
        assert enough >= steps
        assert int(enough * strength) >= 1
        assert enough == steps or int((enough - 1) * strength) < 1


def test_other_settings(saved: Saved, drawn: Images, tmp_path: Path) -> None:
    own = load(str(saved("sdxl")), "image generator", batch=2, steps=2, guidance=3.0)
    assert far(own.generate(TEXTS[:2], seed=5), drawn[:2]) > 1
    plain = tmp_path / "plain"
    shutil.copytree(saved("sdxl"), plain)
    schedule = json.loads((plain / "scheduler" / "scheduler_config.json").read_text())
    (plain / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule | {"timestep_spacing": "leading"}))
    assert load(str(plain), "image generator")._settings == {}
    assert load(str(plain.rename(tmp_path / "my-turbo")), "image generator")._settings["num_inference_steps"] == 4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_takes_the_smaller_weights(saved: Saved, tmp_path: Path, hf: Hf, precision: str) -> None:
    pipe = hf.diffusers.StableDiffusionXLPipeline.from_pretrained(saved("sdxl"), dtype=torch.float16)
    place = tmp_path / "half"
    shutil.copytree(saved("sdxl"), place)
    pipe.save_pretrained(place, variant="fp16")
    model = load(str(place), "image generator", batch=1, precision=precision)
    assert model.identity.sha256 != load(str(saved("sdxl")), "image generator").identity.sha256
    assert model.generate(TEXTS[:1], seed=5).shape == (1, 3, 64, 64)


def test_what_is_not_a_number_is_told() -> None:
    images = np.full((1, 2, 2, 3), 0.5)
    assert pixels(images, "model")[0].tolist() == np.full((3, 2, 2), 128).tolist()
    images[0, 1, 1, 1] = np.nan
    with pytest.raises(UserError, match="give bf16 or fp32"):
        pixels(images, "model")


def test_what_cannot_be_drawn_is_refused(painter: Diffusion, drawn: Images, saved: Saved) -> None:
    with pytest.raises(UserError, match="A strength of 0"):
        painter.vary_images(drawn, 1, 0)
    with pytest.raises(UserError, match="1 texts were given for 5 images"):
        painter.vary_images(drawn, 1, 0.5, ["a cat"])
    with pytest.raises(UserError, match="give multiples of 8"):
        load(str(saved("sdxl")), "image generator", size=65)
    with pytest.raises(UserError, match="it is no pipeline"):
        load(str(saved("clip")), "image generator")
    with pytest.raises(UserError, match="x2 cannot be loaded as an image generator"):
        load(str(saved("x2")), "image generator")


@pytest.mark.parametrize("change", [{"unet": ["os", "UNet"]}, {"_class_name": ["my_pipeline", "Mine"]}])
def test_code_of_a_model_is_never_run(saved: Saved, tmp_path: Path, change: dict[str, list[str]]) -> None:
    place = tmp_path / "foreign"
    shutil.copytree(saved("sdxl"), place)
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps(index | change))
    (place / "my_pipeline.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(UserError, match="code from elsewhere"):
        load(str(place), "image generator")
