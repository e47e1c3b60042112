"""A benchmark as a table of independent cells: each is measured in a process of its own and stored when it is done.

A script names its cells and says how to sum them up:

    def cells(options): return {"a": measure_a, "b": measure_b}
    def summary(found): return {"ratio": found["a"]["seconds"] / found["b"]["seconds"]}
    if __name__ == "__main__":
        run("name", cells, summary, settings={...})

Interrupted, it goes on with the cells that are missing. `bench/results/name.json` holds each cell with the machine, the
commit and the settings it was measured with. Cells of other settings count as missing, `--again` measures cells anew,
and `--stored-as` keeps a second machine's beside the first's. The last line printed is the summary, one JSON object.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato._files import write_json

RESULTS = Path(__file__).parent / "results"
LONGEST = 40 * 60  # seconds a cell may take

Cell = Callable[[], Any]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    flags: set[str] = set()
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            if name.strip() == "flags":
                flags = set(value.split())
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "bf16": sorted(flags & {"avx512_bf16", "amx_bf16"}),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str:
    """The commit of the tree, with a plus if the tree differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        ).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", ":/src", ":/bench/*.py")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def run(
    name: str,
    cells: Callable[[argparse.Namespace], Mapping[str, Cell]],
    summary: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    settings: Mapping[str, Any] | Callable[[str], Mapping[str, Any]],
    parser: argparse.ArgumentParser | None = None,
) -> None:
    """Measures what is missing, stores it, prints the summary; the whole `main` of a script.

    Args:
        name: of the file in `results/`.
        cells: from the parsed options to functions that return JSON values, by name.
        summary: from the results by cell name to the object of the last line; told only of cells that are done.
        settings: what decides the figures, of all cells or by a cell's name; a cell measured with others counts as
            missing.
        parser: with the script's own options.
    """
    decides = settings if callable(settings) else lambda _: settings
    parser = parser or argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--only", metavar="CELLS", help="only these cells, separated by commas")
    parser.add_argument("--again", action="store_true", help="measure cells again that are stored")
    parser.add_argument("--list", action="store_true", help="list the cells and stop")
    parser.add_argument("--stored-as", default=name, metavar="NAME", help="of the results, for a second machine")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    table = cells(options)
    if options.cell:
        write_json(options.into, table[options.cell]())
        return
    file = RESULTS / f"{options.stored_as}.json"
    stored = _stored(file)
    wanted = options.only.split(",") if options.only else list(table)
    if unknown := set(wanted) - set(table):
        parser.error(f"there are no cells {', '.join(sorted(unknown))}; known are {', '.join(table)}")
    if options.list:
        for cell in table:
            print(cell, "stored" if _fresh(stored.get(cell), decides(cell)) else "missing")
        return
    for number, cell in enumerate(wanted, 1):
        if _fresh(stored.get(cell), decides(cell)) and not options.again:
            continue
        print(f"[{number}/{len(wanted)}] {cell}", file=sys.stderr, flush=True)
        began = time.monotonic()
        result = _measure(cell)
        stored = _stored(file)  # again: others may be measuring further cells
        stored[cell] = {
            "result": result,
            "seconds": round(time.monotonic() - began, 1),
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "settings": dict(decides(cell)),
            "machine": machine(),
        }
        RESULTS.mkdir(exist_ok=True)
        write_json(file, stored)
    done = {cell: stored[cell]["result"] for cell in table if _fresh(stored.get(cell), decides(cell))}
    print(json.dumps(summary(done)))


def _stored(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _fresh(entry: dict[str, Any] | None, settings: Mapping[str, Any]) -> bool:
    return entry is not None and entry["settings"] == json.loads(json.dumps(dict(settings)))


def _measure(cell: str) -> Any:
    """Runs a cell in a process of its own, so that no cell warms up another's caches or keeps its memory."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder) / "result.json"
        command = [sys.executable, *sys.argv, "--cell", cell, "--into", str(into)]
        finished = subprocess.run(command, timeout=LONGEST, check=False)
        if finished.returncode != 0:
            sys.exit(f"the cell {cell} failed; what was measured before it is stored")
        return json.loads(into.read_text())
