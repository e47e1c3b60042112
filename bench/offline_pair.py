"""Sfumato's own offline pair: whether its drawings show what was asked for, and what its captioner sees.

    python bench/offline_pair.py [--pairs FOLDER] [--weights FOLDER]

`prompt_top1`: of 24 prompts twelve drawings each; how often a judge that was trained on other people's drawings
(bench/scorer.py) finds the prompt among the 24. `new_prompt_top1`: the same for 24 nouns that were drawn by lot from
the memory after training was over. `retrieval_top1` and `public_top1` put that into proportion: the memory's
drawings as they are, and what the judge reaches on real drawings it has not seen. `colour_right`: of 24 things in a
colour that their nearest public drawings do not have, the share drawn in it (measured from pixels).
`images_per_second_per_core`: drawings a second of processor time, one thread, loading not counted.
`caption_top1`, `caption_top5`: recall of keywords on pictures of artists that were held out; `unseen_*`: of the shipped
captioner on the stamps of Tux Paint (training/captioner.py). `bundle_mb`: what both weigh, in 10^6 bytes.

The last line is one JSON object of these keys. `--pairs` is what training/pairs.py writes, made there if missing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cells import run

from sfumato.pretrained import zoo
from sfumato.pretrained._colours import COLOURS, colour_of, colours_in
from sfumato.pretrained.clipart import ClipartGenerator
from sfumato.pretrained.interfaces import Images

TRAINING = Path(__file__).parents[1] / "training"
SCRATCH = Path(__file__).parent / "scratch" / "offline-pair"
PROMPTS = (
    "a red apple", "a cartoon cat", "a sailing boat", "a yellow star", "a house", "a dog", "a blue car",
    "a green tree", "a purple flower", "a pizza", "a bird", "a fish", "an airplane", "a smiling face", "a red heart",
    "a computer", "a banana", "a lion", "a blue butterfly", "a birthday cake", "a guitar", "the sun", "a snowman",
    "a cup of coffee",
)  # fmt: skip
EDITS = (
    "a green heart", "a blue star", "a red house", "a green sailing boat", "a purple cat", "a blue smiling face",
    "a pink car", "a red butterfly", "a blue apple", "a pink banana", "a purple tree", "a green sun", "a red dog",
    "a yellow airplane", "a blue pizza", "a green lion", "a purple fish", "a yellow guitar", "a red snowman",
    "a green birthday cake", "a turquoise flower", "an orange bird", "a purple computer", "a pink cup of coffee",
)  # fmt: skip
EACH = 12  # drawings of a prompt; with four, chance moves a figure by 0.05
SEED = 2026
CATEGORIES = ("food", "animals", "nature", "objects", "travel", "places", "activities", "plants", "transportation")
FREQUENT = 4  # drawings that a noun must have


def new_nouns(generator: ClipartGenerator, count: int = 24) -> tuple[str, ...]:
    """The lot: titles of one word that several drawings of concrete things have and that no prompt above names."""
    drawings = generator.drawings
    named = {word for prompt in (*PROMPTS, *EDITS) for word in prompt.split()}
    titles = [
        title
        for title, category in zip(drawings.titles, drawings.categories, strict=True)
        if title.isalpha() and title not in named and any(word in category for word in CATEGORIES)
    ]
    frequent = sorted(title for title, times in Counter(titles).items() if times >= FREQUENT)
    chosen = np.random.default_rng(SEED).choice(frequent, count, replace=False)
    return tuple(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in chosen.tolist())


def loaded(options: argparse.Namespace) -> ClipartGenerator:
    """The generator, on one thread."""
    torch.set_num_threads(1)
    zoo.pull(["minilm"])
    return ClipartGenerator(weights=options.weights)


def drawn(generator: ClipartGenerator, prompts: tuple[str, ...], fast: bool = False) -> Images:
    """`EACH` drawings of each prompt, in order."""
    return generator.generate([prompt for prompt in prompts for _ in range(EACH)], SEED, fast=fast)


def recognised(options: argparse.Namespace, prompts: Callable[[ClipartGenerator], tuple[str, ...]], fast: bool) -> Any:
    """How often the judge finds the prompt, in all and prompt by prompt."""
    from scorer import Scorer

    generator = loaded(options)
    asked = prompts(generator)
    chosen = Scorer.ready().choose(drawn(generator, asked, fast), asked).reshape(len(asked), EACH)
    right = (chosen == np.arange(len(asked))[:, None]).mean(1)
    return {"top1": float(right.mean()), "each": dict(zip(asked, right.tolist(), strict=True))}


def public(_: argparse.Namespace) -> Any:
    """The judge's own accuracy on real drawings that it has not seen, a choice of 24."""
    from scorer import Scorer

    return Scorer.ready().facts


def coloured(options: argparse.Namespace) -> Any:
    """How often a drawing has the colour that was asked for."""
    images = drawn(loaded(options), EDITS).transpose(0, 2, 3, 1)
    wished = [colours_in(prompt)[0] for prompt in EDITS for _ in range(EACH)]
    right = np.array([found == colour for found, colour in zip(colour_of(images), wished, strict=True)])
    return {
        "right": float(right.mean()),
        "each": dict(zip(EDITS, right.reshape(-1, EACH).mean(1).tolist(), strict=True)),
    }


def speed(options: argparse.Namespace) -> Any:
    """Drawings a second of processor time."""
    generator = loaded(options)
    texts = [f"a {colour} {noun}" for colour in COLOURS for noun in ("cat", "house", "tree", "fish")]
    generator.generate(texts[:16], 0)
    rates = {}
    for name, fast in (("drawn", False), ("looked_up", True)):
        began = time.process_time()
        generator.generate(texts, 1, fast=fast)
        rates[name] = len(texts) / (time.process_time() - began)
    return rates


def captions(options: argparse.Namespace) -> Any:
    """What training/captioner.py measures."""
    if not (options.pairs / "pairs.npz").exists():
        subprocess.run([sys.executable, str(TRAINING / "pairs.py"), str(options.pairs)], check=True)
    sys.path.insert(0, str(TRAINING))
    from captioner import measured

    torch.set_num_threads(1)
    return measured(options.pairs, SCRATCH / "captioner")


def size(options: argparse.Namespace) -> Any:
    """Of all weights that come with Sfumato."""
    folder = options.weights or zoo.entry("clipart").folder
    return {file.name: file.stat().st_size for file in sorted(folder.glob("*.safetensors"))}


def cells(options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What is measured."""
    return {
        "prompts": partial(recognised, options, lambda _: PROMPTS, False),
        "new prompts": partial(recognised, options, new_nouns, False),
        "retrieval": partial(recognised, options, lambda _: PROMPTS, True),
        "judge": partial(public, options),
        "colours": partial(coloured, options),
        "speed": partial(speed, options),
        "captioner": partial(captions, options),
        "size": partial(size, options),
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The object of the last line; a key is missing as long as its cell is."""
    line: dict[str, Any] = {}
    for key, cell, name in (
        ("prompt_top1", "prompts", "top1"),
        ("new_prompt_top1", "new prompts", "top1"),
        ("retrieval_top1", "retrieval", "top1"),
        ("public_top1", "judge", "top1_of_24_held_out"),
        ("colour_right", "colours", "right"),
        ("images_per_second_per_core", "speed", "drawn"),
        *((name, "captioner", name) for name in ("caption_top1", "caption_top5", "unseen_top1", "unseen_top5")),
    ):
        if cell in found:
            line[key] = round(found[cell][name], 3)
    if "size" in found:
        line["bundle_mb"] = round(sum(found["size"].values()) / 1e6, 1)
    return line


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=SCRATCH / "pairs", help="what training/pairs.py wrote")
    parser.add_argument("--weights", type=Path, help="folder of the weights (default: those that come with Sfumato)")
    run("offline_pair", cells, summary, settings={"seed": SEED, "each": EACH}, parser=parser)
