"""The commands `sfumato draw` and `sfumato caption`: pictures from words and words from pictures, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from sfumato.errors import UserError

SIDE = 256  # pixels that a picture is brought to before it is looked at
FACTOR = 4
UPSCALER = "realesrgan-x4plus-anime"

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output and nothing else there.")]


def draw(
    texts: Annotated[list[str], typer.Argument(help="What to draw, each in quotation marks.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file to write.")] = Path("sheet.png"),
    each: Annotated[int, typer.Option(min=1, max=100, help="Drawings of each text.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other drawings.")] = 1,
    fast: Annotated[bool, typer.Option("--fast", help="Look the drawing up instead of drawing it.")] = False,
    upscale: Annotated[int, typer.Option(help="4 enlarges the drawings with Real-ESRGAN; 1 does not.")] = 1,
    as_json: Json = False,
) -> None:
    """Draw simple pictures from words, on this machine: a sheet with one row a text, or one picture alone.

    The model learned from public clip art and may draw a picture that it has seen there. Run
    `sfumato models pull offline` once before.

    Examples:

        sfumato draw "a green heart" "a purple cat" -o sheet.png

        sfumato draw "a sailing boat" -o boat.png --each 1 --upscale 4
    """
    if upscale not in (1, FACTOR):
        raise UserError(f"--upscale {upscale} is not possible; give {FACTOR}, or leave it out.")
    if out.suffix.lower() != ".png":
        raise UserError(f"{out} is not a PNG file; give a name that ends with .png.")
    if not out.parent.is_dir():
        raise UserError(f"{out.parent} is not a folder; make it first.")
    if blank := [text for text in texts if not text.strip()]:
        raise UserError(f"{blank[0]!r} says nothing to draw.")

    import numpy as np
    from PIL import Image

    from sfumato.pretrained import zoo
    from sfumato.pretrained.clipart import ClipartGenerator
    from sfumato.report.sheet import contact_sheet

    upscaler = zoo.load_upscaler(UPSCALER) if upscale == FACTOR else None
    generator = cast(ClipartGenerator, zoo.load("clipart"))
    images = generator.generate([text for text in texts for _ in range(each)], seed, fast=fast)
    if upscaler is not None:
        images = upscaler.upscale(images)
    if len(images) == 1:
        picture = Image.fromarray(np.ascontiguousarray(images[0].transpose(1, 2, 0)))
    else:
        labels = np.repeat(np.arange(len(texts)), each)
        scale = 1.0 if upscaler else 2.0
        picture = contact_sheet(images, labels, rows=len(texts), columns=each, scale=scale, classes=texts)
    try:
        picture.save(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror or error}).") from error
    if as_json:
        facts = {"file": str(out), "texts": texts, "each": each, "seed": seed, "model": generator.identity.to_json()}
        typer.echo(json.dumps(facts))
    else:
        typer.echo(f"{len(images)} drawing{'s' * (len(images) > 1)} in {out}.")


def caption(
    images: Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Say what simple pictures show, on this machine: a colour, a noun and two more words.

    The model learned from clip art and emoji; of photographs it says little that is true. Run
    `sfumato models pull offline` once before.

    Examples:

        sfumato caption heart.png cat.png

        sfumato caption *.png --json
    """
    import numpy as np

    from sfumato.data.decode import ImageSpec, Unreadable, decode, read_bytes
    from sfumato.pretrained import zoo
    from sfumato.pretrained.captioner import ClipartCaptioner

    spec = ImageSpec(SIDE, SIDE, 3, fit="pad")
    pixels = []
    for path in images:
        data = read_bytes(path.absolute().parent, path.name)
        found = data if isinstance(data, Unreadable) else decode(data, spec)
        if isinstance(found, Unreadable):
            raise UserError(f"{path} is no image that can be read: {found.value.replace('_', ' ')}.")
        pixels.append(found)
    captioner = cast(ClipartCaptioner, zoo.load("captioner"))
    described = captioner.describe(np.stack(pixels))
    if as_json:
        rows = [
            {"file": str(path), "caption": one.caption, "colour": one.colour, "words": list(one.words)}
            for path, one in zip(images, described, strict=True)
        ]
        typer.echo(json.dumps(rows, indent=2))
        return
    for path, one in zip(images, described, strict=True):
        typer.echo(f"{path}: {one.caption}" if len(images) > 1 else one.caption)
