"""What of a transformer is trained and what stays as it was: all of it, adapters, norms and biases, or the head.

The noise of private training grows with the square root of the number of trained parameters, so with little budget a
small set learns more than a large one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Trained = Literal["full", "lora", "norms", "head"]
"""All parameters; adapters of a given rank beside every linear layer of the blocks; scales and shifts of norms and the
biases of the blocks; the last norm and the heads. The embedding of the condition is in all of them, as far as it is a
table: nobody else can learn what a private class is."""


class LowRank(nn.Module):
    """A frozen linear layer and a trained update of low rank beside it: `W x + b + (2 / sqrt(r)) U D x`.

    Hu et al. 2022, "LoRA"; the scale is that of Kalajdzievski 2023 (arXiv 2312.03732), so that one learning rate suits
    all ranks. U is zero at first: an adapted layer begins as the layer itself.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        self.scale = 2 / math.sqrt(rank)
        nn.init.normal_(self.down.weight, std=base.in_features**-0.5)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`."""
        output: Tensor = self.base(x) + self.scale * self.up(self.down(x))
        return output

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that does the same."""
        layer = nn.Linear(self.base.in_features, self.base.out_features, self.base.bias is not None)
        layer.weight.copy_(self.base.weight + self.scale * self.up.weight @ self.down.weight)
        if self.base.bias is not None:
            layer.bias.copy_(self.base.bias)
        return layer


class Shift(nn.Module):
    """A trained constant that is added to what comes.

    It is the embedding of a single token, because per-record gradients of embeddings have a rule.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.constant = nn.Embedding(1, width)
        nn.init.zeros_(self.constant.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., width)` to the same."""
        constant: Tensor = self.constant(torch.zeros(x.shape[:-1], dtype=torch.long, device=x.device))
        return x + constant.to(x.dtype)


class Shifted(nn.Module):
    """A frozen linear layer whose bias alone is trained, apart from it.

    The rule of linear layers would form the gradient of the frozen weight too, which is all that costs.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.shift = base.requires_grad_(False), Shift(base.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`."""
        output: Tensor = self.shift(self.base(x))
        return output

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that does the same."""
        layer = nn.Linear(self.base.in_features, self.base.out_features)
        layer.weight.copy_(self.base.weight)
        shift = self.shift.constant.weight[0]
        layer.bias.copy_(shift if self.base.bias is None else self.base.bias + shift)
        return layer


def select(model: nn.Module, trained: Trained, rank: int) -> None:
    """Freezes a transformer but for a set of its parameters; adapters are put in place.

    Args:
        model: with parts called `start`, `blocks`, `norm` and `heads`.
        trained: the set.
        rank: of adapters.
    """
    if trained not in get_args(Trained):
        raise ValueError(f"there is no trained set {trained!r}")
    model.requires_grad_(trained == "full")
    if trained in ("lora", "norms"):
        for parent, name, layer in list(_linears(model.get_submodule("blocks"))):
            setattr(parent, name, LowRank(layer, rank) if trained == "lora" else Shifted(layer))
    for name, module in model.named_modules():
        table = name == "start" and isinstance(module, nn.Embedding)
        if (
            table
            or (trained == "norms" and isinstance(module, nn.LayerNorm))
            or (trained == "head" and name.startswith(("norm", "heads.")))
        ):
            module.requires_grad_(True)


def merge(model: nn.Module) -> None:
    """Replaces every adapted layer by one linear layer that does the same."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LowRank | Shifted):
                setattr(module, name, child.merged())


def trained_parameters(model: nn.Module) -> int:
    """How many numbers private training would move."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _linears(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                yield parent, name, child
