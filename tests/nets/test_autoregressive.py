"""The model of tokens: causal over scales, rows apart, the memory changes nothing, draws are what was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.nets.autoregressive import Condition, ScaleGPT, Taste, draw, generate
from sfumato.nets.transformer import TransformerShape

SMALL = TransformerShape(width=16, layers=2, heads=4)
CONDITIONS = [Condition(), Condition("class", 3), Condition("text", 5)]


def model(condition: Condition, scales: int = 3, tokens: int = 4) -> ScaleGPT:
    """With weights large enough that every input shows in every output."""
    torch.manual_seed(0)
    made = ScaleGPT(7, scales, tokens, SMALL, condition)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False)


def conditions(condition: Condition, count: int) -> Tensor:
    if condition.kind == "class":
        return torch.arange(count) % condition.size
    return condition.nothing(count) if condition.kind == "none" else torch.randn(count, condition.size)


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: c.kind)
def test_no_token_sees_itself_or_a_later_one(condition: Condition) -> None:
    net, tokens, given = model(condition), torch.randint(7, (2, 11)), conditions(condition, 2)
    before = net(tokens, given)
    assert before.shape == (2, 12, 7)
    for place in (0, 3, 4, 10):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 7
        moved = (net(changed, given) - before).abs().amax(-1) > 1e-6
        assert not moved[:, : place + 1].any()
        assert moved[:, place + 1 :].all()


@pytest.mark.parametrize("condition", CONDITIONS[1:], ids=lambda c: c.kind)
def test_the_condition_reaches_every_token(condition: Condition) -> None:
    net, tokens, given = model(condition), torch.randint(7, (2, 11)), conditions(condition, 2)
    moved = (net(tokens, given) - net(tokens, condition.nothing(2))).abs().amax(-1) > 1e-6
    assert moved.all()


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: c.kind)
def test_rows_are_independent(condition: Condition) -> None:
    net, tokens, given = model(condition), torch.randint(7, (8, 12)), conditions(condition, 8)
    before = net.losses(tokens, given)
    tokens[3] = (tokens[3] + 1) % 7
    assert (net.losses(tokens, given) == before).tolist() == [row != 3 for row in range(8)]
    assert not list(net.buffers())
    assert len(list(net.named_parameters(remove_duplicate=False))) == len(list(net.parameters()))


def test_the_loss_is_the_mean_surprise_and_begins_with_the_first_token() -> None:
    net, tokens = model(CONDITIONS[1]), torch.randint(7, (2, 4))  # a coarse scale alone
    labels = torch.tensor([1, -1])
    logs = net(tokens[:, :3], labels).log_softmax(-1)
    expected = torch.stack([-sum(logs[row, t, tokens[row, t]] for t in range(4)) / 4 for row in range(2)])  # type: ignore[misc]
    assert torch.allclose(net.losses(tokens, labels), expected, atol=1e-6)


def test_the_coarse_scale_uses_nothing_of_the_finer_ones() -> None:
    net = model(CONDITIONS[1]).requires_grad_(True)
    net.losses(torch.randint(7, (2, 4)), torch.tensor([0, 1])).sum().backward()  # type: ignore[no-untyped-call]
    used = {name for name, value in net.named_parameters() if value.grad is not None}
    assert not {name for name in used if name.startswith(("inlets.1", "inlets.2", "heads.1", "heads.2"))}
    assert {"inlets.0.weight", "heads.0.weight", "start.weight"} <= used


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda c: c.kind)
@pytest.mark.parametrize("known", [0, 3, 4, 6])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_memory_changes_nothing(condition: Condition, known: int, guidance: float) -> None:
    """The likeliest tokens, one by one without memory, are those of `generate`."""
    net, given = model(condition), conditions(condition, 3)
    prefix = torch.randint(7, (3, known))
    found = generate(net, given, torch.Generator(), prefix=prefix, taste=Taste(temperature=0, guidance=guidance))
    tokens = prefix
    while tokens.shape[1] < 12:
        with_it, without = (net(tokens, what)[:, -1].log_softmax(-1) for what in (given, condition.nothing(3)))
        best = without + guidance * (with_it - without) if condition.kind != "none" else with_it
        tokens = torch.cat((tokens, best.argmax(-1, keepdim=True)), 1)
    assert torch.equal(found, tokens)


def test_only_as_many_tokens_as_wanted() -> None:
    net = model(CONDITIONS[0])
    some = generate(net, torch.full((5,), -1), torch.Generator().manual_seed(1), length=4)
    assert some.shape == (5, 4)
    again = generate(net, torch.full((5,), -1), torch.Generator().manual_seed(1), length=4)
    assert torch.equal(some, again)


def test_draws_follow_their_probabilities() -> None:
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits, generator = shares.log().repeat(20_000, 1), torch.Generator().manual_seed(0)

    def found(taste: Taste) -> list[float]:
        return (torch.bincount(draw(logits, taste, generator), minlength=4) / 20_000).tolist()

    near = pytest.approx
    assert found(Taste()) == near(shares.tolist(), abs=0.02)
    assert found(Taste(top_k=2)) == near([0.625, 0.375, 0, 0], abs=0.02)
    assert found(Taste(top_p=0.79)) == near([0.625, 0.375, 0, 0], abs=0.02)
    assert found(Taste(top_p=0.81)) == near([0.5263, 0.3158, 0.1579, 0], abs=0.02)
    assert found(Taste(top_p=0.01)) == [1, 0, 0, 0]
    sharper = (shares**2 / (shares**2).sum()).tolist()
    assert found(Taste(temperature=0.5)) == near(sharper, abs=0.02)
    assert found(Taste(temperature=0)) == [1, 0, 0, 0]


def test_top_k_keeps_k_where_logits_are_equal() -> None:
    logits = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]).repeat(500, 1)
    drawn = draw(logits, Taste(top_k=2), torch.Generator().manual_seed(0))
    assert len(drawn.unique()) == 2
    assert set(drawn.tolist()) <= {1, 2, 3}


def test_it_learns_what_its_classes_are() -> None:
    torch.manual_seed(0)
    net = ScaleGPT(5, 2, 3, SMALL, Condition("class", 2))
    tokens, labels = torch.tensor([[0, 1, 2, 3, 4, 0], [4, 3, 2, 1, 0, 4]]), torch.tensor([0, 1])
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        net.losses(tokens, labels).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    drawn = generate(net.requires_grad_(False), labels, torch.Generator().manual_seed(0), taste=Taste(0.3))
    assert torch.equal(drawn, tokens)
