"""Named public image sets, fetched, checked against pinned checksums, and laid out as image folders."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data._staging import DONE, new_folder, seal
from sfumato.errors import UserError

NAMES = ("fashion-mnist",)

# File name, bytes inside, SHA-256 of what is inside. Distributors compress anew, so the content is what is pinned.
FASHION_MNIST = {
    "train-images-idx3-ubyte.gz": (47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels-idx1-ubyte.gz": (60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte.gz": (7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels-idx1-ubyte.gz": (10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}
FASHION_MNIST_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
FASHION_MNIST_PACKAGE = "dataset-fashion-mnist"
FASHION_MNIST_INSTALLED = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST_LICENSE = """\
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
TIMEOUT = 600  # seconds for one call of apt-get
# Everything apt writes goes to a folder of ours, so neither root nor the machine's package lists are needed; which
# archives to trust is read from the machine. The machine's hooks are not run: they would tidy the machine's own caches.
APT_CONFIGURATION = """\
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
APT::Get::List-Cleanup "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
"""


class _Unavailable(Exception):  # noqa: N818 - one source has nothing, the next one is asked
    """Why a source does not deliver; part of the error when none does."""


def fetch(name: str, out: Path, progress: Callable[[int], None] | None = None) -> Path:
    """Puts a public image set into `out` as `train/CLASS/00000.png` and `test/CLASS/00000.png`.

    Fashion-MNIST (Xiao, Rasul and Vollgraf 2017; 60,000 + 10,000 grey images, 28 x 28, 10 classes) comes from the
    Debian package `dataset-fashion-mnist`, installed or downloaded by apt without root, or else from its authors'
    address. Whatever the source, the content must have the pinned checksums. A folder that an earlier call finished is
    left alone.

    Args:
        name: one of `NAMES`.
        out: a new or empty folder, or one that an earlier call finished.
        progress: told the number of images written.

    Returns:
        `out`.

    Raises:
        UserError: unknown name, occupied folder, or no source can be reached.
    """
    if name not in NAMES:
        raise UserError(f"There is no data set called {name!r}; known are: {', '.join(NAMES)}.")
    out = Path(out)
    try:
        if (out / DONE).read_text() == f"{name}\n":
            return out
    except (OSError, UnicodeDecodeError):
        pass
    with new_folder(out) as folder:
        files = _fashion_mnist_files()
        written = 0
        for split, prefix in (("train", "train"), ("test", "t10k")):
            images = read_idx(files[f"{prefix}-images-idx3-ubyte.gz"])
            labels = read_idx(files[f"{prefix}-labels-idx1-ubyte.gz"])
            for label in FASHION_MNIST_CLASSES:
                (folder / split / label).mkdir(parents=True)
            for index, (image, label_number) in enumerate(zip(images, labels, strict=True)):
                png = io.BytesIO()  # Pillow is twice as fast with a buffer as with a path
                Image.fromarray(image).save(png, "PNG")
                (folder / split / FASHION_MNIST_CLASSES[label_number] / f"{index:05}.png").write_bytes(png.getvalue())
                written += 1
                if progress is not None:
                    progress(written)
        (folder / "LICENSE").write_text(FASHION_MNIST_LICENSE)
        seal(folder, f"{name}\n")
    return out


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


def read_deb(package: bytes, names: Mapping[str, int]) -> dict[str, bytes]:
    """Files out of a Debian package, read in memory; nothing is unpacked, no script of the package is run.

    A package is an `ar` archive (deb(5)) whose member `data.tar.*` holds the files.

    Args:
        package: content of the `.deb`.
        names: names without folders of the files wanted, and the most bytes each may have.

    Returns:
        Those of the files that are there and not larger.

    Raises:
        ValueError: not a package, or compressed in a way this Python cannot read.
    """
    if not package.startswith(b"!<arch>\n"):
        raise ValueError("not a Debian package")
    place = 8
    while place + 60 <= len(package):
        header = package[place : place + 60]  # name 16, date 12, owner 6, group 6, mode 8, size 10, end 2
        if not re.fullmatch(rb"[0-9]+ *", header[48:58]):
            raise ValueError("a damaged Debian package")
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return _read_tar(package[place + 60 : place + 60 + size], names)
        place += 60 + size + size % 2
    raise ValueError("a Debian package without data")


def _read_tar(archive: bytes, names: Mapping[str, int]) -> dict[str, bytes]:
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                file = tar.extractfile(member) if member.isreg() and member.size <= names.get(name, -1) else None
                if file is not None:
                    found[name] = file.read()
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise ValueError("a Debian package whose data cannot be read") from error
    return found


def _fashion_mnist_files() -> dict[str, bytes]:
    """The four files, decompressed and checked, from the first source that has them."""
    reasons = []
    for source in (_installed, _from_apt, _from_authors):
        try:
            return _checked(source())
        except _Unavailable as reason:
            reasons.append(str(reason))
    raise UserError(
        f"Fashion-MNIST cannot be fetched: {'; '.join(reasons)}. Connect this machine to the internet or to a Debian "
        f"mirror, or install the Debian package {FASHION_MNIST_PACKAGE}, and try again."
    )


def _checked(files: Mapping[str, bytes]) -> dict[str, bytes]:
    checked = {}
    for name, (size, sha256) in FASHION_MNIST.items():
        try:
            data = zlib.decompressobj(wbits=31).decompress(files[name], size + 1)
        except (KeyError, zlib.error):
            data = b""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise _Unavailable(f"what was found as {name} is not the file known by that name")
        checked[name] = data
    return checked


def _installed() -> dict[str, bytes]:
    """From the installed Debian package."""
    try:
        return {name: (FASHION_MNIST_INSTALLED / name).read_bytes() for name in FASHION_MNIST}
    except OSError:
        raise _Unavailable(f"the package {FASHION_MNIST_PACKAGE} is not installed") from None


def _from_apt() -> dict[str, bytes]:
    """From the Debian package, downloaded by apt, which checks the archive's signature."""
    apt = shutil.which("apt-get")
    if apt is None:
        raise _Unavailable("there is no apt-get here")
    with tempfile.TemporaryDirectory(prefix="sfumato-apt-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # started by root, apt downloads as another user
        for part in ("state/lists/partial", "cache/archives/partial", "log", "package"):
            (folder / part).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "apt.conf").write_text(APT_CONFIGURATION.format(folder=folder))
        for command in (["update"], ["download", FASHION_MNIST_PACKAGE]):
            _run([apt, "-q", "-c", str(folder / "apt.conf"), *command], folder / "package")
        packages = list((folder / "package").glob("*.deb"))
        if len(packages) != 1 or packages[0].stat().st_size > MAX_DOWNLOAD:
            raise _Unavailable(f"apt-get delivers no package {FASHION_MNIST_PACKAGE}")
        try:
            return read_deb(packages[0].read_bytes(), dict.fromkeys(FASHION_MNIST, MAX_DOWNLOAD))
        except ValueError as error:
            raise _Unavailable(f"apt-get delivers {error}") from error


def _run(command: list[str], folder: Path) -> None:
    """Runs apt-get silently. Its exit code says little (one dead mirror of many is an error): the package decides."""
    quiet = subprocess.DEVNULL
    environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        subprocess.run(
            command, cwd=folder, env=environment, stdin=quiet, stdout=quiet, stderr=quiet, timeout=TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        raise _Unavailable("apt-get does not run or hangs") from None


def _from_authors() -> dict[str, bytes]:
    """From the address that the data set's authors give."""
    files = {}
    for name in FASHION_MNIST:
        try:
            with urllib.request.urlopen(FASHION_MNIST_ADDRESS + name, timeout=30) as answer:
                files[name] = answer.read(MAX_DOWNLOAD)
        except (urllib.error.URLError, OSError, ValueError):
            raise _Unavailable("its authors' server cannot be reached") from None
    return files
