"""The generator's memory: public drawings as latents, found by what a text says.

Meaning alone is a poor guide among thousands of short titles: "a sailing boat" is near to a diagram of one. So a
drawing's rank is the cosine between texts in MiniLM's space and, on top of it, how well the very words agree, whether
the thing itself is named and not a part of it, and whether a drawing is of the plain kind that people mean.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfumato.pretrained._colours import colours_in, without_colours
from sfumato.pretrained.interfaces import Embeddings

STYLES = ("openclipart", "noto", "noto-v1", "fluent", "fluent-flat", "fxemoji")
KEYWORDS = 8  # of a drawing, that count
SAME_COLOUR = 0.18  # what the wished colour adds to a score
EMOJI = 0.15  # what a drawing gains by being one: they are clear at this size
COLOURLESS = 0.12  # what the lack of any colour takes from it then
_FILLING = re.compile(
    r"^(an?|the|some|one|my|this|that|cartoon|simple|small|little|big|large|cute|drawing|picture|image|icon|illustration|"
    r"clip ?art|emoji|sketch|photo|of|nice|pretty|beautiful|tiny|huge)\b\s*"
)
_STOP = frozenset(
    [
        "a",
        "an",
        "the",
        "some",
        "of",
        "with",
        "in",
        "on",
        "and",
        "or",
        "at",
        "to",
        "for",
        "by",
        "from",
        "its",
        "his",
        "her",
        "face",
        "button",
    ]
)
_TAIL = re.compile(r"\s+(?:of|with|in|on|at|from|for|and|over|under|beside|behind|without)\s+.*$")


def subject(text: str) -> str:
    """What a text is about: small letters, no article, no colour, no "drawing of"."""
    plain = " ".join(re.sub(r"[^\w\s'&-]", " ", without_colours(text).lower().replace("_", " ")).split())
    while (shorter := _FILLING.sub("", plain)) != plain and shorter:
        plain = shorter
    return plain


def singular(word: str) -> str:
    """A noun without its plural ending, by the common rules."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(ch|sh|ss|x|o)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3 else word


def words_of(text: str) -> frozenset[str]:
    """The words of a text that mean something, in the singular; compounds also joined, for sail boats and sailboats."""
    return frozenset(singular(word) for word in re.findall(r"[a-z']+", text.lower()) if word not in _STOP)


def head(text: str) -> str:
    """The noun that a short phrase is about: the last word before "of", "with" and the like."""
    words = re.findall(r"[a-z']+", _TAIL.sub("", text.lower()))
    words = [word for word in words if word not in _STOP] or words
    return singular(words[-1]) if words else ""


@dataclass(frozen=True)
class Drawings:
    """What is known about the drawings of a memory, row by row.

    Attributes:
        titles: what each shows, as `subject` writes it.
        keywords: further words.
        categories: of its collection.
        colours: its one colour, or None.
        styles: index into `STYLES`.
        saturation: mean of its object, 0 to 1; line art has next to none.
    """

    titles: Sequence[str]
    keywords: Sequence[Sequence[str]]
    categories: Sequence[str]
    colours: Sequence[str | None]
    styles: Sequence[int]
    saturation: Sequence[float]


class Index:
    """Finds drawings by text.

    Args:
        drawings: what is known about them.
        titles: embeddings of their titles, `(N, d)` of length 1.
        captions: embeddings of titles with keywords, `(N, d)`.
    """

    def __init__(self, drawings: Drawings, titles: Embeddings, captions: Embeddings) -> None:
        self.drawings = drawings
        self._vectors = titles, captions
        self._title_words = [words_of(title) for title in drawings.titles]
        self._keyword_words = [
            frozenset().union(*(words_of(word) for word in words[:KEYWORDS])) for words in drawings.keywords
        ]
        self._heads = [head(title) for title in drawings.titles]
        self._by_word: dict[str, list[int]] = {}
        for row, (ours, further) in enumerate(zip(self._title_words, self._keyword_words, strict=True)):
            for word in ours | further:
                self._by_word.setdefault(word, []).append(row)
        self._colours = np.array([colour or "" for colour in drawings.colours])
        plain = [plainness(drawings, row) for row in range(len(drawings.titles))]
        by_one_hand = np.array([style != STYLES.index("openclipart") for style in drawings.styles])
        self._prior = (np.array(plain) + EMOJI * by_one_hand).astype(np.float32)

    def rank(self, text: str, vector: NDArray[np.float32], colour: str | None = None) -> NDArray[np.float32]:
        """How well each drawing fits, `(N,)`; above about 0.75 it shows what is asked for.

        Args:
            text: from `subject`.
            vector: its embedding, `(d,)`.
            colour: one of `COLOURS` that is wished for.
        """
        by_title, by_caption = (vectors @ vector for vectors in self._vectors)
        scores = 0.7 * by_title + 0.3 * by_caption + self._prior
        asked, wanted = words_of(text), head(text)
        forms = {word: self._forms(word) for word in asked}
        for row in {row for other in set().union(*forms.values()) for row in self._by_word.get(other, ())}:
            ours = self._title_words[row]
            meant = frozenset().union(*(found & ours for found in forms.values()))
            named = sum(bool(found & ours) for found in forms.values()) / len(asked)
            listed = sum(bool(found & self._keyword_words[row] - ours) for found in forms.values()) / len(asked)
            scores[row] += 0.3 * named + 0.14 * listed - 0.04 * min(len(ours - meant), 4) * named
            scores[row] += 0.08 * (ours == asked) + 0.1 * (self._heads[row] in forms.get(wanted, ()))
        if colour is not None:
            scores += SAME_COLOUR * (self._colours == colour)
            if colour != "black":  # what has no colour of its own is hard to paint
                scores -= COLOURLESS * np.isin(self._colours, ("", "black"))
        return scores

    def _forms(self, word: str) -> frozenset[str]:
        """A word and the compounds with it that occur: boat and sailing, for one, both mean sailboat."""
        stem = re.sub(r"(?<=[a-z]{4})ing$", "", word)
        if len(stem) < 4:
            return frozenset((word,))
        found = (other for other in self._by_word if len(other) > len(stem) + 2 and _joins(stem, other))
        return frozenset((word, *found))


def _joins(stem: str, other: str) -> bool:
    return other.endswith(stem) or (other.startswith(stem) and not re.match(r"s|es|ed|er|ing|y|ly", other[len(stem) :]))


def plainness(drawings: Drawings, row: int) -> float:
    """0 for plain coloured things, down to -0.34 for signs, diagrams, line art and program icons."""
    category, title = drawings.categories[row], drawings.titles[row]
    score = 0.0
    if re.search(r"sign|symbol|shape|computer|button|special|logos|decoration|geography|education", category):
        score -= 0.12
    if re.search(r"diagram|sign\b|map\b|chart|template|outline|silhouette|button|contour|plan\b", title):
        score -= 0.1
    if drawings.saturation[row] < 0.12 and drawings.colours[row] in (None, "black", "white"):
        score -= 0.12
    return score


def asked(text: str) -> tuple[str, str | None]:
    """A prompt as its subject and the colour that it wishes for, if it names one."""
    colours = colours_in(text)
    return subject(text), colours[0] if colours else None
