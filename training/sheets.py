"""Draws the sample sheets of the generator's card: four drawings of each text, nothing picked by hand.

python training/sheets.py [--weights FOLDER]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from sfumato.pretrained.clipart import ClipartGenerator

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))
from offline_pair import EDITS, PROMPTS, SEED  # noqa: E402

EACH, SIDE, GAP, NAME, ROWS = 4, 64, 4, 165, 12


def sheet(generator: ClipartGenerator, texts: tuple[str, ...]) -> Image.Image:
    """Two columns of texts, each with its drawings."""
    drawn = generator.generate([text for text in texts for _ in range(EACH)], SEED).transpose(0, 2, 3, 1)
    width = NAME + EACH * (SIDE + GAP) + 10
    page = Image.new("RGB", (width * -(-len(texts) // ROWS), ROWS * (SIDE + GAP)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=15)
    for number, text in enumerate(texts):
        left, top = number // ROWS * width, number % ROWS * (SIDE + GAP)
        pen.text((left + NAME - 8, top + SIDE // 2), text, fill="black", font=font, anchor="rm")
        for place in range(EACH):
            page.paste(Image.fromarray(drawn[EACH * number + place]), (left + NAME + place * (SIDE + GAP), top))
    return page


def main() -> None:
    """Writes both sheets into docs/images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of the weights (default: those that come with Sfumato)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator = ClipartGenerator(weights=options.weights)
    for name, texts in (("prompts", PROMPTS), ("colours", EDITS)):
        sheet(generator, texts).quantize(160).save(ROOT / "docs" / "images" / f"drawings-{name}.png", optimize=True)
        print(f"docs/images/drawings-{name}.png")


if __name__ == "__main__":
    main()
