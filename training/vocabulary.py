"""The captions that `VocabularyTexts` comes with, from the titles of the public pairs.

    python training/vocabulary.py PAIRS [--out FILE]

A caption is a title of plain English words, alone and with the colour that its picture shows. MiniLM, pulled through
the zoo, turns captions into vectors; they are stored as int8.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from tokenizers import Tokenizer

from sfumato._files import write_atomic
from sfumato.pretrained import zoo
from sfumato.pretrained._colours import colours_in
from sfumato.pretrained.captioner import phrase
from sfumato.pretrained.vocabulary import FILE, quantised

LONGEST = 5  # words of a title
MOST = 5000  # captions
# Pictures of programs, letters and directions: many, and hardly what anybody wants drawn.
LEFT_OUT = re.compile(
    r"\b(unmount|mount|mime|button|arrows?|input|letter|latin|katakana|quotation|parenthesis|bracket|clock face|oclock|"
    r"symbol|sign|mark|square|part|contour|text|file|filesystem|application|icon|logo|left|right|up|down|facing|"
    r"gesturing|skin|tone|over|next|wheelchair|s|o|v|m|x|a|the|b|de|en|la|le)\b"
)


def captions(rows: list[dict[str, str]], words: set[str]) -> list[str]:
    """The captions, the commonest titles first.

    Args:
        rows: of `pairs.jsonl`.
        words: that a title may consist of.
    """
    fitting = [
        row
        for row in rows
        if re.fullmatch(r"[a-z' ]{3,40}", row["title"])
        and len(row["title"].split()) <= LONGEST
        and not LEFT_OUT.search(row["title"])
        and set(row["title"].split()) <= words
    ]
    titles = Counter(row["title"] for row in fitting)
    coloured = Counter(
        (row["title"], row["colour"]) for row in fitting if row["colour"] and not colours_in(row["title"])
    )
    plain = [phrase(title) for title, _ in titles.most_common()]
    painted = [phrase(title, colour) for (title, colour), _ in coloured.most_common()]
    return list(dict.fromkeys([*plain, *painted]))[:MOST]


def main() -> None:
    """Writes the captions and their vectors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, help="folder that training/pairs.py wrote")
    parser.add_argument("--out", type=Path, default=zoo.entry("clipart").folder / FILE)
    options = parser.parse_args()
    zoo.pull(["minilm"])
    with (options.pairs / "pairs.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    # A word of English, or one that describes an emoji: what is split into pieces is a name or a typing error.
    known = set(Tokenizer.from_file(str(zoo.path("minilm") / "tokenizer.json")).get_vocab())
    described = {word for row in rows if row["source"] != "openclipart" for word in row["title"].split()}
    texts = captions(rows, known | described)
    vectors = quantised(zoo.load_text_embedder("minilm").embed_texts(texts))
    stored = {"texts": np.frombuffer("\n".join(texts).encode(), np.uint8), "vectors": vectors}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, save(stored))
    print(f"{len(texts)} captions, {options.out.stat().st_size / 1e6:.2f} MB in {options.out}")


if __name__ == "__main__":
    main()
