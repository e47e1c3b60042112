"""Named public image sets, fetched, checked against pinned checksums, and laid out as image folders."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from sfumato.data._staging import DONE, new_folder, seal
from sfumato.data.collections import (
    cutouts,
    drawings,
    emoji,
    fashion_mnist,
    furniture,
    glyphs,
    mnist5k,
    openclipart,
    shapes,
    tuxpaint,
)
from sfumato.data.collections._folder import Collection
from sfumato.errors import UserError

COLLECTIONS: dict[str, Collection] = {
    collection.name: collection
    for collection in (
        fashion_mnist.COLLECTION,
        mnist5k.COLLECTION,
        glyphs.COLLECTION,
        shapes.COLLECTION,
        openclipart.COLLECTION,
        cutouts.COLLECTION,
        emoji.NOTO,
        emoji.OPENMOJI,
        tuxpaint.COLLECTION,
        furniture.COLLECTION,
        emoji.TWEMOJI,
        drawings.COLLECTION,
    )
}
NAMES = tuple(COLLECTIONS)


def fetch(name: str, out: Path, progress: Callable[[int], None] | None = None, archives: Path | None = None) -> Path:
    """Puts a public image set into `out`: class folders of PNG, `LICENSE`, and `DONE` when it is whole.

    All sets but Fashion-MNIST, which has `train/CLASS/` and `test/CLASS/`, also have a `metadata.jsonl` (file_name,
    label, text, source, licence, author, tags) and a `SOURCE.json` (packages with their hashes, counts). A folder that
    an earlier call finished is left alone.

    Args:
        name: one of `NAMES`.
        out: a new or empty folder, or one that an earlier call finished.
        progress: told the number of images written.
        archives: folder that keeps the downloaded packages; what it has is not downloaded again. By default they are
            thrown away.

    Returns:
        `out`.

    Raises:
        UserError: unknown name, occupied folder, no source can be reached, or what it delivers is not genuine.
    """
    if name not in COLLECTIONS:
        raise UserError(f"There is no data set called {name!r}; known are: {', '.join(NAMES)}.")
    out = Path(out)
    try:
        if (out / DONE).read_text() == f"{name}\n":
            return out
    except (OSError, UnicodeDecodeError):
        pass
    with new_folder(out) as folder:
        with tempfile.TemporaryDirectory(prefix=".archives-", dir=folder) as temporary:
            kept = Path(temporary) if archives is None else Path(archives).absolute()
            try:
                COLLECTIONS[name].write(folder, kept, progress or (lambda _: None))
            except ValueError as error:
                raise UserError(f"The data set {name} cannot be read: its source is {error}.") from error
        seal(folder, f"{name}\n")
    return out
