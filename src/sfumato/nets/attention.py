"""Self-attention.

In PyTorch, attention over a few dozen tokens is mostly copies of small matrices. Compiled (attention.cpp), a head of a
row stays in a core's cache, forward and backward; results agree up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.nets.compiled import by_rows, fits, level

LONGEST = 256
"""Positions up to which compiled attention is quicker than products of whole matrices."""


def attention(qkv: Tensor, heads: int, causal: bool) -> Tensor:
    """Self-attention, softmax(q k^T / sqrt(size)) v for each head.

    No row's result depends on another's, nor on its place in the batch.

    Args:
        qkv: `(N, T, 3 width)`, float32 or bfloat16: queries, keys and values, each with all heads side by side.
        heads: `width` is a multiple of it.
        causal: no position sees a later one.

    Returns:
        `(N, T, width)`.
    """
    n, length, width = len(qkv), qkv.shape[1], qkv.shape[2] // 3
    if length <= LONGEST and qkv.shape[2] == 3 * width and width % heads == 0 and fits(qkv, width // heads):
        result: Tensor = _Attention.apply(qkv, heads, causal)  # type: ignore[no-untyped-call]
        return result
    q, k, v = split(qkv, heads)
    return plain_attention(q, k, v, causal).transpose(1, 2).reshape(n, length, width)


def split(qkv: Tensor, heads: int) -> Tensor:
    """Queries, keys and values, `(3, N, heads, T, size)`."""
    n, length, width = qkv.shape
    return qkv.view(n, length, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, hidden: Tensor | None = None) -> Tensor:
    """Attention of queries to keys; on processors, PyTorch's fused one takes up to ten times as long in bfloat16.

    `(N, heads, t, d)` each; causal queries are the last ones of the keys' sequence, or `hidden`, `(t, keys)`, is true
    where a query does not see a key. Softmax is as wide inside as it would be under autocast, which would also copy
    what goes in and comes out.
    """
    n, heads, queries, size = q.shape
    keys = k.shape[2]
    if causal and hidden is None and queries > 1:
        hidden = torch.ones(queries, keys, dtype=torch.bool, device=q.device).triu(1 + keys - queries)
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if hidden is None else ~hidden)
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.flatten(0, 1) for x in (q * size**-0.5, k, v))
        unseen = q.new_zeros(queries, keys)
        if hidden is not None:
            unseen = unseen.masked_fill(hidden, float("-inf"))
        mixed = torch.baddbmm(unseen, q, k.transpose(1, 2)).softmax(-1) @ v
    return mixed.view(n, heads, queries, size)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, causal: bool) -> Tensor:
        qkv = qkv.contiguous()
        n, length, width = len(qkv), qkv.shape[1], qkv.shape[2] // 3
        ctx.sizes, ctx.causal = (length, heads, width // heads), int(causal)
        ctx.level = level()  # moments are its own
        mixed, moments = qkv.new_empty(n, length, width), torch.empty(n, heads, 2 * -(-length // 16) * 16)
        by_rows("attention_forward", ctx.level, qkv, [qkv], ctx.sizes, [ctx.causal, mixed, moments])
        ctx.save_for_backward(qkv, moments)
        return mixed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        qkv, moments = ctx.saved_tensors
        gradient, by_qkv = gradient.to(qkv.dtype).contiguous(), torch.empty_like(qkv)
        by_rows("attention_backward", ctx.level, qkv, [qkv, moments, gradient], ctx.sizes, [ctx.causal, by_qkv])
        return by_qkv, None, None
