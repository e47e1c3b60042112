from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.pretrained._connection import Malformed, Refused
from sfumato.pretrained._wire import as_vector, image_of, pixels, png, text_of, vector_of

RANDOM = np.random.default_rng(0).integers(0, 256, (3, 20, 12), dtype=np.uint8)


def file_of(picture: Image.Image, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


def nowhere(url: str) -> bytes:
    raise AssertionError(f"{url} was fetched")


def test_png_keeps_every_pixel() -> None:
    square = RANDOM[:, :12]
    assert np.array_equal(pixels(png(square), 12), square)
    assert np.array_equal(pixels(png(square[:1]), 12), np.repeat(square[:1], 3, 0))


def test_the_middle_square_is_kept() -> None:
    assert np.array_equal(pixels(png(RANDOM), 12), RANDOM[:, 4:16])
    half = pixels(png(np.full((3, 40, 20), 77, np.uint8)), 10)
    assert half.shape == (3, 10, 10)
    assert (half == 77).all()


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_other_formats_and_modes_are_read(form: str) -> None:
    assert (pixels(file_of(Image.new("L", (9, 9), 50), form), 9) == 50).all()


@pytest.mark.parametrize(
    "file",
    [b"", b"<svg/>", png(RANDOM)[:-30], file_of(Image.new("RGB", (4, 4)), "GIF"), file_of(Image.new("1", (9000, 2)))],
)
def test_what_is_no_such_image_is_malformed(file: bytes) -> None:
    with pytest.raises(Malformed):
        pixels(file, 8)


def test_images_come_in_several_wrappings() -> None:
    file = png(RANDOM)
    coded = base64.b64encode(file).decode()
    for item in (
        {"b64_json": coded},
        {"b64_json": f"data:image/png;base64,{coded}"},
        {"url": f"data:image/png;base64,{coded}"},
    ):
        assert image_of({"data": [item]}, nowhere) == file
    assert image_of({"data": [{"b64_json": None, "url": "http://x/y.png"}]}, lambda url: file) == file


@pytest.mark.parametrize(
    "response",
    [
        None,
        [],
        {},
        {"data": []},
        {"data": [None]},
        {"data": [{}]},
        {"data": [{"b64_json": "!"}]},
        {"data": [{"b64_json": "AAAA"}]},
    ],
)
def test_no_image_is_malformed(response: Any) -> None:
    with pytest.raises(Malformed):
        image_of(response, nowhere)


def test_texts() -> None:
    assert text_of({"choices": [{"message": {"content": "  a cat \n"}, "finish_reason": "length"}]}) == b"a cat"
    assert text_of({"choices": [{"message": {"content": ""}}]}) == b""
    for choice in (
        {"message": {"content": None, "refusal": "no"}},
        {"finish_reason": "content_filter", "message": {"content": "a"}},
    ):
        with pytest.raises(Refused):
            text_of({"choices": [choice]})
    for response in ({"choices": []}, {"choices": [{}]}, {"choices": [{"message": {"content": 3}}]}, "text"):
        with pytest.raises(Malformed):
            text_of(response)


def test_vectors() -> None:
    vector = np.array([1.5, -2, 1e-30], np.float32)
    for value in (vector.tolist(), base64.b64encode(vector.tobytes()).decode()):
        assert np.array_equal(as_vector(vector_of({"data": [{"embedding": value}]})), vector)
    for value in ([], [1, "a"], [[1, 2]], [float("nan")], [1e300], "!!", None, {"a": 1}):
        with pytest.raises(Malformed):
            vector_of({"data": [{"embedding": value}]})
