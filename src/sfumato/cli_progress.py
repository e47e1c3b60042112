"""Progress of long commands, for people and for programs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfumato.run import Report


@contextmanager
def progress(quiet: bool, folder: Path | None = None) -> Iterator[Report]:
    """Progress bars on standard error, and JSON lines in the run folder for other programs."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, Any] = {}
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet) as shown:

        def report(stage: str, done: int, of: int | None) -> None:
            if stage not in bars:
                bars[stage] = shown.add_task(stage, total=of)
            shown.update(bars[stage], completed=done)
            if folder is not None and folder.is_dir():
                with open(
                    folder / "progress.jsonl", "a", opener=lambda path, flags: os.open(path, flags, 0o600)
                ) as file:
                    file.write(
                        json.dumps({"time": round(time.time(), 2), "stage": stage, "done": done, "of": of}) + "\n"
                    )

        yield report
