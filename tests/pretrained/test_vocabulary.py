from __future__ import annotations

import time
from typing import cast

import numpy as np
import pytest

from sfumato.errors import UserError
from sfumato.pretrained import zoo
from sfumato.pretrained.interfaces import Identity, TextGenerator
from sfumato.pretrained.minilm import MiniLM
from sfumato.pretrained.vocabulary import EXACT, FILE, VocabularyTexts, quantised

pytestmark = pytest.mark.usefixtures("offline")

IDENTITY = Identity("ring", "1", "0" * 64, "MIT", "here")


@pytest.fixture
def ring() -> VocabularyTexts:
    """Captions on a circle: number n is nearest to n - 1 and n + 1."""
    angles = np.arange(100) * 2 * np.pi / 100
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    return VocabularyTexts([f"caption {n}" for n in range(100)], quantised(vectors), IDENTITY)


@pytest.fixture(scope="module")
def shipped() -> VocabularyTexts:
    return cast(VocabularyTexts, zoo.load("captions"))


def number(text: str) -> int:
    return int(text.split()[1])


def distance(before: str, after: str) -> int:
    apart = abs(number(before) - number(after))
    return min(apart, 100 - apart)


def test_the_strength_decides_how_far(ring: VocabularyTexts) -> None:
    assert isinstance(ring, TextGenerator)
    for strength, reach in ((0.01, 1), (0.5, 5), (0.75, 16), (1.0, 50)):
        texts = ["caption 40"] * 400
        apart = [distance("caption 40", text) for text in ring.vary_texts(texts, 3, strength)]
        assert min(apart) >= 1, "never itself"
        assert reach * 0.8 <= max(apart) <= reach + 1
        assert len(set(apart)) > reach * 0.7, "all near ones are drawn"


def test_an_item_depends_on_itself_and_its_seed_alone(ring: VocabularyTexts) -> None:
    texts = [f"caption {n * 7 % 100}" for n in range(600)]  # more than one batch
    together = ring.vary_texts(texts, 5)
    assert [ring.vary_texts([text], 5 + n)[0] for n, text in enumerate(texts)] == together
    assert ring.vary_texts(texts, 6) != together
    drawn = ring.random_texts(50, 5)
    assert drawn[7:] == ring.random_texts(43, 12)
    assert len(set(drawn)) > 30
    assert ring.random_texts(0, 1) == ring.vary_texts([], 1) == []


def test_every_caption_is_drawn(ring: VocabularyTexts) -> None:
    counts = np.bincount([number(text) for text in ring.random_texts(5000, 1)], minlength=100)
    assert counts.min() > 20
    assert counts.max() < 90


def test_inner_products_are_exact(minilm: MiniLM) -> None:
    vectors = quantised(minilm.embed_texts(["a red apple", "a green apple", "the sea at night"]))
    assert np.abs(vectors.astype(np.int64)).max() == 127
    whole = vectors.astype(np.int64) @ vectors.astype(np.int64).T
    assert np.array_equal(vectors.astype(np.float32) @ vectors.astype(np.float32).T, whole)
    assert whole[0, 1] > whole[0, 2]
    long = quantised(np.ones((2, 5000), np.float32)).astype(np.int64)
    assert long[0] @ long[1] < EXACT


def test_a_list_of_the_user(minilm: MiniLM) -> None:
    mine = VocabularyTexts.of(["a red  apple", "a green apple", "a pear", "", "a lorry", "a van", "a pear"], minilm)
    assert mine.texts == ("a red apple", "a green apple", "a pear", "a lorry", "a van")
    assert mine.vary_texts(["a red apple", "a lorry"], 1, 0.01) == ["a green apple", "a van"]
    assert mine.vary_texts(["a heavy truck"], 1, 0.01)[0] in {"a lorry", "a van"}
    assert mine.identity.name == "list of 5 captions"
    with pytest.raises(UserError, match="at least two captions"):
        VocabularyTexts.of(["a pear", "a pear "], minilm)


def test_the_captions_of_sfumato(shipped: VocabularyTexts, minilm: MiniLM) -> None:
    assert 4000 < len(shipped.texts) <= 7000
    assert (zoo.entry("captions").folder / FILE).stat().st_size < 3e6
    fresh = quantised(minilm.embed_texts(list(shipped.texts[:50]))).astype(np.float32)
    stored = shipped._vectors[:50]
    cosines = (fresh * stored).sum(1) / np.linalg.norm(fresh, axis=1) / np.linalg.norm(stored, axis=1)
    assert cosines.min() > 0.99, "the vectors are those of the captions"
    near = shipped.vary_texts(["a red car"] * 20, 1, 0.2)
    assert sum("car" in text or "automobile" in text or "red" in text for text in near) > 15
    assert shipped.identity == zoo.entry("captions").identity
    with pytest.raises(UserError, match="run: sfumato models pull minilm"):
        shipped.vary_texts(["a fast red sports car"], 1)
    shipped._embedder = lambda: minilm
    assert "car" in shipped.vary_texts(["a fast red sports car"], 1, 0.1)[0]


def test_thousands_a_second(shipped: VocabularyTexts) -> None:
    texts = shipped.random_texts(1000, 1)
    begun = time.thread_time()
    shipped.vary_texts(texts, 2)
    assert time.thread_time() - begun < 1


def test_mistakes(ring: VocabularyTexts) -> None:
    for strength in (0, 1.01):
        with pytest.raises(UserError, match="must be above 0 and at most 1"):
            ring.vary_texts(["caption 1"], 1, strength)
    with pytest.raises(UserError, match="not int8 a caption"):
        VocabularyTexts(["a", "b"], np.zeros((3, 4), np.int8), IDENTITY)
    with pytest.raises(UserError, match="each once"):
        VocabularyTexts(["a", "a"], np.zeros((2, 4), np.int8), IDENTITY)
    with pytest.raises(UserError, match="'blorp' is not one of the 100 captions; to vary other texts too, give a"):
        ring.vary_texts(["blorp"], 1)
