"""Loss curves of public stages, for a run's internal page. Private training has none: its loss is a measurement."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Told = Callable[[int, float], None]
"""Told (step, loss)."""

EVERY = 10  # steps
FILE = "losses.jsonl"


def curve(folder: Path, stage: str) -> Told:
    """Appends to the run folder's curves, a line every few steps; losses are of public or released images.

    Args:
        folder: private folder of the run.
        stage: what learns.
    """
    file = folder / FILE
    file.touch(mode=0o600)

    def told(step: int, loss: float) -> None:
        if step == 1 or step % EVERY == 0:
            with file.open("a") as lines:
                lines.write(json.dumps({"stage": stage, "step": step, "loss": round(loss, 5)}) + "\n")

    return told
