"""Pieces of examples: their own are found again, they fit together, and they do not stray from the tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.methods.spectral_parts import CPU, config, known, pictures

from sfumato.methods.examples import Examples, _fade, _nearest, _starts
from sfumato.methods.spectral_settings import ExamplesConfig
from sfumato.methods.tokens import encoded
from sfumato.nets.tokenizer import Tokenizer

SIDE = 32


def parts(count: int = 300, seed: int = 0) -> tuple[Tokenizer, Examples]:
    """Colour pictures of 32 x 32, a grid of 8 x 8 tokens, a codebook of their own patches."""
    shown = torch.from_numpy(pictures(count, seed, channels=3, side=SIDE))
    tokenizer = Tokenizer(config(levels=1, patch=2, vocabulary=64).shape((3, SIDE, SIDE)))
    patches = tokenizer.patches(shown)[0].flatten(0, 1)
    tokenizer.set_codebook(0, patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:64]], 1)
    return tokenizer, Examples(shown, encoded(tokenizer, shown, 1))


def quilted(tokenizer: Tokenizer, examples: Examples, tokens: torch.Tensor, **changes: float) -> torch.Tensor:
    return examples.quilted(tokenizer, tokens, ExamplesConfig.model_validate(changes), CPU.device)


def test_an_example_is_put_together_from_itself() -> None:
    tokenizer, examples = parts()
    random = torch.randint(0, 64, examples.tokens.shape, generator=torch.Generator().manual_seed(1))
    examples = Examples(examples.pictures, random)  # so that no two are alike
    made = quilted(tokenizer, examples, random[:5])
    assert made.shape == (5, 3, SIDE, SIDE)
    assert torch.allclose(made, examples.pictures[:5].float(), atol=1e-2)


def test_images_follow_their_tokens() -> None:
    tokenizer, examples = parts()
    fresh = torch.from_numpy(pictures(20, seed=9, channels=3, side=SIDE))
    tokens = encoded(tokenizer, fresh, 1)
    error = (
        (F.avg_pool2d(quilted(tokenizer, examples, tokens), 4) - F.avg_pool2d(fresh.float(), 4)).abs().mean((1, 2, 3))
    )
    others = F.avg_pool2d(fresh.roll(1, 0).float(), 4) - F.avg_pool2d(fresh.float(), 4)
    assert float(error.mean()) < 0.5 * float(others.abs().mean())


def test_rows_do_not_meet_and_nothing_is_drawn() -> None:
    tokenizer, examples = parts()
    tokens = examples.tokens[:70].roll(7, 1)
    together = quilted(tokenizer, examples, tokens)
    apart = torch.cat([quilted(tokenizer, examples, tokens[i : i + 7]) for i in range(0, 70, 7)])
    assert torch.allclose(together, apart, atol=1e-2)


def test_pieces_that_agree_are_preferred() -> None:
    """Black and white examples with equal tokens: without agreement both get into one image."""
    tokenizer, _ = parts()
    shown = torch.tensor([0, 255], dtype=torch.uint8)[torch.arange(40) % 2].view(40, 1, 1, 1).expand(40, 3, SIDE, SIDE)
    generator = torch.Generator().manual_seed(0)
    examples = Examples(shown.contiguous(), torch.randint(0, 64, (40, 64), generator=generator))
    tokens = torch.randint(0, 64, (10, 64), generator=generator)
    torn = quilted(tokenizer, examples, tokens, agreement=0)
    agreed = quilted(tokenizer, examples, tokens, agreement=100)
    assert float(torn.std((1, 2, 3)).min()) > 20
    assert float(agreed.std((1, 2, 3)).max()) < 1


def test_nearest_by_hand() -> None:
    known_ones = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]]).view(3, 1, 1, 2)
    near, error = _nearest(torch.zeros(1, 1, 1, 2), known_ones, 5)
    assert near.tolist() == [[0, 2, 1]]
    assert error[0].tolist() == pytest.approx([0, 0.5, 12.5])


@pytest.mark.parametrize(
    ("side", "window", "found"), [(8, 4, [0, 2, 4]), (7, 4, [0, 2, 3]), (3, 3, [0]), (3, 1, [0, 1, 2])]
)
def test_windows_cover_the_grid(side: int, window: int, found: list[int]) -> None:
    assert list(_starts(side, window)) == found


def test_a_piece_fades_to_its_rim() -> None:
    fade = _fade(8, 4, torch.device("cpu"))
    assert fade.shape == (8, 4)
    assert float(fade.min()) > 0
    assert float(fade[3:5, 1:3].min()) > 5 * float(fade[0].max())
    assert torch.allclose(fade, fade.flip(0, 1))


def test_grids_smaller_than_a_window_and_few_examples() -> None:
    model = known(detail="examples")  # 4 x 4 pixels of the coarse band: 2 x 2 tokens
    assert model.examples is not None
    tokens = encoded(model.tokenizer, torch.from_numpy(pictures(3)), 1)
    one = Examples(model.examples.pictures[:1], model.examples.tokens[:1])
    made = one.quilted(model.tokenizer, tokens, ExamplesConfig(), CPU.device)
    assert torch.allclose(made, one.pictures.float().expand(3, -1, -1, -1), atol=1e-2)


def test_as_many_as_wanted_by_lot() -> None:
    _, examples = parts(50)
    few = Examples.among(examples.pictures, examples.tokens, 20, torch.Generator().manual_seed(0))
    places = [int((examples.pictures == picture).flatten(1).all(1).nonzero()[0, 0]) for picture in few.pictures]
    assert len(set(places)) == 20
    assert torch.equal(few.tokens, examples.tokens[places])
    assert places != sorted(places)
    assert len(Examples.among(few.pictures, few.tokens, 99, torch.Generator()).tokens) == 20
