"""The contact sheet: a tidy grid of synthetic images, one row a class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sfumato.errors import UserError

PAPER, INK = (255, 255, 255), (40, 40, 46)
GAP = 3  # pixels between images
MARGIN = 12
LONGEST_NAME = 24  # characters


def contact_sheet(
    pixels: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    rows: int = 10,
    columns: int = 10,
    scale: float = 2.0,
    classes: Sequence[str] | None = None,
) -> Image.Image:
    """Draws the first images of each class; nothing is picked by hand.

    Args:
        pixels: uint8 `(N, C, H, W)`, C 1 or 3.
        labels: class of each image, `(N,)`. Then each row holds one class, the first `rows` classes in order; without
            labels the first `rows * columns` images fill the grid.
        rows, columns: most rows and columns of the grid.
        scale: size of an image on the sheet relative to its own. Enlarged images keep hard pixel edges.
        classes: names by label, written beside the rows.

    Raises:
        UserError: an array of another form, or a grid or scale that is not positive.
    """
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3) or pixels.dtype != np.uint8 or not len(pixels):
        raise UserError("A contact sheet is drawn from at least one image: a uint8 array (N, 1 or 3, height, width).")
    if rows < 1 or columns < 1 or not scale > 0:
        raise UserError(f"The grid is {rows} x {columns} at scale {scale}; all three must be positive.")
    lines = _lines(len(pixels), labels, rows, columns)
    names = [_short(classes[label]) if classes is not None and label is not None else "" for label, _ in lines]
    width, height = (max(1, round(side * scale)) for side in (pixels.shape[3], pixels.shape[2]))
    font = ImageFont.load_default(max(11, min(16, height // 3)))
    left = MARGIN + (max(round(font.getlength(name)) for name in names) + MARGIN if any(names) else 0)
    across = max(len(chosen) for _, chosen in lines)
    size = (left + across * (width + GAP) - GAP + MARGIN, len(lines) * (height + GAP) - GAP + 2 * MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    for row, ((_, chosen), name) in enumerate(zip(lines, names, strict=True)):
        top = MARGIN + row * (height + GAP)
        draw.text((left - MARGIN, top + height / 2), name, INK, font, anchor="rm")
        for column, index in enumerate(chosen):
            image = Image.fromarray(pixels[index].transpose(1, 2, 0).squeeze()).convert("RGB")
            sheet.paste(image.resize((width, height), how), (left + column * (width + GAP), top))
    return sheet


def _lines(count: int, labels: np.ndarray | None, rows: int, columns: int) -> list[tuple[int | None, list[int]]]:
    """Label and image indices of each row of the grid."""
    if labels is None:
        indices = list(range(min(count, rows * columns)))
        return [(None, indices[start : start + columns]) for start in range(0, len(indices), columns)]
    present = [int(label) for label in np.unique(labels)][:rows]
    return [(label, [int(index) for index in np.flatnonzero(labels == label)[:columns]]) for label in present]


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"


def neighbours_sheet(rows: Sequence[tuple[str, np.ndarray]], scale: float) -> Image.Image:
    """Draws images below each other that belong together: one row a set, one column a synthetic image and its nearest.

    Args:
        rows: name and images of each row, uint8 `(N, C, H, W)`, all of one form.
        scale: as of `contact_sheet`.

    Raises:
        UserError: as `contact_sheet`.
    """
    names, images = zip(*rows, strict=True)
    count = len(images[0])
    labels = np.repeat(np.arange(len(rows)), count)
    return contact_sheet(
        np.concatenate(images),
        labels,
        rows=len(rows),
        columns=count,
        scale=scale,
        classes=[str(name) for name in names],
    )
