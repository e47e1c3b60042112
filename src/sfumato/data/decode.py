"""Any file in, one pixel array of a fixed public shape out, or a reason why not.

The rules here are constants: an image's pixels depend on its own bytes and on `ImageSpec`, never on another file. A bad
file is a finding (`Unreadable`), not the end of a run, and nothing about it reaches an exception or a log. Files come
from strangers and may hang or crash a decoder: `decode_pool.DecodePool` runs this code where that does no harm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import errno
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np

# The plugins are imported by name because Image.open() would otherwise import every decoder Pillow has.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from sfumato.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 89_478_485  # Pillow's own default, held even where the surrounding program has lifted Pillow's
MAX_EXTENT = 2**18  # pixels; Pillow spends memory on every row, however short
MAX_NAME = 4096  # bytes of a relative path
MAX_SIDE = 4096
BACKGROUND = 255  # white: under transparent pixels and around padded images
DIGEST_SIZE = 16
REDUCING_GAP = 2  # box-reduce to twice the target size, then Lanczos: fast, and bounded memory at any aspect ratio

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(enum.StrEnum):
    """Why a file contributes nothing. The values are for the internal intake report."""

    empty = "empty"  # no bytes at all
    not_a_file = "not_a_file"  # gone, a link, a folder, a pipe, a device, or a path that leaves the folder
    no_access = "no_access"  # the system refuses to read it
    too_large = "too_large"  # more than MAX_BYTES
    unknown_format = "unknown_format"  # content of none of FORMATS, whatever the name says
    bomb = "bomb"  # more than MAX_PIXELS, or longer than MAX_EXTENT
    damaged = "damaged"  # ends early or is broken inside
    timed_out = "timed_out"  # took longer than the pool allows, twice
    crashed = "crashed"  # ended its process or ran out of memory, twice


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """The public shape every image is brought to.

    Attributes:
        height, width: target size in pixels, 1 to MAX_SIDE.
        channels: 1 (grey) or 3 (RGB).
        fit: "crop" cuts the largest centred area of the target's aspect ratio, "pad" keeps the whole image and fills up
            with BACKGROUND, "stretch" ignores the aspect ratio.
        range16: the values that become black and white in files of more than 8 bits per grey sample (16-bit, 32-bit
            and float greyscale). Declared, never measured on the data; values outside are clipped. Deep *colour*
            PNG and TIFF files and 16-bit grey with alpha are not affected: Pillow keeps their high bytes,
            which is the range (0, 65535).

    Raises:
        UserError: a value is outside what is allowed.
    """

    height: int
    width: int
    channels: int
    fit: Literal["crop", "pad", "stretch"] = "crop"
    range16: tuple[int, int] = (0, 65535)

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if not is_integer(side := getattr(self, name)) or not 1 <= side <= MAX_SIDE:
                raise UserError(f"The image {name} is {side!r}; give a whole number of pixels from 1 to {MAX_SIDE}.")
        if not is_integer(self.channels) or self.channels not in (1, 3):
            raise UserError(f"The number of channels is {self.channels!r}; give 1 for grey or 3 for RGB.")
        if self.fit not in ("crop", "pad", "stretch"):
            raise UserError(f"The fit is {self.fit!r}; give 'crop', 'pad' or 'stretch'.")
        ends = self.range16
        whole = isinstance(ends, tuple) and len(ends) == 2 and all(map(is_integer, ends))
        if not whole or not -32768 <= ends[0] < ends[1] <= 65535:
            raise UserError(f"range16 is {ends!r}; give two whole numbers, -32768 <= black < white <= 65535.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a decoded array: (channels, height, width)."""
        return self.channels, self.height, self.width


def is_integer(value: object) -> bool:
    """A whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True, slots=True, repr=False, eq=False)
class Decoded:
    """What became of one file: pixels and digest, or a fault.

    Attributes:
        digest: keyed BLAKE2b of the file's bytes, 16 bytes; all zeros if there is a fault.
        pixels: uint8, (channels, height, width), writable; None if there is a fault.
        fault: why there are no pixels, or None.
    """

    digest: bytes
    pixels: np.ndarray | None
    fault: Unreadable | None


def open_beneath(root: Path, parts: Sequence[str], flags: int = os.O_RDONLY | os.O_DIRECTORY) -> int:
    """Opens `root/part/part/...` without ever following a link below `root`; returns a file descriptor.

    Without parts it opens `root` itself, which may be a link. Descending folder by folder leaves no moment in which a
    checked folder could be exchanged for a link.

    Raises:
        OSError: a part is missing, a link, not a folder, or may not be read.
        ValueError: a part holds a NUL or cannot be a file name of this system.
    """
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for depth, part in enumerate(parts, 1):
        try:
            if part in ("", ".", ".."):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            how = flags if depth == len(parts) else os.O_RDONLY | os.O_DIRECTORY
            inner = os.open(part, how | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
        finally:
            os.close(handle)
        handle = inner
    return handle


def open_regular(root: Path, parts: Sequence[str]) -> BinaryIO:
    """Opens a regular file beneath `root` for reading, without ever waiting at a pipe.

    Raises:
        OSError, ValueError: as `open_beneath`, and OSError for anything that is not a regular file.
    """
    handle = open_beneath(root, parts, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
    return open(handle, "rb")


def read_bytes(root: Path, relative: str, limit: int = MAX_BYTES) -> bytes | Unreadable:
    """Reads the regular file `root/relative`; never blocks on a pipe, never leaves `root`, never raises.

    Args:
        root: an existing folder.
        relative: POSIX path below it; undecodable bytes as surrogate escapes.
        limit: largest accepted size in bytes.
    """
    if len(relative) > MAX_NAME:
        return Unreadable.not_a_file
    try:
        with open_regular(root, relative.split("/")) as file:
            size = os.fstat(file.fileno()).st_size
            return Unreadable.too_large if size > limit else file.read(size) or Unreadable.empty
    except OSError as error:
        absent = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG)
        return Unreadable.not_a_file if error.errno in absent else Unreadable.no_access
    except ValueError:
        return Unreadable.not_a_file


def decode(data: bytes, spec: ImageSpec) -> np.ndarray | Unreadable:
    """Decodes an image file's bytes by content, whatever the file was called.

    The first frame of an animation or a multi-page file is taken, turned upright by its EXIF orientation, reduced to 8
    bits (`ImageSpec.range16`), laid on a white ground where transparent, converted to grey or sRGB (ICC profiles are
    ignored) and brought to size. An image that has the target size already is not resampled. All metadata is dropped.

    Returns:
        uint8 array (channels, height, width), or the reason why there is none. Never raises on any `data`.
    """
    if not data:
        return Unreadable.empty
    try:
        with _strict_pillow(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_EXTENT:
                return Unreadable.bomb
            # libjpeg halves for free while decoding; other formats ignore this.
            side = REDUCING_GAP * max(spec.height, spec.width)
            image.draft(None, (side, side))
            image.load()
            pixels = np.array(_fit(_plain(_upright(image), spec), spec))
            return np.ascontiguousarray(pixels.reshape(spec.height, spec.width, spec.channels).transpose(2, 0, 1))
    except MemoryError:
        return Unreadable.crashed
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Unreadable.bomb
    except UnidentifiedImageError:
        return Unreadable.unknown_format
    except Exception:  # Pillow's decoders raise almost any type on broken files
        return Unreadable.damaged


@contextlib.contextmanager
def _strict_pillow() -> Iterator[None]:
    """No half-decoded images, no bombs, and no warning that tells of a private file, whatever the host program set."""
    lenient = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation (Pillow has done it already for TIFF); an unreadable EXIF block means upright."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _plain(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Brings any mode to "L" or "RGB"."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        black, white = spec.range16
        with np.errstate(all="ignore"):
            values = np.asarray(image).astype(np.float32)
            values -= black
            values *= 255 / (white - black)
            np.nan_to_num(values, copy=False, nan=0.0)
            np.clip(np.rint(values, out=values), 0, 255, out=values)
        image = Image.fromarray(values.astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, (BACKGROUND,) * 3)
        ground.paste(image, mask=image)
        image = ground
    elif image.mode != "L":
        image = image.convert("RGB")
    return image.convert("L" if spec.channels == 1 else "RGB")


def _fit(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Brings an "L" or "RGB" image to the target size."""
    size = width, height = spec.width, spec.height
    if image.size == size:
        return image
    if spec.fit == "crop":
        kept_width = min(image.width, max(1, image.height * width // height))
        kept_height = min(image.height, max(1, image.width * height // width))
        left, top = (image.width - kept_width) // 2, (image.height - kept_height) // 2
        image = image.crop((left, top, left + kept_width, top + kept_height))
    elif spec.fit == "pad":
        shown_width = min(width, max(1, image.width * height // image.height))
        shown_height = min(height, max(1, image.height * width // image.width))
        left, top = (width - shown_width) // 2, (height - shown_height) // 2
        ground = Image.new(image.mode, size, BACKGROUND if image.mode == "L" else (BACKGROUND,) * 3)
        ground.paste(_resize(image, (shown_width, shown_height)), (left, top))
        return ground
    return _resize(image, size)


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)


def decode_file(root: Path, relative: str, spec: ImageSpec, key: bytes) -> Decoded:
    """Reads, digests and decodes one file in this process. Never raises on account of the file."""
    data = read_bytes(root, relative)
    pixels = data if isinstance(data, Unreadable) else decode(data, spec)
    if isinstance(pixels, Unreadable):
        return nothing(pixels)
    return Decoded(hashlib.blake2b(cast(bytes, data), digest_size=DIGEST_SIZE, key=key).digest(), pixels, None)


def nothing(fault: Unreadable) -> Decoded:
    """What becomes of a file that cannot be used."""
    return Decoded(bytes(DIGEST_SIZE), None, fault)
