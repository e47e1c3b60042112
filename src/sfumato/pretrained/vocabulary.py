"""Captions from a public list: random ones, and neighbours in meaning. No language model, thousands a second.

The list that comes with Sfumato holds what the public drawings of its own image generator show. Any other list will do,
as long as it was fixed before a private image was seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from sfumato.errors import UserError
from sfumato.pretrained import zoo
from sfumato.pretrained.interfaces import Embeddings, Identity, TextEmbedder

FILE = "vocabulary.safetensors"
BATCH = 256  # texts compared with the whole list at a time
LEVELS = 127
EXACT = 2**24  # integers below are exact in float32


class VocabularyTexts:
    """A `TextGenerator` over a list of captions. Item n depends on itself and on `seed + n` alone.

    A variation of strength s is one of the N^s captions of the list that are nearest to the given one, all equally
    likely, N being the length of the list: half the strength reaches as far in the exponent. Comparisons are integer
    arithmetic, so the same seed gives the same captions on every machine.

    Args:
        texts: the captions, each once.
        vectors: `(N, dimensions)`, int8: embeddings times one factor, rounded (`quantised`).
        identity: which list it is.
        embedder: gives the embedder of the vectors when a text that is not in the list is to be varied.

    Raises:
        UserError: fewer than two captions, one of them twice, or vectors that do not fit them.
    """

    def __init__(
        self,
        texts: Sequence[str],
        vectors: NDArray[np.int8],
        identity: Identity,
        embedder: Callable[[], TextEmbedder] | None = None,
    ) -> None:
        if len(texts) < 2 or len(set(texts)) != len(texts):
            raise UserError(f"A vocabulary needs at least two captions, each once; given were {len(texts)}.")
        if vectors.shape[:1] != (len(texts),) or vectors.ndim != 2 or vectors.dtype != np.int8:
            raise UserError(f"The vectors have shape {vectors.shape} and type {vectors.dtype}, not int8 a caption.")
        self.identity = identity
        self.texts = tuple(texts)
        self._rows = {text: row for row, text in enumerate(self.texts)}
        self._vectors = vectors.astype(np.float32)
        self._embedder = embedder

    @classmethod
    def of(cls, texts: Iterable[str], embedder: TextEmbedder) -> VocabularyTexts:
        """A vocabulary from a user's own list; blanks are tidied and repetitions dropped.

        Args:
            texts: public captions.
            embedder: decides which captions are near.

        Raises:
            UserError: fewer than two different captions.
        """
        tidy = [text for text in dict.fromkeys(" ".join(text.split()) for text in texts) if text]
        digest = hashlib.sha256("\n".join(tidy).encode()).hexdigest()
        identity = Identity(f"list of {len(tidy)} captions", digest[:12], digest, "the user's own", "a list")
        return cls(tidy, quantised(embedder.embed_texts(tidy)), identity, lambda: embedder)

    def random_texts(self, count: int, seed: int) -> list[str]:
        """`count` captions of the list, each drawn from the whole of it."""
        return [self.texts[_generator(0, seed + n).integers(len(self.texts))] for n in range(count)]

    def vary_texts(self, texts: Sequence[str], seed: int, strength: float = 0.5) -> list[str]:
        """One caption near each given one, never itself.

        Raises:
            UserError: a strength outside (0, 1], or a text that is not in the list where there is no embedder.
        """
        if not 0 < strength <= 1:
            raise UserError(f"The strength is {strength}; it must be above 0 and at most 1.")
        others = len(self.texts) - 1
        reach = min(max(1, round(len(self.texts) ** strength)), others)
        found: list[str] = []
        for start in range(0, len(texts), BATCH):
            given = texts[start : start + BATCH]
            likeness = (self._vectors_of(given) @ self._vectors.T).astype(np.int64)
            # No two captions are equally near: of two that would be, the earlier one comes first.
            order = np.arange(len(self.texts)) - likeness * len(self.texts)
            for number, (text, row) in enumerate(zip(given, order, strict=True), start):
                if text in self._rows:
                    row[self._rows[text]] = np.iinfo(np.int64).max
                rank = int(_generator(1, seed + number).integers(reach))
                found.append(self.texts[int(np.argpartition(row, rank)[rank])])
        return found

    def _vectors_of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        unknown = [number for number, text in enumerate(texts) if text not in self._rows]
        if unknown and self._embedder is None:
            raise UserError(
                f"{texts[unknown[0]]!r} is not one of the {len(self.texts)} captions; to vary other texts too, give a "
                f"text embedder."
            )
        vectors = self._vectors[[self._rows.get(text, 0) for text in texts]]
        if unknown and self._embedder is not None:
            vectors[unknown] = quantised(
                self._embedder().embed_texts([texts[number] for number in unknown]), alone=True
            )
        return vectors


def quantised(vectors: Embeddings, alone: bool = False) -> NDArray[np.int8]:
    """Vectors times one factor, rounded to int8, such that inner products of them are exact in float32.

    Args:
        vectors: `(N, dimensions)`.
        alone: each with a factor of its own, where only the order of its likenesses counts.
    """
    levels = min(LEVELS, int((EXACT / vectors.shape[1]) ** 0.5))
    largest = np.abs(vectors).max(1 if alone else None, keepdims=True, initial=1e-12)
    whole: NDArray[np.int8] = np.rint(vectors * (levels / largest)).astype(np.int8)
    return whole


def load(folder: Path, identity: Identity) -> VocabularyTexts:
    """The captions that come with Sfumato. Texts that are not among them are varied where minilm was pulled."""
    tensors = load_file(folder / FILE)
    texts = tensors["texts"].tobytes().decode().split("\n")
    return VocabularyTexts(texts, tensors["vectors"], identity, lambda: zoo.load_text_embedder("minilm"))


def _generator(call: int, seed: int) -> np.random.Generator:
    return np.random.default_rng((call, seed % 2**32))
