"""Captions by any image-to-text model of `transformers`: BLIP, Florence-2, and chat models that see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from sfumato.pretrained._networks import check_images
from sfumato.pretrained.huggingface._replicas import Replicas, chosen_devices, chosen_precision, on_device
from sfumato.pretrained.huggingface._snapshot import find, library, loaded, reading
from sfumato.pretrained.interfaces import Images

QUESTION = "Describe this image in one or two plain sentences."
PROMPTS = {"florence2": "<DETAILED_CAPTION>"}
BEGUN = ("blip", "git")  # models that go on with their prompt


def pictures(images: Images) -> list[Image.Image]:
    """Uint8 `(N, 1 or 3, H, W)` as RGB pictures.

    Raises:
        UserError: not such images.
    """
    check_images(images, (1, 3))
    return [Image.fromarray(image.repeat(3 // len(image), 0).transpose(1, 2, 0).copy()) for image in images]


def image_processor(folder: Any, settings: dict[str, Any]) -> Any:
    """The Pillow processor, named explicitly: the other one computes other pixels, and needs torchvision."""
    settings = {name: settings[name] for name in ("local_files_only", "trust_remote_code")}
    return library("transformers").AutoImageProcessor.from_pretrained(folder, backend="pil", **settings)


class Captions:
    """A `Captioner`. It always takes the likeliest next word, so a caption depends on its image alone.

    Untested on GPU and on full-size models.

    Args:
        name: a folder or a name on the hub, such as `Salesforce/blip-image-captioning-large`.
        revision: on the hub.
        devices: `auto`, a device, or several, each with a copy of the model.
        precision: `auto` (float32 on a CPU, bfloat16 on GPUs), `fp32`, `fp16` or `bf16`.
        batch: images a call; each batch is filled up.
        prompt: what is asked, or (BLIP, GIT) how a caption begins; None takes what suits the model.
        max_tokens: where a caption is cut off; 100 in SPTI.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        devices: str | Sequence[str] = "auto",
        precision: str = "auto",
        batch: int = 16,
        prompt: str | None = None,
        max_tokens: int = 100,
    ) -> None:
        places = chosen_devices(devices)
        self._dtype = chosen_precision(precision, places, "bf16")
        transformers = library("transformers")
        snapshot = find(name, revision, self._dtype != torch.float32)
        self.identity = snapshot.identity
        self.max_tokens = max_tokens
        with reading(snapshot, "captioner"):
            settings = {"local_files_only": True, "trust_remote_code": False}
            self._processor = transformers.AutoProcessor.from_pretrained(snapshot.folder, **settings)
            self._processor.image_processor = image_processor(snapshot.folder, settings)
            self._processor.tokenizer.padding_side = "left"
        model_type = snapshot.json("config.json").get("model_type")
        self._asks = bool(getattr(self._processor, "chat_template", None))
        self.prompt = prompt or (QUESTION if self._asks else PROMPTS.get(str(model_type)))
        build = transformers.AutoModelForImageTextToText.from_pretrained
        self._replicas = Replicas(
            lambda device: loaded(build, snapshot, "captioner", dtype=self._dtype).to(device), places, batch
        )

    def caption(self, images: Images) -> list[str]:
        """One caption for each of uint8 images `(N, 1 or 3, H, W)`.

        Raises:
            UserError: not such images, or too little memory.
        """
        return self._replicas.map(self._captions, pictures(images))

    def _captions(self, model: Any, device: torch.device, batch: list[Image.Image]) -> list[str]:
        inputs = on_device(self._inputs(batch), device, self._dtype)
        written = model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False)
        asked = inputs.get("input_ids")
        # Models that only write return what they were asked, too; of two, that is how the caption begins.
        if asked is not None and model.config.model_type not in BEGUN:
            length = asked.shape[1]
            if torch.equal(written[:, :length], asked):
                written = written[:, length:]
        return [text.strip() for text in self._processor.batch_decode(written, skip_special_tokens=True)]

    def _inputs(self, batch: list[Image.Image]) -> Any:
        if self._asks:
            turns = [
                [
                    {
                        "role": "user",
                        "content": [{"type": "image", "image": image}, {"type": "text", "text": self.prompt}],
                    }
                ]
                for image in batch
            ]
            return self._processor.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
                processor_kwargs={"padding": True},
            )  # fmt: skip
        if self.prompt is None:
            return self._processor(images=batch, return_tensors="pt")
        return self._processor(images=batch, text=[self.prompt] * len(batch), return_tensors="pt", padding=True)
