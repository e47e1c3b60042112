from __future__ import annotations

import hashlib
import io
import os
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from sfumato.data import decode as module
from sfumato.data.decode import ImageSpec, Unreadable, decode, decode_file, open_beneath, read_bytes
from sfumato.errors import UserError

GREY = ImageSpec(4, 4, 1)
RGB = ImageSpec(4, 4, 3)
KEY = b"k" * 32


def saved(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(height: int, width: int, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(5).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


def png(width: int, height: int, depth: int, colour: int, row: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG file written by hand: every row the same; `extra` chunks stand before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress((b"\0" + row) * min(height, 64))
    chunks = [(b"IHDR", header), *extra, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def pixel(data: bytes, spec: ImageSpec = RGB) -> list[int]:
    """The colour of an image that must have one colour only."""
    pixels = decode(data, spec)
    assert isinstance(pixels, np.ndarray), pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape == spec.shape
    assert (pixels == pixels[:, :1, :1]).all()
    return pixels[:, 0, 0].tolist()


# --- the shape asked for ---


@pytest.mark.parametrize(
    "arguments",
    [
        {"height": 0},
        {"width": 5000},
        {"height": 4.0},
        {"width": True},
        {"channels": 2},
        {"fit": "cover"},
        {"range16": (5, 5)},
        {"range16": (0, 70_000)},
        {"range16": (0.0, 1.0)},
        {"range16": [0, 9]},
        {"range16": 9},
    ],
)
def test_spec_refuses_in_one_sentence(arguments: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"give .*[.]$"):
        ImageSpec(**{"height": 4, "width": 4, "channels": 3} | arguments)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_exact_size_passes_unresampled(fit: str, channels: int) -> None:
    image = noise(9, 13, channels)
    pixels = decode(saved(image), ImageSpec(9, 13, channels, fit))
    expected = np.asarray(image).reshape(9, 13, channels).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


def bars() -> Image.Image:
    """32 rows, 96 columns: red, green and blue thirds."""
    values = np.zeros((32, 96, 3), np.uint8)
    for third in range(3):
        values[:, 32 * third : 32 * third + 32, third] = 255
    return Image.fromarray(values)


def test_crop_takes_the_centre() -> None:
    assert pixel(saved(bars()), ImageSpec(8, 8, 3, "crop")) == [0, 255, 0]
    assert pixel(saved(bars().transpose(Image.Transpose.ROTATE_90)), ImageSpec(8, 8, 3, "crop")) == [0, 255, 0]


def test_crop_to_the_centre_of_the_exact_size_is_not_resampled() -> None:
    image = noise(8, 20)
    np.testing.assert_array_equal(
        decode(saved(image), ImageSpec(8, 8, 3)), np.asarray(image)[:, 6:14].transpose(2, 0, 1)
    )


def test_pad_keeps_everything_on_white() -> None:
    pixels = decode(saved(bars()), ImageSpec(12, 12, 3, "pad"))
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 8:] == 255).all()
    np.testing.assert_allclose(pixels[:, 4:8, 0].T, [[255, 0, 0]] * 4, atol=2)
    np.testing.assert_allclose(pixels[:, 4:8, 11].T, [[0, 0, 255]] * 4, atol=2)


def test_stretch_ignores_the_aspect_ratio() -> None:
    pixels = decode(saved(bars()), ImageSpec(12, 12, 3, "stretch"))
    np.testing.assert_allclose(pixels[:, :, 0].T, [[255, 0, 0]] * 12, atol=2)
    np.testing.assert_allclose(pixels[:, :, 11].T, [[0, 0, 255]] * 12, atol=2)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 700), (257, 255)])
@pytest.mark.parametrize("target", [(1, 1), (7, 5), (1, 40), (40, 1)])
def test_every_aspect_ratio_gives_the_target_shape(fit: str, size: tuple[int, int], target: tuple[int, int]) -> None:
    pixels = decode(saved(Image.new("L", size, 77)), ImageSpec(*target, 1, fit))
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (1, *target)
    assert pixels[0, (target[0] - 1) // 2, (target[1] - 1) // 2] == 77
    assert set(np.unique(pixels)) <= ({77, 255} if fit == "pad" else {77})


def test_large_jpeg_is_reduced_faithfully() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 1024), (1024, 1024)).astype(np.uint8)
    pixels = decode(saved(Image.fromarray(ramp), "JPEG", quality=95), ImageSpec(16, 16, 1))
    assert np.abs(pixels[0] - (np.arange(16) + 0.5) * 255 / 16).max() < 3


# --- every kind of pixel ---


@pytest.mark.parametrize(
    ("image", "form", "options", "colour"),
    [
        (Image.new("1", (4, 4), 1), "PNG", {}, [255, 255, 255]),
        (Image.new("1", (4, 4), 0), "TIFF", {}, [0, 0, 0]),
        (Image.new("L", (4, 4), 77), "PNG", {}, [77, 77, 77]),
        (Image.new("L", (4, 4), 77), "BMP", {}, [77, 77, 77]),
        (Image.new("L", (4, 4), 77), "TIFF", {"compression": "tiff_lzw"}, [77, 77, 77]),
        (Image.new("L", (4, 4), 77), "PNG", {"transparency": 77}, [255, 255, 255]),
        (Image.new("RGB", (4, 4), (10, 20, 30)), "PNG", {}, [10, 20, 30]),
        (Image.new("RGB", (4, 4), (10, 20, 30)), "PNG", {"transparency": (10, 20, 30)}, [255, 255, 255]),
        (Image.new("RGB", (4, 4), (10, 20, 30)), "GIF", {}, [10, 20, 30]),
        (Image.new("RGB", (4, 4), (10, 20, 30)), "WEBP", {"lossless": True}, [10, 20, 30]),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "PNG", {}, [255, 255, 255]),
        (Image.new("RGBA", (4, 4), (0, 100, 200, 51)), "PNG", {}, [204, 224, 244]),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 255)), "PNG", {}, [10, 20, 30]),
        (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "WEBP", {"lossless": True}, [255, 255, 255]),
        (Image.new("RGBA", (4, 4), (0, 100, 200, 51)), "TIFF", {}, [204, 224, 244]),
        (Image.new("LA", (4, 4), (100, 0)), "PNG", {}, [255, 255, 255]),
        (Image.new("LA", (4, 4), (100, 51)), "PNG", {}, [224, 224, 224]),
        (Image.new("YCbCr", (4, 4), (128, 128, 128)), "TIFF", {}, [128, 128, 128]),
        (Image.new("LAB", (4, 4), (128, 128, 128)), "TIFF", {}, [118, 118, 118]),
        (Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF", {}, [0, 255, 255]),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 255)), "JPEG", {}, [0, 0, 0]),
    ],
)
def test_colours(image: Image.Image, form: str, options: dict[str, object], colour: list[int]) -> None:
    data = saved(image, form, **options)
    np.testing.assert_allclose(pixel(data), colour, atol=2 if image.mode in ("LAB", "YCbCr") else 0)
    grey = round(float(np.dot(colour, [0.299, 0.587, 0.114])))
    np.testing.assert_allclose(pixel(data, GREY), [grey], atol=2)


def test_ycck_jpeg() -> None:
    """Adobe's YCCK: a CMYK file whose APP14 marker says that the first three channels are YCbCr."""
    data = bytearray(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    at = data.index(b"Adobe")
    assert data[at + 11] == 0
    np.testing.assert_allclose(pixel(bytes(data)), [255, 0, 0], atol=2)
    data[at + 11] = 2
    # Stored inverted: (255, 0, 0, 255). As Y = 255, Cb = Cr = 0 it stands for the inks (76, 255, 28, 0).
    np.testing.assert_allclose(pixel(bytes(data)), [179, 0, 227], atol=2)


def test_palette_and_its_transparency() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([9, 9, 9, 10, 20, 30])
    assert pixel(saved(image)) == [10, 20, 30]
    assert pixel(saved(image, transparency=1)) == [255, 255, 255]
    assert pixel(saved(image, transparency=b"\xff\x33")) == [206, 208, 210]
    assert pixel(saved(image, "GIF", transparency=1)) == [255, 255, 255]


@pytest.mark.parametrize(
    ("stored", "range16", "shown"),
    [
        (0, (0, 65535), 0),
        (100 * 257, (0, 65535), 100),
        (65535, (0, 65535), 255),
        (4095, (0, 65535), 16),
        (4095, (0, 4095), 255),
        (2048, (0, 4095), 128),
        (50, (100, 200), 0),
        (150, (100, 200), 128),
        (999, (100, 200), 255),
        (0, (-100, 100), 128),
    ],
)
@pytest.mark.parametrize("kind", ["png", "tiff", "tiff big-endian", "tiff 32-bit", "tiff float"])
def test_deep_grey_is_scaled_by_the_range(kind: str, stored: int, range16: tuple[int, int], shown: int) -> None:
    dtype = {"tiff big-endian": ">u2", "tiff 32-bit": "<i4", "tiff float": "<f4"}.get(kind, "<u2")
    image = Image.fromarray(np.full((4, 4), stored, dtype))
    data = saved(image, "PNG" if kind == "png" else "TIFF")
    assert pixel(data, ImageSpec(4, 4, 1, range16=range16)) == [shown]
    assert pixel(data, ImageSpec(4, 4, 3, range16=range16)) == [shown] * 3


def test_float_tiff_with_nan_and_infinity() -> None:
    values = np.array([[np.nan, np.inf], [-np.inf, 65535]], np.float32)
    pixels = decode(saved(Image.fromarray(values), "TIFF"), ImageSpec(2, 2, 1))
    assert pixels.tolist() == [[[0, 255], [0, 255]]]


def test_deep_colour_keeps_its_high_bytes_whatever_range16_says() -> None:
    spec = ImageSpec(4, 4, 3, range16=(0, 4095))
    assert pixel(png(4, 4, 16, 2, struct.pack(">3H", 0x0A01, 0x1402, 0x1E03) * 4), spec) == [10, 20, 30]
    assert pixel(png(4, 4, 16, 4, struct.pack(">2H", 0x6402, 0xFFFF) * 4), spec) == [100, 100, 100]
    assert pixel(png(4, 4, 16, 6, struct.pack(">4H", 0x0A01, 0x1402, 0x1E03, 0) * 4), spec) == [255, 255, 255]


def test_small_depths() -> None:
    assert pixel(png(4, 4, 2, 0, b"\x55"), GREY) == [85]
    assert pixel(png(4, 4, 4, 0, b"\x33\x33"), GREY) == [51]


# --- orientation and frames ---


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(form: str, orientation: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255, 0, 0
    upright[8:, :16] = 0, 255, 0
    upright[:8, 16:] = 0, 0, 255
    # How a camera stores it: the inverse of what the tag says a viewer must do (EXIF 2.32, tag 274).
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    data = saved(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **options)
    pixels = decode(data, ImageSpec(16, 32, 3))
    assert isinstance(pixels, np.ndarray)
    np.testing.assert_allclose(pixels.transpose(1, 2, 0), upright, atol=3)


def test_broken_exif_means_upright() -> None:
    image = noise(4, 4)
    pixels = decode(saved(image, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"), RGB)
    np.testing.assert_array_equal(pixels, np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("form", "options"),
    [("GIF", {"duration": 9}), ("WEBP", {"lossless": True, "duration": 9}), ("PNG", {"duration": 9}), ("TIFF", {})],
)
def test_first_frame(form: str, options: dict[str, object]) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((200, 10, 20), (0, 0, 255), (0, 255, 0))]
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert pixel(data) == [200, 10, 20]


# --- bad content ---


@pytest.mark.parametrize("form", module.FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_is_not_half_an_image(form: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = saved(noise(64, 64), form)
    assert isinstance(decode(data, RGB), np.ndarray)
    assert decode(data[: int(share * len(data))], RGB) in (Unreadable.damaged, Unreadable.unknown_format)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_the_fault_is_named() -> None:
    data = saved(noise(64, 64))
    assert decode(b"", RGB) is Unreadable.empty
    assert decode(data[:-200], RGB) is Unreadable.damaged
    assert decode(data[:200] + b"\0" * 50 + data[250:], RGB) is Unreadable.damaged
    for foreign in (b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"P6 1 1 255\n\1\2\3", b"hello" * 99):
        assert decode(foreign, RGB) is Unreadable.unknown_format
    assert decode(saved(noise(16, 16), "ICO"), RGB) is Unreadable.unknown_format
    assert decode(saved(noise(16, 16), "TGA"), RGB) is Unreadable.unknown_format


TEXT_BOMB = zlib.compress(bytes(100 * 2**20), 9)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"a\0\0" + TEXT_BOMB),
        (b"iTXt", b"a\0\1\0\0\0" + TEXT_BOMB),
        (b"iCCP", b"a\0\0" + TEXT_BOMB),
    ],
)
def test_text_bomb_is_not_inflated(chunk: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    largest = 0
    inflate = zlib.decompressobj

    class Watched:
        def __init__(self) -> None:
            self.inner = inflate()

        def decompress(self, data: bytes, most: int = 0) -> bytes:
            nonlocal largest
            plain = self.inner.decompress(data, most)
            largest = max(largest, len(plain))
            return plain

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    assert decode(png(4, 4, 8, 0, b"\7" * 4, chunk), RGB) is Unreadable.damaged
    assert 0 < largest <= 2**21


@pytest.mark.parametrize("side", [9_500, 14_000, 2**31 - 1])
def test_pixel_bomb(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just above the limit (Pillow: a warning), far above (an error), and absurd; also if the host lifted the limit."""
    data = png(side, side, 8, 0, b"\0")
    assert decode(data, RGB) is Unreadable.bomb
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(data, RGB) is Unreadable.bomb


def test_a_bomb_of_many_short_rows() -> None:
    assert decode(png(1, 2**18 + 1, 8, 0, b"\0"), RGB) is Unreadable.bomb


def test_out_of_memory_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", starve)
    assert decode(saved(noise(4, 4)), RGB) is Unreadable.crashed


def test_no_warning_escapes_and_filters_survive() -> None:
    trailing = saved(noise(64, 64), "TIFF")[:-3] + b"\xff"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        for data in (png(9_500, 9_500, 8, 0, b"\0"), trailing, b"II*\0" + b"\xff" * 64, b"RIFF0000WEBPVP8 "):
            decode(data, RGB)
        assert warnings.filters == before
    assert seen == []


SAMPLES = [saved(noise(12, 9), form) for form in module.FORMATS] + [
    saved(Image.fromarray(np.full((5, 7), 900, np.uint16)), "TIFF"),
    saved(Image.new("CMYK", (9, 9)), "JPEG", progressive=True),
    saved(Image.new("RGBA", (9, 9)), "WEBP", lossless=True),
]


def outcome_is_sound(data: bytes) -> None:
    for spec in (ImageSpec(5, 3, 1, "pad"), ImageSpec(3, 5, 3)):
        outcome = decode(data, spec)
        if isinstance(outcome, np.ndarray):
            assert outcome.shape == spec.shape
            assert outcome.dtype == np.uint8
        else:
            assert isinstance(outcome, Unreadable)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([b"", *(sample[:12] for sample in SAMPLES)]))
@example(b"\0" * 40, b"GIF89a")
def test_random_bytes_never_raise(data: bytes, magic: bytes) -> None:
    outcome_is_sound(magic + data)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(SAMPLES),
    st.lists(st.tuples(st.integers(0, 500), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6),
    st.none() | st.integers(0, 500),
)
def test_mutated_images_never_raise(data: bytes, edits: list[tuple[int, bytes]], end: int | None) -> None:
    mutated = bytearray(data)
    for place, replacement in edits:
        mutated[place : place + len(replacement)] = replacement
    outcome_is_sound(bytes(mutated[:end]))


# --- reading ---


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "file.png").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    return root


def test_reads_files_below_the_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    name = os.fsdecode(b"a/\xff\xfe.png")
    (root / name).write_bytes(b"bytes")
    assert read_bytes(root, "a/file.png") == b"inside"
    assert read_bytes(tmp_path / "link", "a/file.png") == b"inside"
    assert read_bytes(root, name) == b"bytes"


def test_what_is_not_a_file_is_never_opened_for_good(root: Path, tmp_path: Path) -> None:
    os.mkfifo(root / "pipe.png")
    (root / "link.png").symlink_to(tmp_path / "secret")
    (root / "inner.png").symlink_to(root / "a" / "file.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "loop").symlink_to(root)
    (root / "folder.png").mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(root / "socket.png"))
    server.close()
    handles = len(os.listdir("/proc/self/fd"))
    names = ["pipe.png", "link.png", "inner.png", "folder/secret", "loop/a/file.png", "folder.png", "socket.png"]
    names += ["../secret", "a/../../secret", "a/../a/file.png", "./a/file.png", str(tmp_path / "secret"), "", "/", "a"]
    names += ["a//file.png", "a/file.png/", "a/file.png/x", "gone.png", "a\0.png", "\ud800.png", "x" * 9_999]
    for name in names:
        assert read_bytes(root, name) is Unreadable.not_a_file, name
    assert read_bytes(root / "gone", "a/file.png") is Unreadable.not_a_file
    assert len(os.listdir("/proc/self/fd")) == handles


def test_size_limits(root: Path) -> None:
    (root / "empty.png").write_bytes(b"")
    assert read_bytes(root, "empty.png") is Unreadable.empty
    assert read_bytes(root, "a/file.png", limit=6) == b"inside"
    assert read_bytes(root, "a/file.png", limit=5) is Unreadable.too_large
    with open(root / "sparse.png", "wb") as file:
        file.truncate(module.MAX_BYTES + 1)
    assert read_bytes(root, "sparse.png") is Unreadable.too_large


def test_a_refusing_system_is_a_finding(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", "private-name.png")

    monkeypatch.setattr(module.os, "open", refuse)
    assert read_bytes(root, "a/file.png") is Unreadable.no_access


def test_open_beneath_closes_what_it_opened(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    os.close(open_beneath(root, ["a"]))
    with pytest.raises(FileNotFoundError):
        open_beneath(root, ["a", "gone", "x"])
    with pytest.raises(ValueError, match="null"):
        open_beneath(root, ["a", "b\0"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_decode_file(root: Path) -> None:
    data = saved(Image.new("RGB", (4, 4), (1, 2, 3)))
    (root / "wrong.jpg").write_bytes(data)
    decoded = decode_file(root, "wrong.jpg", RGB, KEY)
    assert decoded.fault is None
    assert decoded.pixels[:, 0, 0].tolist() == [1, 2, 3]
    assert decoded.digest == hashlib.blake2b(data, key=KEY, digest_size=16).digest()
    broken = decode_file(root, "a/file.png", RGB, KEY)
    assert (broken.digest, broken.pixels, broken.fault) == (bytes(16), None, Unreadable.unknown_format)
    assert decode_file(root, "gone", RGB, KEY).fault is Unreadable.not_a_file
    assert "1" not in repr(decoded).partition(" at ")[0]


def test_importing_brings_neither_torch_nor_other_decoders() -> None:
    code = (
        "import sys, sfumato.data._decode_worker; from PIL import Image; from sfumato.data.decode import *;"
        "decode(b'hello', ImageSpec(4, 4, 3)); print(sorted(Image.OPEN), 'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    out = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert "False" in out
    assert "EPS" not in out
    assert "PSD" not in out
