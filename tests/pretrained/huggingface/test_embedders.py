from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.pretrained.huggingface.conftest import Hf, Saved

from sfumato.errors import UserError
from sfumato.pretrained.huggingface import load
from sfumato.pretrained.huggingface.captioners import pictures
from sfumato.pretrained.interfaces import ImageEmbedder, Images, TextEmbedder

pytestmark = pytest.mark.usefixtures("offline")
TEXTS = ["a cat", "a large house by the sea, seen from a boat", "", "red", "two dogs and a very long story " * 20]


@pytest.mark.parametrize(("name", "dimensions"), [("clip", 24), ("dinov2", 32), ("dino", 32), ("resnet", 40)])
def test_a_vector_depends_on_its_image_alone(saved: Saved, images: Images, name: str, dimensions: int) -> None:
    model = load(str(saved(name)), "image embedder", batch=4)
    assert isinstance(model, ImageEmbedder)
    assert model.dimensions == dimensions
    vectors = model.embed_images(images)
    assert vectors.shape == (len(images), dimensions)
    assert vectors.dtype == np.float32
    assert np.ptp(vectors, 0).max() > 0.01
    for number in range(len(images)):
        assert (model.embed_images(images[number : number + 1]) == vectors[number]).all()
    assert (model.embed_images(images[::-1].copy()) == vectors[::-1]).all()
    assert model.embed_images(images[:0]).shape == (0, dimensions)
    assert model.embed_images(images[:1, :1, :17]).shape == (1, dimensions)
    two = load(str(saved(name)), "image embedder", batch=4, devices=["cpu", "cpu"])
    assert (two.embed_images(images) == vectors).all()


def test_images_and_texts_share_a_space(saved: Saved, images: Images, hf: Hf) -> None:
    """The model's own similarity of every image and text, from its own forward pass."""
    eyes, ears = (load(str(saved("clip")), kind) for kind in ("image embedder", "text embedder"))
    assert isinstance(ears, TextEmbedder)
    vectors, words = eyes.embed_images(images), ears.embed_texts(TEXTS)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    assert np.abs(np.linalg.norm(words, axis=1) - 1).max() < 1e-6
    model = hf.transformers.CLIPModel.from_pretrained(saved("clip"))
    processor = hf.transformers.CLIPProcessor.from_pretrained(saved("clip"))
    inputs = processor(text=TEXTS, images=pictures(images), return_tensors="pt", padding="max_length", truncation=True)
    with torch.no_grad():
        own = model(**inputs).logits_per_image / model.logit_scale.exp()
    assert np.abs(vectors @ words.T - own.numpy()).max() < 1e-5


def test_the_class_token_is_taken_where_there_is_no_pooling(saved: Saved, images: Images, hf: Hf) -> None:
    model = hf.transformers.ViTModel.from_pretrained(saved("dino"), add_pooling_layer=False)
    processor = hf.transformers.ViTImageProcessorPil.from_pretrained(saved("dino"))
    with torch.no_grad():
        own = model(**processor(pictures(images[:2]), return_tensors="pt")).last_hidden_state[:, 0].numpy()
    assert np.abs(load(str(saved("dino")), "image embedder").embed_images(images[:2]) - own).max() < 1e-4


@pytest.mark.parametrize("name", ["clip", "sentences"])
def test_a_text_vector_depends_on_its_text_alone(saved: Saved, name: str) -> None:
    model = load(str(saved(name)), "text embedder", batch=3)
    vectors = model.embed_texts(TEXTS)
    for number, text in enumerate(TEXTS):
        assert (model.embed_texts([text]) == vectors[number]).all()
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    assert len(np.unique(vectors, axis=0)) == len(TEXTS)
    assert model.embed_texts([]).shape == (0, model.dimensions)
    assert (model.embed_texts([TEXTS[-1] + "and more"]) == vectors[-1]).all(), "what is too long is not cut off"


def test_sentence_encoders_are_pooled_as_their_folder_says(saved: Saved, tmp_path: Path, hf: Hf) -> None:
    folder = saved("sentences")
    model = hf.transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)
    tokenizer = hf.transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**tokenizer("a cat", return_tensors="pt")).last_hidden_state[0]
    for first, wanted in ((False, outputs.mean(0)), (True, outputs[0])):
        place = tmp_path / str(first)
        place.mkdir()
        for file in folder.iterdir():
            (place / file.name).symlink_to(file)
        (place / "1_Pooling").mkdir()
        (place / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": first}))
        found = load(str(place), "text embedder", batch=1).embed_texts(["a cat"])[0]
        assert np.abs(found - torch.nn.functional.normalize(wanted, dim=0).numpy()).max() < 1e-5


def test_a_model_with_missing_weights_is_refused(saved: Saved, tmp_path: Path, hf: Hf) -> None:
    """The library would draw them at random, so that every run would measure another distance."""
    model = hf.transformers.Dinov2Model.from_pretrained(saved("dinov2"))
    state = {key: value.contiguous() for key, value in model.state_dict().items() if "layer.1.mlp.fc1" not in key}
    for file in saved("dinov2").glob("*.json"):
        (tmp_path / file.name).symlink_to(file)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"it has no weights for .*mlp\.fc1"):
        load(str(tmp_path), "image embedder")


def inception_weights(narrow: int) -> dict[str, torch.Tensor]:
    """Weights of an Inception-v3 with the paper's layers, each of them `narrow` times narrower."""
    draws = torch.Generator().manual_seed(4)
    state: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: int, outputs: int, rows: int, columns: int | None = None) -> None:
        columns = columns or rows
        fan = inputs // narrow * rows * columns if inputs > 3 else 3 * rows * columns
        kernel = (outputs // narrow, inputs // narrow if inputs > 3 else 3, rows, columns)
        state[f"{name}.conv.weight"] = torch.randn(kernel, generator=draws) * (2 / fan) ** 0.5
        for part, low in (("weight", 0.8), ("bias", -0.1), ("running_mean", -0.1), ("running_var", 0.8)):
            state[f"{name}.bn.{part}"] = low + 0.3 * torch.rand(outputs // narrow, generator=draws)
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(1)

    for name, *sizes in (
        ("Conv2d_1a_3x3", 3, 32, 3), ("Conv2d_2a_3x3", 32, 32, 3), ("Conv2d_2b_3x3", 32, 64, 3),
        ("Conv2d_3b_1x1", 64, 80, 1), ("Conv2d_4a_3x3", 80, 192, 3),
    ):  # fmt: skip
        add(name, *sizes)
    for block, inputs, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        for name, *sizes in (
            ("branch1x1", inputs, 64, 1), ("branch5x5_1", inputs, 48, 1), ("branch5x5_2", 48, 64, 5),
            ("branch3x3dbl_1", inputs, 64, 1), ("branch3x3dbl_2", 64, 96, 3), ("branch3x3dbl_3", 96, 96, 3),
            ("branch_pool", inputs, pool, 1),
        ):  # fmt: skip
            add(f"Mixed_{block}.{name}", *sizes)
    for name, *sizes in (
        ("branch3x3", 288, 384, 3), ("branch3x3dbl_1", 288, 64, 1), ("branch3x3dbl_2", 64, 96, 3),
        ("branch3x3dbl_3", 96, 96, 3),
    ):  # fmt: skip
        add(f"Mixed_6a.{name}", *sizes)
    for block, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        for name, *sizes in (
            ("branch1x1", 768, 192, 1), ("branch7x7_1", 768, width, 1), ("branch7x7_2", width, width, 1, 7),
            ("branch7x7_3", width, 192, 7, 1), ("branch7x7dbl_1", 768, width, 1),
            ("branch7x7dbl_2", width, width, 7, 1), ("branch7x7dbl_3", width, width, 1, 7),
            ("branch7x7dbl_4", width, width, 7, 1), ("branch7x7dbl_5", width, 192, 1, 7), ("branch_pool", 768, 192, 1),
        ):  # fmt: skip
            add(f"Mixed_{block}.{name}", *sizes)
    for name, *sizes in (
        ("branch3x3_1", 768, 192, 1), ("branch3x3_2", 192, 320, 3), ("branch7x7x3_1", 768, 192, 1),
        ("branch7x7x3_2", 192, 192, 1, 7), ("branch7x7x3_3", 192, 192, 7, 1), ("branch7x7x3_4", 192, 192, 3),
    ):  # fmt: skip
        add(f"Mixed_7a.{name}", *sizes)
    for block, inputs in (("7b", 1280), ("7c", 2048)):
        for name, *sizes in (
            ("branch1x1", inputs, 320, 1), ("branch3x3_1", inputs, 384, 1), ("branch3x3_2a", 384, 384, 1, 3),
            ("branch3x3_2b", 384, 384, 3, 1), ("branch3x3dbl_1", inputs, 448, 1), ("branch3x3dbl_2", 448, 384, 3),
            ("branch3x3dbl_3a", 384, 384, 1, 3), ("branch3x3dbl_3b", 384, 384, 3, 1), ("branch_pool", inputs, 192, 1),
        ):  # fmt: skip
            add(f"Mixed_{block}.{name}", *sizes)
    return state


def save_inception(place: Path, state: dict[str, torch.Tensor], **stated: Any) -> None:
    place.mkdir()
    save_file(state, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"architecture": "inception_v3", "pretrained_cfg": stated}))


def test_inception_v3(tmp_path: Path, images: Images) -> None:
    """Layer by layer as the paper has them; weights outside a block's layers would not fit its neighbours' widths."""
    state = inception_weights(8)
    save_inception(tmp_path / "one", state)
    model = load(str(tmp_path / "one"), "image embedder", batch=2)
    assert model.dimensions == 2048 // 8
    vectors = model.embed_images(images[:3])
    assert np.isfinite(vectors).all()
    assert (vectors >= 0).all()
    assert np.ptp(vectors, 0).max() > 0.01
    assert (model.embed_images(images[2:3]) == vectors[2]).all()
    # Resized by Pillow already, so the model has nothing left to resize.
    large = np.asarray(Image.fromarray(images[0].transpose(1, 2, 0)).resize((299, 299), Image.Resampling.BICUBIC))
    assert np.abs(model.embed_images(large.transpose(2, 0, 1)[None]) - vectors[:1]).max() < 1e-5
    save_inception(tmp_path / "two", state, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    other = load(str(tmp_path / "two"), "image embedder", batch=2)
    assert np.abs(other.embed_images(images[:3]) - vectors).max() > 1e-3
    del state["Mixed_7c.branch_pool.conv.weight"]
    save_inception(tmp_path / "three", state)
    with pytest.raises(UserError, match="not those of an Inception-v3"):
        load(str(tmp_path / "three"), "image embedder")
