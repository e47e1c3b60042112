"""What is charged follows from public values alone, and captions of private records go into private training alone."""

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


def test_captions_of_private_records_are_read_by_records_alone() -> None:
    """`Entry.text` has one reader in a run, which keeps vectors: no prompt, vocabulary or release can come from it."""
    own = [*ROOT.glob("*.py")]
    for room in ("privacy", "methods", "workflows", "audit", "measure"):
        own += sorted((ROOT / room).rglob("*.py"))
    readers = [
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path in own
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "text"
    ]
    # The second is an internal look, on the ledger; the third writes stand-ins and knows no others.
    assert {reader for reader in readers if not reader.startswith("audit/inserted.py")} == {
        "privacy/records.py: entry.text",
        "measure/images.py: entry.text",
    }


def test_vectors_of_captions_are_asked_for_by_private_training_alone() -> None:
    """Votes, sums and features get chunks without them (`tests/privacy/test_captions.py` sees it happen)."""
    asking = [
        path.relative_to(ROOT).as_posix()
        for path in sorted(ROOT.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("_chunks")
        if any(word.arg == "captions" for word in node.keywords) or len(node.args) > 5
    ]
    assert set(asking) == {"privacy/training.py"}
