"""Ordinary training, without privacy, of models that have `losses`, on public or released pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from sfumato.hardware import Hardware
from sfumato.methods.checkpoint import Checkpoint
from sfumato.methods.denoising import Schedule


def minimise(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    steps: int,
    rate: float,
    hardware: Hardware,
    *,
    chunk: int,
    checkpoint: Checkpoint | None = None,
) -> Iterator[int]:
    """Minimises the mean of a model's `losses` by AdamW; yields steps, from 1 or from where it was cut off.

    Args:
        model: has `losses`, one a row `(N,)` from tensors of N rows each; frozen and on the processor before and after.
        batches: what its `losses` takes, tensors of as many rows each; at least `steps`.
        steps: how many.
        rate: its peak, reached after a twentieth of the steps, or 20; falls to a twentieth along a cosine.
        hardware: where to compute.
        chunk: rows at a time; changes memory and speed only.
        checkpoint: with this stage at work.
    """
    if not steps:
        return
    device, precision = hardware
    model.to(device).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = Schedule(rate, steps, warm_up=min(20, max(1, steps // 10)), final=0.05)
    begun = checkpoint.steps_done(optimizer) if checkpoint is not None else 0
    for step, batch in zip(range(begun + 1, steps + 1), batches, strict=False):
        optimizer.param_groups[0]["lr"] = schedule(step)
        optimizer.zero_grad()
        for part in zip(*(torch.split(value, chunk) for value in batch), strict=True):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                losses: Tensor = model.losses(*(value.to(device) for value in part))  # type: ignore[operator]
            torch.autograd.backward(losses.mean() * (len(part[0]) / len(batch[0])))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if checkpoint is not None and step < steps:
            checkpoint.keeps(step, optimizer)
        if step == steps:
            model.to("cpu").requires_grad_(False)
        yield step
