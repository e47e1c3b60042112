"""kill -9 at ten moments of a real run, inside touches too: the same guarantee, at most one step lost a kill."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import yaml
from tests.small_set import SMALL, draw_folder

from sfumato.privacy.ledger import Ledger

STEPS, CHECK_STEPS, KILLS = 40, 15, 10


def launch(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sfumato", *map(str, words), "--json"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def length(ledger: Path) -> int:
    return ledger.stat().st_size if ledger.exists() else 0


def test_ten_kills(tmp_path: Path) -> None:
    private = draw_folder(tmp_path / "private")
    config, ledger, out = tmp_path / "c.yaml", tmp_path / "ledger.jsonl", tmp_path / "out"
    check = {"share": 0.1, "batch": 20, "steps": CHECK_STEPS}
    method = SMALL | {"steps": STEPS, "warm_attempts": KILLS + 1, "check": check}
    config.write_text(yaml.safe_dump({"image": {"height": 16, "width": 16}, "privimage": method}))
    first = (
        *("synthesize", private, out, "--dataset", "killed", "--epsilon", 8, "--delta", 1e-5, "--public-size", 90),
        *("--classes-are-public", "--count", 6, "--config", config, "--ledger", ledger),
    )
    kills = 0
    for attempt in range(KILLS):
        begun = length(ledger)
        process = launch(*(first if attempt == 0 else ("resume", out.with_name("out.run"))))
        grown = (
            random.choice((1, 2, 6, 10)) if attempt else 1
        )  # the first kill comes with the first line: the plan or a touch
        lines = 0
        while process.poll() is None and lines < grown:
            if length(ledger) != begun:
                begun, lines = length(ledger), lines + 1
        time.sleep(random.choice((0.0, 0.002, 0.01, 0.05)))
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
    last = launch("resume", out.with_name("out.run"))
    assert last.wait(timeout=300) == 0, last.communicate()[1].decode()
    last.communicate()
    assert kills >= KILLS - 1

    plan = json.loads((out.with_name("out.run") / "plan.json").read_text())
    statement = json.loads((out / "privacy.json").read_text())
    assert statement["plan"] == plan
    assert statement["epsilon"] <= 8

    assert Ledger.verify(ledger) == []
    entries = Ledger.open("killed", ledger).entries()
    written = Counter((entry["kind"], entry.get("touch"), entry.get("attempt")) for entry in entries)
    touched = {key: count for key, count in written.items() if key[0] in ("intent", "done")}
    assert set(touched.values()) == {1}, "an attempt was begun or finished twice"
    for touch, steps in (("label check", CHECK_STEPS), ("fine-tuning", STEPS)):
        intents = sum(key[:2] == ("intent", touch) for key in touched)
        finished = sum(key[:2] == ("done", touch) for key in touched)
        assert intents == steps
        assert steps - kills <= finished <= steps
    digests = [entry["sha256"] for entry in entries if entry["kind"] == "done"]
    assert len(set(digests)) == len(digests), "a value was drawn or stored twice"
    assert sum(entry["kind"] == "plan" for entry in entries) == 1
