"""The cross-entropy of tokens.

In PyTorch it goes over logits a dozen times, in float32 under autocast. Compiled (entropy.cpp), a position's logits
are in a core's cache when they are needed, forward and backward; results agree up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.nets.compiled import by_rows, fits, level


def mean_cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Each row's mean over its positions, `(N,)` float32.

    No row's result depends on another's, nor on its place in the batch.

    Args:
        logits: `(N, T, vocabulary)`, float32 or bfloat16.
        tokens: integers `(N, T)`.

    Raises:
        IndexError: a token is not in [0, vocabulary).
    """
    losses: Tensor
    if fits(logits, logits.shape[-1]):
        losses = _CrossEntropy.apply(logits, tokens)  # type: ignore[no-untyped-call]
    else:
        losses = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    return losses.view_as(tokens).mean(1)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        logits, tokens = logits.contiguous(), tokens.long().contiguous()
        low, high = (int(end) for end in tokens.aminmax())
        if low < 0 or high >= logits.shape[-1]:
            raise IndexError(f"Tokens lie between {low} and {high}, the vocabulary ends before {logits.shape[-1]}.")
        losses = torch.empty(tokens.shape)
        log_sums = torch.empty_like(losses)
        by_rows("entropy_forward", level(), logits, [logits, tokens], logits.shape[1:], [losses, log_sums])
        ctx.save_for_backward(logits, tokens, log_sums)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, tokens, log_sums = ctx.saved_tensors
        by_logits = torch.empty_like(logits)
        given = [logits, tokens, log_sums, gradient.float().contiguous()]
        by_rows("entropy_backward", level(), logits, given, logits.shape[1:], [by_logits])
        return by_logits, None
