"""What is charged follows from public values alone, and captions of private records go nowhere."""

from __future__ import annotations

import ast
from pathlib import Path

from sfumato import run
from sfumato.config import validated
from sfumato.privacy.plan import Plan, TrainingTouch
from tests.small_set import draw_folder, settings

ROOT = Path(__file__).parents[2] / "src" / "sfumato"


def test_what_is_charged_does_not_know_the_folder(tmp_path: Path) -> None:
    touch = TrainingTouch("training", 0.1, 5, noise_multiplier=3.0, clip_norm=1.0, rows=1, slack=1e-6)
    plan = Plan(unit="image", epsilon=8.0, delta=1e-5, touches=(touch,), main="training")
    lines = []
    for count in (3, 11):
        config = validated(settings(ledger=str(tmp_path / f"{count}.jsonl")))
        private = draw_folder(tmp_path / f"private-{count}", count)
        begun = run.prepare(config, private, None, tmp_path / f"{count}.run", plan)
        run._intake(begun, config, begun.facts, plan, begun.ledger, run.silent, False)
        (line,) = (entry for entry in begun.ledger.entries() if entry["kind"] == "plan")
        lines.append([line[name] for name in ("epsilon", "delta", "rdp", "attempts", "plan_sha256", "unit")])
    assert lines[0] == lines[1]
    assert lines[0][:2] == [plan.planned_epsilon, plan.delta]


def test_captions_of_private_records_are_read_nowhere() -> None:
    """`Entry.text` has no reader: no prompt, vocabulary or release can come from it."""
    own = [ROOT / "run.py", ROOT / "api.py", ROOT / "evaluation.py", *ROOT.glob("cli*.py")]
    for room in ("privacy", "methods", "workflows", "audit"):
        own += (ROOT / room).rglob("*.py")
    for path in own:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and node.attr == "text"), f"{path.name}:{node.lineno}"
