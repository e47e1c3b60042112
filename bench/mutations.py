"""Deliberate breaks of our own code, one at a time, on a copy; each must be caught by the test that it names.

    python bench/mutations.py            # what is missing of the table
    python bench/mutations.py --table    # write the table into docs/audit.md

Last line: {"mutants": .., "caught": .., "missed": []}. A mutant is caught if its test passes on the unbroken copy and
fails (not: cannot be run) on the broken one. The work tree is only read. Tests run in forks of one process that has
imported other people's packages and nothing of ours, which saves most of the time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cells import RESULTS, run
from mutants import Mutant
from mutants_beneath import GROUPS

ROOT = Path(__file__).parents[1]
LONGEST = 400  # seconds a test may take
PASSED, FAILED = 0, 1  # of pytest's exit codes
MARKS = "<!-- mutations: begin -->\n", "<!-- mutations: end -->\n"

SERVER = """
import json, os, signal, sys, time
import dp_accounting.pld.privacy_loss_distribution, hypothesis, numpy, opendp.prelude, PIL.Image, pytest, scipy.stats
import pydantic, safetensors.torch, torch, typer

assert not any(name.partition(".")[0] in ("sfumato", "tests") for name in sys.modules)
for line in sys.stdin:
    test, log, longest = json.loads(line)
    child = os.fork()
    if child == 0:
        file = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(file, 1), os.dup2(file, 2)
        code = 99
        try:
            import sfumato
            assert sfumato.__file__.startswith(os.getcwd()), sfumato.__file__
            folder = os.path.join(os.path.dirname(log), "tmp")
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={folder}", f"tests/{test}"])
        finally:
            os._exit(code)
    end = time.monotonic() + longest
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            code = -9
            break
        time.sleep(0.05)
    print(json.dumps(code), flush=True)
"""


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of sources and tests in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = Path(folder, "copy")
        for name in ("src", "tests", "training"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        yield copy


@contextmanager
def runner(copy: Path) -> Iterator[Callable[[str], int]]:
    """A function from a node id to pytest's exit code, on what `copy` then holds."""
    path = os.pathsep.join((str(copy / "src"), str(copy)))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        cwd=copy,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def outcome(test: str) -> int:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(json.dumps([test, str(copy.parent / "log"), LONGEST]) + "\n")
            server.stdin.flush()
            return int(json.loads(server.stdout.readline()))

        yield outcome
        server.stdin.close()


@contextmanager
def broken(copy: Path, mutant: Mutant) -> Iterator[None]:
    """The copy with one break."""
    file = copy / "src" / "sfumato" / mutant.file
    sound = file.read_text()
    text = sound
    for old, new in filter(None, ((mutant.old, mutant.new), mutant.also)):
        if text.count(old) != 1:
            sys.exit(f"mutant '{mutant.name}': its text occurs {text.count(old)} times in {mutant.file}")
        text = text.replace(old, new)
    file.write_text(text)
    try:
        yield
    finally:
        file.write_text(sound)


def measure(group: str) -> dict[str, Any]:
    """Runs the mutants of a group: exit codes of their tests on the sound and on the broken copy."""
    found = {}
    with copied() as copy, runner(copy) as outcome:
        sound = {test: outcome(test) for test in sorted({mutant.test for mutant in GROUPS[group]})}
        for mutant in GROUPS[group]:
            began = time.monotonic()
            with broken(copy, mutant):
                code = outcome(mutant.test)
            log = (copy.parent / "log").read_text(errors="replace").splitlines()
            why = next((line for line in log if line.startswith("E  ")), log[-1] if log else "")
            found[mutant.name] = {
                "file": mutant.file,
                "test": mutant.test,
                "sound": sound[mutant.test],
                "broken": code,
                "caught": sound[mutant.test] == PASSED and code == FAILED,
                "why": why.removeprefix("E").strip()[:160],
                "seconds": round(time.monotonic() - began, 1),
            }
            print(f"    {mutant.name}: {'caught' if found[mutant.name]['caught'] else 'NOT CAUGHT'}", file=sys.stderr)
    return found


def cells(options: argparse.Namespace) -> Mapping[str, Callable[[], Any]]:
    """One a group."""
    if options.table:
        write_table()
        sys.exit()
    return {group: partial(measure, group) for group in GROUPS}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The last line."""
    mutants = {name: one for group in found.values() for name, one in group.items()}
    missed = [name for name, one in mutants.items() if not one["caught"]]
    return {"mutants": len(mutants), "caught": len(mutants) - len(missed), "missed": missed}


def write_table() -> None:
    """Writes what is stored between the marks of docs/audit.md."""
    stored = json.loads((RESULTS / "mutations.json").read_text())
    lines = ["| break | in | caught by |", "|---|---|---|"]
    for group in GROUPS:
        for name, one in stored.get(group, {}).get("result", {}).items():
            by = f"`{one['test']}`" if one["caught"] else "**nothing**"
            lines.append(f"| {name} | `{one['file']}` | {by} |")
    file = ROOT / "docs" / "audit.md"
    before, _, rest = file.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    file.write_text(before + MARKS[0] + "\n".join(lines) + "\n" + MARKS[1] + after)


if __name__ == "__main__":
    table = b"".join((Path(__file__).parent / name).read_bytes() for name in ("mutants.py", "mutants_beneath.py"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write the stored table into docs/audit.md and stop")
    digest = hashlib.sha256(table).hexdigest()[:16]
    run("mutations", cells, summary, settings={"table": digest}, parser=parser)
