"""Dead leaves: pictures of the asked size, each its own, with plain surfaces and edges in all directions."""

from __future__ import annotations

import pytest
import torch

from sfumato.nets.leaves import dead_leaves
from sfumato.nets.scattering import DIRECTIONS, Scattering


@pytest.mark.parametrize("image", [(1, 28, 28), (3, 8, 40), (1, 1, 1)])
def test_pictures(image: tuple[int, int, int]) -> None:
    pictures = dead_leaves(20, image, torch.Generator().manual_seed(0))
    assert (pictures.shape, pictures.dtype) == ((20, *image), torch.uint8)
    assert len({bytes(picture.numpy()) for picture in pictures}) == 20
    assert torch.equal(pictures, dead_leaves(20, image, torch.Generator().manual_seed(0)))


def test_surfaces_are_plain_and_edges_run_everywhere() -> None:
    pictures = dead_leaves(200, (1, 28, 28), torch.Generator().manual_seed(0))
    steps = (pictures[..., 1:].int() - pictures[..., :-1].int()).abs()
    assert 0.6 < float((steps == 0).float().mean()) < 0.95
    edges = Scattering((1, 28, 28))._edges(pictures / 127.5 - 1).mean((0, 2, 3))
    assert len(edges) == DIRECTIONS
    assert float(edges.max() / edges.min()) < 1.3


def test_none_are_made_where_none_are_wanted() -> None:
    assert dead_leaves(0, (3, 5, 7), torch.Generator()).shape == (0, 3, 5, 7)
