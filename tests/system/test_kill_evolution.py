"""kill -9 at several moments of SPTI: the same guarantee, at most one round lost a kill, no value drawn twice."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.evolution_models import draw_private, objects

import sfumato as sf
from sfumato import run
from sfumato.privacy.ledger import Ledger

ROOT = Path(__file__).parents[2]
ROUNDS, KILLS = 12, 4
BEGIN = f"""
import sys
import sfumato as sf
from tests.evolution_models import objects
private, folder = sys.argv[1:]
method = sf.SPTI(epsilon=8.0, delta=1e-4, rounds={ROUNDS}, population=8, part=8, count=8, **objects())
method.fit(sf.PrivateImages(private, dataset="killed", public_size=60, size=(16, 16), channels=3), folder)
"""
RESUME = """
import sys
import sfumato as sf
from tests.evolution_models import objects
sf.load(sys.argv[2], models=objects())
"""


def test_kills(tmp_path: Path) -> None:
    private, folder = draw_private(tmp_path / "private"), tmp_path / "run"
    ledger = Path(os.environ["SFUMATO_HOME"]) / "ledgers" / "killed.jsonl"
    kills = 0
    for attempt in range(KILLS):
        begun = ledger.stat().st_size if ledger.exists() else 0
        script = BEGIN if attempt == 0 else RESUME
        process = subprocess.Popen([sys.executable, "-c", script, str(private), str(folder)], cwd=ROOT)
        lines, wanted = 0, 1 if attempt == 0 else random.choice((1, 2, 3))
        while process.poll() is None and lines < wanted:
            if (now := ledger.stat().st_size if ledger.exists() else 0) != begun:
                begun, lines = now, lines + 1
            time.sleep(0.001)
        time.sleep(random.choice((0.0, 0.005, 0.05)))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
    fitted = sf.load(folder, models=objects())
    assert kills >= KILLS - 1
    assert len(fitted.sample(8).pixels) == 8
    assert Ledger.verify(ledger) == []
    entries = Ledger.open("killed").entries()
    written = Counter((one["kind"], one["attempt"]) for one in entries if one["kind"] in ("intent", "done"))
    assert set(written.values()) == {1}, "an attempt was begun or finished twice"
    intents = sum(kind == "intent" for kind, _ in written)
    finished = sum(kind == "done" for kind, _ in written)
    assert intents == ROUNDS
    assert ROUNDS - kills <= finished <= ROUNDS
    assert len(run.load_model(run.Run(folder)).rounds) == finished
    digests = [one["sha256"] for one in entries if one["kind"] == "done"]
    assert len(set(digests)) == len(digests)
    assert run.statement(run.Run(folder)).executed == {"votes": ROUNDS}
