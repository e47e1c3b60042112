"""What public images are told of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.methods.told import Told


def embed(texts: Sequence[str]) -> NDArray[np.float32]:
    assert len(set(texts)) == len(texts)  # each once
    return np.array([[len(text), ord(text[0])] for text in texts], np.float32).reshape(-1, 2)


def test_names_of_classes() -> None:
    told = Told.classes(("cat", "horse"), np.array([1, 0, 1]), embed)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert told.of(torch.tensor([0, 1, 2, -1]), generator).tolist() == [[5, 104], [3, 99], [5, 104], [0, 0]]
    assert torch.equal(generator.get_state(), before)  # nothing is drawn where there is one text each
    assert told.part(torch.tensor([1, 2])).of(torch.tensor([0, 1]), generator).tolist() == [[3, 99], [5, 104]]


def test_captions_are_told_in_turn_and_never_another_image_s() -> None:
    told = Told.captions([("a", "bb"), (), ("a", "ccc", "dddd"), ()], embed)
    generator, seen = torch.Generator().manual_seed(0), [set[int](), set[int](), set[int](), set[int]()]
    for _ in range(60):
        for place, length in enumerate(told.of(torch.tensor([0, 1, 2, -1]), generator)[:, 0].tolist()):
            seen[place].add(int(length))
    assert seen == [{1, 2}, {0}, {1, 3, 4}, {0}]
    assert told.part(torch.tensor([1, 2])).of(torch.tensor([0]), generator).tolist() == [[0, 0]]
    assert len(told.vectors) == 4  # "a" once


def test_progress_and_no_caption_at_all() -> None:
    seen: list[tuple[int, int]] = []
    texts = [(f"{number:b}",) for number in range(600)]
    Told.captions(texts, embed, lambda done, of: seen.append((done, of)))
    assert seen == [(256, 600), (512, 600), (600, 600)]
    nobody = Told.captions([(), ()], embed)
    assert nobody.of(torch.tensor([0, 1, -1]), torch.Generator()).tolist() == [[0, 0]] * 3
