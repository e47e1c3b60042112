"""Images and texts to vectors, by encoders of `transformers`: CLIP, SigLIP, DINO, ResNet, sentence encoders.

An Inception-v3 in the form of the hub's `timm/inception_v3...` is computed by Sfumato's own code (`_inception.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sfumato.pretrained.huggingface import _inception
from sfumato.pretrained.huggingface._replicas import Replicas, buckets, chosen_devices, chosen_precision, on_device
from sfumato.pretrained.huggingface._snapshot import find, library, loaded, reading
from sfumato.pretrained.huggingface.captioners import image_processor, pictures
from sfumato.pretrained.interfaces import Embeddings, Images

LONGEST = 512  # tokens, where neither tokenizer nor model says less


class ImageFeatures:
    """An `ImageEmbedder`. Untested on GPU and on full-size models.

    CLIP and its kin give vectors of length 1 in the space that images share with texts. Others give what they pool: the
    class token after the last normalisation (DINOv2, ViT), or the mean over places (ResNet, ConvNeXt, Inception).

    Args:
        name: a folder or a name on the hub, such as `openai/clip-vit-large-patch14` or `facebook/dinov2-base`.
        revision: on the hub.
        devices: `auto`, a device, or several, each with a copy of the model.
        precision: `auto` (float32), `fp32`, `fp16` or `bf16`.
        batch: images a call; each batch is filled up.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        devices: str | Sequence[str] = "auto",
        precision: str = "auto",
        batch: int = 16,
    ) -> None:
        places = chosen_devices(devices)
        self._dtype = chosen_precision(precision, places, "fp32")
        snapshot = find(name, revision, self._dtype != torch.float32)
        self.identity = snapshot.identity
        if _inception.is_inception(snapshot):
            self._prepare = _inception.pixels
            self._replicas = Replicas(lambda device: _inception.build(snapshot).to(device, self._dtype), places, batch)
        else:
            with reading(snapshot, "image embedder"):
                processor = image_processor(snapshot.folder, snapshot.loading)
            self._prepare = lambda batch: processor(images=batch, return_tensors="pt")
            encoder = library("transformers").AutoModel.from_pretrained
            self._replicas = Replicas(
                lambda device: loaded(encoder, snapshot, "image embedder", dtype=self._dtype).to(device), places, batch
            )
        self.dimensions = self.embed_images(np.zeros((1, 3, 32, 32), np.uint8)).shape[1]

    def embed_images(self, images: Images) -> Embeddings:
        """Embeds uint8 images `(N, 1 or 3, H, W)` of any one size as `(N, dimensions)`, each by itself.

        Raises:
            UserError: not such images, or too little memory.
        """
        rows = self._replicas.map(self._rows, pictures(images))
        return np.stack(rows) if rows else np.empty((0, self.dimensions), np.float32)

    def _rows(self, model: Any, device: torch.device, batch: list[Image.Image]) -> list[Any]:
        inputs = on_device(self._prepare(batch), device, self._dtype)
        return list(image_vectors(model, inputs["pixel_values"]).float().cpu().numpy())


class TextFeatures:
    """A `TextEmbedder`: the text side of CLIP and its kin, or a sentence encoder. Untested on GPU and full-size models.

    A sentence encoder's outputs are pooled as its folder `1_Pooling` says: the first token, or (without one) the mean.

    Args:
        name: a folder or a name on the hub.
        revision: on the hub.
        devices: `auto`, a device, or several, each with a copy of the model.
        precision: `auto` (float32), `fp32`, `fp16` or `bf16`.
        batch: texts a call; each batch is filled up.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        devices: str | Sequence[str] = "auto",
        precision: str = "auto",
        batch: int = 32,
    ) -> None:
        places = chosen_devices(devices)
        self._dtype = chosen_precision(precision, places, "fp32")
        transformers = library("transformers")
        snapshot = find(name, revision, self._dtype != torch.float32)
        self.identity = snapshot.identity
        with reading(snapshot, "text embedder"):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                snapshot.folder, local_files_only=True, trust_remote_code=False
            )
        build = transformers.AutoModel.from_pretrained
        self._replicas = Replicas(
            lambda device: loaded(build, snapshot, "text embedder", dtype=self._dtype).to(device), places, batch
        )
        model = self._replicas.copies[0][0]
        self._paired = hasattr(model, "get_text_features")
        self._first = bool(snapshot.json("1_Pooling/config.json").get("pooling_mode_cls_token"))
        config = getattr(model.config, "text_config", model.config)
        self._longest = min(self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", LONGEST))
        self.dimensions = self.embed_texts([""]).shape[1]

    def embed_texts(self, texts: Sequence[str]) -> Embeddings:
        """Embeds `N` texts as `(N, dimensions)`, each of length 1; what is beyond the longest input is cut off.

        Raises:
            UserError: too little memory.
        """
        asked = list(texts)
        rows: list[Any] = [None] * len(asked)
        # CLIP and SigLIP learned on texts padded to the full length. Others may stop earlier.
        lengths = [
            self._longest
            if self._paired
            else len(self._tokenizer(text, truncation=True, max_length=self._longest).input_ids)
            for text in asked
        ]
        for length, numbers in buckets(lengths, self._longest).items():

            def embed(model: Any, device: torch.device, batch: list[int], length: int = length) -> list[Any]:
                tokens = self._tokenizer(
                    [asked[number] for number in batch],
                    padding="max_length",
                    max_length=length,
                    truncation=True,
                    return_tensors="pt",
                )
                return list(self._vectors(model, on_device(tokens, device, self._dtype)).float().cpu().numpy())

            for number, row in zip(numbers, self._replicas.map(embed, numbers), strict=True):
                rows[number] = row
        return np.stack(rows) if rows else np.empty((0, self.dimensions), np.float32)

    def _vectors(self, model: Any, tokens: dict[str, Tensor]) -> Tensor:
        if self._paired:
            return unit(pooled(model.get_text_features(**tokens)))
        outputs = model(**tokens).last_hidden_state
        if self._first:
            return unit(outputs[:, 0])
        mask = tokens["attention_mask"][:, :, None].to(outputs.dtype)
        return unit((outputs * mask).sum(1) / mask.sum(1).clamp(min=1))


def image_vectors(model: Any, pixels: Tensor) -> Tensor:
    """Pixels as the model's processor makes them, `(N, 3, H, W)`, to vectors `(N, dimensions)`."""
    if hasattr(model, "get_image_features"):
        return unit(pooled(model.get_image_features(pixel_values=pixels)))
    if isinstance(model, _inception.InceptionV3):
        features: Tensor = model(pixels)
        return features
    outputs = model(pixel_values=pixels)
    found = getattr(outputs, "pooler_output", None)
    vectors: Tensor = (outputs.last_hidden_state[:, 0] if found is None else found).flatten(1)
    return vectors


def pooled(outputs: Any) -> Tensor:
    """The vectors in what a model returns: itself in some releases of the library, a part of it in others."""
    found: Tensor = outputs if isinstance(outputs, Tensor) else outputs.pooler_output
    return found


def unit(vectors: Tensor) -> Tensor:
    """Rows scaled to length 1, in float32."""
    return F.normalize(vectors.float(), dim=1)
