"""Checks of what is finished: releases against their manifest and statement, ledgers against what releases quote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.data.release import verify_release
from sfumato.errors import SfumatoError, UserError
from sfumato.privacy.ledger import TORN, Ledger
from sfumato.privacy.plan import Plan


def verify(folder: Path, dataset: str | None = None, ledger: Path | None = None) -> tuple[list[str], list[str]]:
    """Checks a release.

    Args:
        folder: the release.
        dataset: compare with this user's ledger of that data set.
        ledger: compare with this ledger file.

    Returns:
        Problems, and what was found in order; sentences.
    """
    if not folder.is_dir():
        raise UserError(f"There is no release folder {folder}.")
    problems = [str(finding) for finding in verify_release(folder)]
    checked = [] if problems else ["The files are those of the manifest, and the release is complete."]
    try:
        statement = json.loads((folder / "privacy.json").read_text())
        plan = Plan.from_json(statement["plan"])
        recomputed = plan.claimed_epsilon(statement["executed"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SfumatoError) as error:
        return [*problems, f"privacy.json cannot be read as a statement ({type(error).__name__})."], checked
    if recomputed > statement["epsilon"] or plan.delta > statement["delta"]:
        problems.append(
            f"The plan costs epsilon {recomputed:g}, more than the {statement['epsilon']:g} that is stated."
        )
    elif plan.sha256() != statement["plan_sha256"]:
        problems.append("The statement's plan is not the one whose hash it quotes.")
    else:
        checked.append(f"The plan, priced again, costs epsilon {recomputed:g} at delta {plan.delta:g}, as stated.")
    if statement["not_private"]:
        problems.append("NOT PRIVATE: the release comes from a run with test noise.")
    if dataset is not None or ledger is not None:
        found = _against(Ledger.open(dataset or "given", ledger), statement)
        problems += found
        if not found:
            checked.append("The ledger holds the line that the release quotes, and its chain is whole up to there.")
    return problems, checked


def ledger_problems(dataset: str, path: Path | None, release: Path | None) -> list[str]:
    """What is wrong with a ledger, against what a release quotes of it."""
    ledger = Ledger.open(dataset, path)
    if release is None:
        return _broken(ledger)
    try:
        statement = json.loads((release / "privacy.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{release} holds no privacy.json that can be read.") from error
    return _against(ledger, statement)


def _against(ledger: Ledger, statement: dict[str, Any]) -> list[str]:
    quoted = statement["data_set"]
    return _broken(ledger, (quoted["ledger_line"], quoted["ledger_hash"]))


def _broken(ledger: Ledger, against: tuple[int, str] | None = None) -> list[str]:
    """Problems of a ledger; a line that a crash cut short is none, since the next append heals it."""
    return [problem for problem in Ledger.verify(ledger.path, against) if problem != TORN]


def ledger_report(dataset: str, path: Path | None, as_json: bool) -> str:
    """The cap, the sum and the runs of a ledger, as text or JSON."""
    ledger = Ledger.open(dataset, path)
    cap, spent, (line, head) = ledger.cap(), ledger.spent(), ledger.head()
    if line < 0:
        raise UserError(f"Nothing was ever spent on '{dataset}': there is no ledger at {ledger.path}.")
    runs = [
        {
            "run": name,
            "epsilon": run.charge.epsilon,
            "delta": run.charge.delta,
            "state": run.status,
            "not_private": run.not_private,
            "attempts": {touch: [run.used.get(touch, 0), bought] for touch, bought in run.planned.items()},
        }
        for name, run in ledger.runs().items()
    ]
    if as_json:
        facts = {
            "dataset": dataset,
            "cap": cap and {"epsilon": cap.epsilon, "delta": cap.delta, "filter": cap.filter},
            "spent": {"epsilon": spent.epsilon, "delta": spent.delta},
            "looks": ledger.looks(),
            "head": [line, head],
            "runs": runs,
        }
        return json.dumps(facts, indent=2)
    lines = [
        f"{dataset}: spent epsilon {spent.epsilon:g}, delta {spent.delta:g}"
        + (f" of a cap of epsilon {cap.epsilon:g}, delta {cap.delta:g} ({cap.filter})" if cap else ", no cap"),
        f"ledger {ledger.path}, line {line}, {ledger.looks()} look(s)",
    ]
    for run in runs:
        used = ", ".join(f"{touch} {a} of {b}" for touch, (a, b) in run["attempts"].items())  # type: ignore[attr-defined]
        stamp = "  NOT PRIVATE" if run["not_private"] else ""
        lines.append(
            f"  {run['run']}  {run['state']}  epsilon {run['epsilon']:g}, delta {run['delta']:g}  {used}{stamp}"
        )
    return "\n".join(lines)
