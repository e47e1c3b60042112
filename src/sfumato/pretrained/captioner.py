"""Sfumato's own captioner: what a drawing shows, as a colour, a noun and two more words.

It learned from public clip art and emoji with titles and keywords (`training/captioner.py`;
`training/CARD-captioner.md` has the figures). Two opinions on frozen ImageNet features are added: ridge regression on
the words, and the words of the most alike public drawings. The colour is measured, not learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.pretrained import zoo
from sfumato.pretrained._colours import colour_of, colours_in
from sfumato.pretrained._eyes import BATCH, COLOURS, DRAWING, FEATURES, Eyes, squared
from sfumato.pretrained._networks import in_batches
from sfumato.pretrained.interfaces import Identity, Images

FILE = "captioner.safetensors"
SEEN = FEATURES + COLOURS
WORDS = 3  # in a caption
NEIGHBOURS = 24
SHARPNESS = 14.0  # of the neighbours' votes in their cosine
AS_GOOD = 0.9  # of the best score: among words above it the rarest is the noun
MASS = """
water rain snow fire grass money music food clothing furniture wind sand fog smoke ice sky art meat rice bread
milk cheese chocolate coffee tea wine beer honey blood garbage electricity traffic lightning weather wood
bamboo seafood corn soup juice fruit litter sports football basketball baseball tennis soccer golf hockey
cricket handball yoga christmas halloween jewelry hair photography tableware beef bacon lettuce spaghetti
"""
"""Nouns that take no article."""


@dataclass(frozen=True)
class Description:
    """What a picture shows.

    Attributes:
        words: the best ones, best first.
        colour: of most of what is drawn, or None.
        caption: both in one phrase.
    """

    words: tuple[str, ...]
    colour: str | None
    caption: str


class Heads(nn.Module):
    """Features to a score for every word; 2 would be certainty.

    Args:
        inner: numbers that features are reduced to.
        words: in the vocabulary.
        drawings: that are remembered.
    """

    def __init__(self, inner: int, words: int, drawings: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(SEEN))
        self.register_buffer("basis", torch.zeros(SEEN, inner))
        self.register_buffer("weight", torch.zeros(inner, words))
        self.register_buffer("bias", torch.zeros(words))
        self.register_buffer("memory", torch.zeros(drawings, inner))
        self.register_buffer("remembered", torch.zeros(drawings, words))
        self.shift: Tensor
        self.basis: Tensor
        self.weight: Tensor
        self.bias: Tensor
        self.memory: Tensor
        self.remembered: Tensor

    def reduced(self, seen: Tensor) -> Tensor:
        """`(N, SEEN)` to `(N, inner)`."""
        return (seen - self.shift) @ self.basis

    def forward(self, seen: Tensor) -> Tensor:
        """`(N, SEEN)` to scores `(N, words)`."""
        x = self.reduced(seen)
        return x @ self.weight + self.bias + self.votes(x)

    def votes(self, x: Tensor) -> Tensor:
        """Shares of each word among the most alike drawings, nearer ones counting more: `(N, words)`."""
        near, rows = (F.normalize(x, dim=1) @ self.memory.T).topk(min(NEIGHBOURS, len(self.memory)), 1)
        weights = (SHARPNESS * near).softmax(1)
        return (weights[:, :, None] * self.remembered[rows]).sum(1)


class ClipartCaptioner:
    """A `Captioner` for drawings of one thing on white ground. English; each image is looked at alone.

    Args:
        folder: of the captioner's own weights.
        identity: which model it is.
        eyes: what it sees with; by default the pulled efficientnet-lite0.

    Raises:
        UserError: efficientnet-lite0 was not pulled.
    """

    def __init__(self, folder: Path, identity: Identity, eyes: Eyes | None = None) -> None:
        self.identity = identity
        self._eyes = eyes or Eyes(zoo.path("efficientnet-lite0"))
        self.vocabulary, self._heads = read(folder / FILE)

    def caption(self, images: Images) -> list[str]:
        """One caption an image, such as "a red apple, fruit, food".

        Args:
            images: uint8 `(N, 1 or 3, H, W)` of any one size.

        Raises:
            UserError: not such images.
        """
        return [one.caption for one in self.describe(images)]

    def describe(self, images: Images, best: int = 5) -> list[Description]:
        """The `best` words, the colour and the caption of each image.

        Raises:
            UserError: not images.
        """
        scores = self.scores(self._eyes.see(images))
        colours = colour_of(squared(images, DRAWING).transpose(0, 2, 3, 1)) if len(images) else []
        described = []
        for row, colour in zip(scores, colours, strict=True):
            words = [self.vocabulary[index] for index in spoken(row, best)]
            described.append(Description(tuple(words), colour, sentence(words, colour)))
        return described

    def scores(self, seen: NDArray[np.float32]) -> NDArray[np.float32]:
        """A score for every word of the vocabulary, `(N, words)`, from what `Eyes` saw; 2 would be certainty."""
        return in_batches(self._heads, seen, BATCH, (len(self.vocabulary),))


def spoken(scores: NDArray[np.float32], best: int) -> list[int]:
    """The best words, the caption's noun first: of those nearly as good as the best one the rarest, which says most.

    Args:
        scores: of the words, the commonest word first, `(words,)`.
        best: how many.
    """
    order = [int(index) for index in np.argsort(-scores, kind="stable")[:best]]
    noun = max(index for index in order if scores[index] >= AS_GOOD * scores[order[0]] or index == order[0])
    return [noun, *(index for index in order if index != noun)]


def sentence(words: Sequence[str], colour: str | None) -> str:
    """A caption of the best words: "a <colour> <noun>, <word>, <word>"."""
    return ", ".join((phrase(words[0], colour), *words[1:WORDS]))


def phrase(noun: str, colour: str | None = None) -> str:
    """A noun with its colour, unless it names one itself, and with the article that it takes.

    Args:
        noun: one or more words in small letters.
        colour: such as "green".
    """
    named = noun if colour is None or colours_in(noun) else f"{colour} {noun}"
    plural = noun.endswith("s") and not noun.endswith(("ss", "us", "is"))
    if plural or noun in MASS.split() or noun.split()[0] in ("a", "an", "the", "two", "three"):
        return named
    vowel = named[0] in "aeiou" and not named.startswith(("uni", "uf", "eu", "one"))
    return f"{'an' if vowel or named.startswith('hour') else 'a'} {named}"


def read(file: Path) -> tuple[list[str], Heads]:
    """Vocabulary and heads from a file that `training/captioner.py` wrote."""
    stored = load_file(file)
    vocabulary = bytes(stored.pop("vocabulary").numpy()).decode().split("\n")
    rows = stored.pop("remembered").long()
    remembered = torch.zeros(len(rows), len(vocabulary) + 1).scatter_(1, rows, 1.0)[:, :-1]
    memory = F.normalize(stored.pop("memory").float(), dim=1)
    weights = {name: value.float() for name, value in stored.items()}
    heads = Heads(weights["basis"].shape[1], len(vocabulary), len(rows))
    heads.load_state_dict(weights | {"memory": memory, "remembered": remembered})
    return vocabulary, heads.eval()


def load(folder: Path, identity: Identity) -> ClipartCaptioner:
    """The captioner in `folder`."""
    return ClipartCaptioner(folder, identity)
