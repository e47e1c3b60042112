"""The transformers: rows never meet, the future is hidden, patches stay where they are, small ones learn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sfumato.nets.transformer import GPT, Block, Memory, PatchTransformer, TransformerShape

SMALL = TransformerShape(width=16, layers=2, heads=4, positions=12)


def gpt(shape: TransformerShape = SMALL, vocabulary: int = 11) -> GPT:
    """With weights large enough that every input shows in every output."""
    torch.manual_seed(0)
    model = GPT(vocabulary, shape)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def patches(shape: TransformerShape = SMALL, channels: int = 3, patch: int = 2) -> PatchTransformer:
    torch.manual_seed(0)
    model = PatchTransformer(channels, patch, shape)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False)


def test_no_token_sees_a_later_one() -> None:
    model, tokens = gpt(), torch.randint(11, (2, 10))
    before = model(tokens)
    assert before.shape == (2, 10, 11)
    for place in (0, 4, 9):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        moved = (model(changed) - before).abs().amax(-1) > 1e-6
        assert not moved[:, :place].any()
        assert moved[:, place:].all()


def test_order_and_every_place_matter() -> None:
    model = gpt()
    tokens = torch.arange(10)[None]
    swapped = tokens[:, [1, 0, *range(2, 10)]]
    assert (model(swapped)[:, -1] - model(tokens)[:, -1]).abs().max() > 1e-4
    same = torch.zeros(1, 12, dtype=torch.long)
    logits = model(same)[0]
    assert torch.pdist(logits).min() > 1e-4
    with pytest.raises(IndexError):
        model(torch.zeros(1, 13, dtype=torch.long))


def test_rows_of_tokens_are_independent() -> None:
    model, tokens = gpt(), torch.randint(11, (8, 10))
    before, losses = model(tokens), model.losses(tokens)
    tokens[3] = torch.randint(11, (10,))
    for old, new in ((before, model(tokens)), (losses[:, None], model.losses(tokens)[:, None])):
        assert (old == new).flatten(1).all(1).tolist() == [row != 3 for row in range(8)]


def test_rows_of_pictures_are_independent_and_patches_see_each_other() -> None:
    model, x = patches(), torch.randn(8, 3, 4, 6)
    before = model(x)
    assert before.shape == x.shape
    changed = x.clone()
    changed[3, 1, 0, 5] += 1
    after = model(changed)
    assert (after == before).flatten(1).all(1).tolist() == [row != 3 for row in range(8)]
    assert ((after - before)[3].abs() > 1e-6).all()


@pytest.mark.parametrize(("size", "patch"), [((4, 6), 2), ((6, 3), 3), ((3, 4), 1)])
def test_patches_come_back_to_their_places(size: tuple[int, int], patch: int) -> None:
    """Without blocks each patch is mapped by itself."""
    model, x = patches(SMALL._replace(layers=0), patch=patch), torch.randn(1, 3, *size)
    before = model(x)
    for line in range(size[0]):
        for column in range(size[1]):
            changed = x.clone()
            changed[0, :, line, column] += 1
            moved = ((model(changed) - before).abs() > 1e-7)[0].any(0)
            expected = torch.zeros(size, dtype=torch.bool)
            top, left = line // patch * patch, column // patch * patch
            expected[top : top + patch, left : left + patch] = True
            assert torch.equal(moved, expected)


def test_pixels_keep_their_order_within_a_patch() -> None:
    """A linear outlet that undoes a linear inlet gives the picture back."""
    model = patches(TransformerShape(12, 0, 1, 6), channels=3, patch=2)
    model.norm = nn.Identity()  # type: ignore[assignment]
    basis = torch.linalg.qr(torch.randn(12, 12))[0]
    with torch.no_grad():
        model.inlet.weight.copy_(basis.view(12, 3, 2, 2))
        model.outlet.weight.copy_(basis.T)
        for value in (model.inlet.bias, model.outlet.bias, model.places.weight):
            assert value is not None
            value.zero_()
    x = torch.randn(5, 3, 4, 6)
    assert torch.allclose(model(x), x, atol=1e-5)


def test_a_memory_gives_what_the_whole_sequence_gives() -> None:
    torch.manual_seed(0)
    block, x = Block(16, 4, causal=True).requires_grad_(False), torch.randn(3, 9, 16)
    whole, memory = block(x), Memory(9)
    parts = [block(part, memory=memory) for part in torch.split(x, [4, 1, 3, 1], dim=1)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


def test_what_is_hidden_is_not_seen() -> None:
    torch.manual_seed(0)
    block, x = Block(16, 4, causal=False).requires_grad_(False), torch.randn(1, 6, 16)
    hidden = torch.zeros(6, 6, dtype=torch.bool)
    hidden[:2, 2:] = True
    before = block(x, hidden)
    x[0, 4, 3] += 1
    moved = ((block(x, hidden) - before).abs() > 1e-6).any(-1)[0]
    assert moved.tolist() == [False, False, True, True, True, True]


def test_the_loss_is_the_mean_surprise_of_the_next_token() -> None:
    model, tokens = gpt(), torch.randint(11, (4, 9))
    logs = model(tokens[:, :-1]).log_softmax(-1)
    expected = torch.stack([-sum(logs[row, t, tokens[row, t + 1]] for t in range(8)) / 8 for row in range(4)])  # type: ignore[misc]
    assert torch.allclose(model.losses(tokens), expected, atol=1e-5)
    torch.manual_seed(0)
    fresh = GPT(11, SMALL)
    assert fresh.losses(tokens).tolist() == pytest.approx([math.log(11)] * 4, abs=0.1)


@pytest.mark.parametrize("model", [GPT(11, SMALL), PatchTransformer(3, 2, SMALL)])
def test_no_state_and_no_weight_twice(model: nn.Module) -> None:
    assert not list(model.buffers())
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(model.parameters()))
    block = 12 * 16**2 + 13 * 16
    ends = 11 * 16 + 16 * 11 + 11 if isinstance(model, GPT) else 2 * (12 * 16) + 16 + 12
    assert sum(parameter.numel() for parameter in model.parameters()) == 2 * block + 12 * 16 + 2 * 16 + ends


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = GPT(64, TransformerShape(64, 4, 4, 32))
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            std = 0.02 / 8**0.5 if "project" in name or "contract" in name else 0.02
            assert float(value.detach().std()) == pytest.approx(std, rel=0.1), name


def train(model: nn.Module, loss: object, steps: int) -> Tensor:
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        value: Tensor = loss().mean()  # type: ignore[operator]
        value.backward()
        optimiser.step()
    return value.detach()


def test_they_learn() -> None:
    torch.manual_seed(0)
    model, tokens = GPT(5, SMALL), torch.tensor([[0, 1, 2, 3, 4] * 2, [4, 3, 2, 1, 0] * 2])
    assert train(model, lambda: model.losses(tokens)[:, None], 50) < 0.4
    pictures, x = PatchTransformer(1, 2, SMALL), torch.randn(4, 1, 4, 6).sign()
    assert train(pictures, lambda: (pictures(x) - x.flip(3)).square(), 120) < 0.3


@pytest.mark.parametrize("autocast", [False, True])
def test_the_residual_stream_is_as_wide_as_autocast_computes(autocast: bool) -> None:
    model, tokens, seen = gpt(), torch.randint(11, (2, 10)), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0].dtype, output.dtype)))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(tokens)
    assert set(seen) == {torch.bfloat16 if autocast else torch.float32}
    right = gpt().double()(tokens)
    assert (logits - right).norm() < (0.05 if autocast else 1e-5) * right.norm()
