"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 60,000 + 10,000 grey images, 28 x 28, of 10 kinds of clothes."""

from __future__ import annotations

import hashlib
import io
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data.collections import _debian
from sfumato.data.collections._archives import deb_members
from sfumato.data.collections._debian import Unavailable
from sfumato.data.collections._folder import Collection
from sfumato.errors import UserError

# File name, bytes inside, SHA-256 of what is inside. Distributors compress anew, so the content is what is pinned.
FILES = {
    "train-images-idx3-ubyte.gz": (47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels-idx1-ubyte.gz": (60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte.gz": (7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels-idx1-ubyte.gz": (10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}
CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
LICENSE = """\
Fashion-MNIST, https://github.com/zalandoresearch/fashion-mnist
Copyright 2017 Zalando SE, https://tech.zalando.com

The MIT License (MIT)

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

MAX_DOWNLOAD = 2**27  # bytes


def write(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes `train/CLASS/00000.png`, `test/CLASS/00000.png` and `LICENSE`.

    From the Debian package, installed or downloaded by apt, or else from the authors' address. Whatever the source, the
    content must have the pinned checksums. `archives` is not used: what is pinned is the content, not a package.
    """
    files = _files()
    written = 0
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(files[f"{prefix}-images-idx3-ubyte.gz"])
        labels = read_idx(files[f"{prefix}-labels-idx1-ubyte.gz"])
        for label in CLASSES:
            (folder / split / label).mkdir(parents=True)
        for index, (image, label_number) in enumerate(zip(images, labels, strict=True)):
            png = io.BytesIO()  # Pillow is twice as fast with a buffer as with a path
            Image.fromarray(image).save(png, "PNG")
            (folder / split / CLASSES[label_number] / f"{index:05}.png").write_bytes(png.getvalue())
            written += 1
            progress(written)
    (folder / "LICENSE").write_text(LICENSE)


def read_idx(data: bytes) -> np.ndarray:
    """An array of unsigned bytes in LeCun's IDX format, of any number of dimensions; read-only.

    Raises:
        ValueError: not IDX, not of bytes, or of another length than its header says.
    """
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError("not an IDX file of unsigned bytes")
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, 4).astype(int) if len(data) >= 4 + 4 * dimensions else ()
    if len(shape) != dimensions or len(data) != 4 + 4 * dimensions + np.prod(shape, dtype=object):
        raise ValueError("the length of the IDX file is not what its header says")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def _files() -> dict[str, bytes]:
    """The four files, decompressed and checked, from the first source that has them."""
    reasons = []
    for source in (_installed, _from_apt, _from_authors):
        try:
            return _checked(source())
        except Unavailable as reason:
            reasons.append(str(reason))
    raise UserError(
        f"Fashion-MNIST cannot be fetched: {'; '.join(reasons)}. Connect this machine to the internet or to a Debian "
        f"mirror, or install the Debian package {PACKAGE}, and try again."
    )


def _checked(files: Mapping[str, bytes]) -> dict[str, bytes]:
    checked = {}
    for name, (size, sha256) in FILES.items():
        try:
            data = zlib.decompressobj(wbits=31).decompress(files[name], size + 1)
        except (KeyError, zlib.error):
            data = b""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise Unavailable(f"what was found as {name} is not the file known by that name")
        checked[name] = data
    return checked


def _installed() -> dict[str, bytes]:
    """From the installed Debian package."""
    try:
        return {name: (INSTALLED / name).read_bytes() for name in FILES}
    except OSError:
        raise Unavailable(f"the package {PACKAGE} is not installed") from None


def _from_apt() -> dict[str, bytes]:
    """From the Debian package, downloaded by apt."""
    with tempfile.TemporaryDirectory(prefix="sfumato-apt-") as folder:
        package = _debian.apt_download([PACKAGE], Path(folder)).get(PACKAGE)
        if package is None or package.stat().st_size > MAX_DOWNLOAD:
            raise Unavailable(f"apt-get delivers no package {PACKAGE}")
        try:
            with package.open("rb") as file:
                members = deb_members(file, lambda name: MAX_DOWNLOAD if name.rpartition("/")[2] in FILES else 0)
                return {name.rpartition("/")[2]: data for name, data in members if data is not None}
        except ValueError as error:
            raise Unavailable(f"apt-get delivers {error}") from error


def _from_authors() -> dict[str, bytes]:
    """From the address that the data set's authors give."""
    files = {}
    for name in FILES:
        try:
            with urllib.request.urlopen(ADDRESS + name, timeout=30) as answer:
                files[name] = answer.read(MAX_DOWNLOAD)
        except (urllib.error.URLError, OSError, ValueError):
            raise Unavailable("its authors' server cannot be reached") from None
    return files


COLLECTION = Collection(
    "fashion-mnist", "70,000 grey pictures of clothes, 28 x 28, in train and test", "MIT", 70_000, 30_900_652, write
)
