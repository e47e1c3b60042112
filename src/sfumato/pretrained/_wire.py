"""How images, texts and vectors look in requests and responses of the OpenAI interface."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.pretrained._connection import Malformed, Refused
from sfumato.pretrained._networks import check_images
from sfumato.pretrained.interfaces import Embeddings, Images

FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST_SIDE = 8192


def png(image: NDArray[np.uint8], least_side: int = 1) -> bytes:
    """An image `(C, H, W)`, grey or RGB, as an RGB PNG file; smaller ones are enlarged to `least_side` (bicubic)."""
    check_images(image[None], (1, 3))
    picture = Image.fromarray(np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)))
    if min(picture.size) < least_side:
        scale = least_side / min(picture.size)
        width, height = (math.ceil(side * scale) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def data_url(file: bytes) -> str:
    """A PNG file as the address of itself."""
    return "data:image/png;base64," + base64.b64encode(file).decode()


def pixels(file: bytes, side: int) -> Images:
    """An image file as uint8 `(3, side, side)`: cut to its middle square, then resized by Pillow's bicubic filter.

    Raises:
        Malformed: not an image of an allowed format and size.
    """
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as opened:
            if not 0 < min(opened.size) <= max(opened.size) <= LARGEST_SIDE:
                raise Malformed("an image of unusual size")
            picture = opened.convert("RGB")
    except Malformed:
        raise
    except Exception:  # Pillow raises what its decoders raise
        raise Malformed("not an image") from None
    width, height = picture.size
    square = min(width, height)
    left, top = (width - square) // 2, (height - square) // 2
    if (width, height) != (side, side):
        box = (left, top, left + square, top + square)
        picture = picture.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return np.asarray(picture).transpose(2, 0, 1).copy()


def text_of(response: Any) -> bytes:
    """The text of a chat completion, UTF-8.

    Raises:
        Malformed: there is none.
        Refused: the model would not answer, or a filter took the answer away.
    """
    choice = _first(response, "choices")
    message = choice.get("message")
    if choice.get("finish_reason") == "content_filter" or (isinstance(message, dict) and message.get("refusal")):
        raise Refused
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise Malformed("no text")
    return str(message["content"]).strip().encode("utf-8", "replace")


def image_of(response: Any, fetch: Callable[[str], bytes]) -> bytes:
    """The file of an image that was made, out of the response or, through `fetch`, from where it points to.

    Raises:
        Malformed: there is none, or it is no image.
    """
    item = _first(response, "data")
    coded, address = item.get("b64_json"), item.get("url")
    if isinstance(coded, str) and coded:
        coded = coded.rpartition(",")[2]  # some servers send a whole data address
    elif isinstance(address, str) and address.startswith("data:"):
        coded = address.partition(",")[2]
    try:
        file = base64.b64decode(coded, validate=True) if coded else fetch(str(address)) if address else b""
    except (binascii.Error, ValueError):
        raise Malformed("not base64") from None
    pixels(file, 1)
    return file


def vector_of(response: Any) -> bytes:
    """An embedding, float32 in this machine's byte order.

    Raises:
        Malformed: there is none, or it is not finite.
    """
    value = _first(response, "data").get("embedding")
    try:
        if isinstance(value, str):
            vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float32)
        else:
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused below
                vector = np.asarray(value, np.float32)
    except (ValueError, TypeError):
        raise Malformed("not numbers") from None
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise Malformed("not a finite vector")
    return vector.tobytes()


def as_vector(payload: bytes) -> Embeddings:
    """What `vector_of` gave, `(dimensions,)`."""
    return np.frombuffer(payload, np.float32)


def _first(response: Any, name: str) -> dict[str, Any]:
    """The first object of the list `name`."""
    items = response.get(name) if isinstance(response, dict) else None
    if not isinstance(items, list) or not items or not isinstance(items[0], dict):
        raise Malformed(f"no {name}")
    return items[0]
