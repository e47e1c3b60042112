"""Labels of the images that a run draws."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from sfumato._files import write_json
from sfumato.config import RunConfig
from sfumato.methods.labelcheck import LabelCheckConfig
from sfumato.methods.privimage_model import stamped
from sfumato.methods.shares import CLASS_SHARES, ballots, labels_by, request, shares_from
from sfumato.privacy.plan import Request
from sfumato.privacy.session import Session
from sfumato.report.facts import SEEN
from sfumato.workflows import Work

_FILE = "class-shares.json"


def checked_labels(check: LabelCheckConfig, config: RunConfig) -> dict[str, str]:
    """What a release says of its labels, if a label check gave them."""
    return {"labels": SEEN} if check.spent(len(config.classes or ())) else {}


def share_requests(config: RunConfig) -> tuple[Request, ...]:
    """The touch that buys class shares, where they are to be bought."""
    return (request(),) if config.class_shares == "bought" else ()


def buy_shares(work: Work, session: Session) -> None:
    """Makes the touch, if it was asked for, and keeps what it released."""
    if work.config.class_shares == "bought":
        noisy = session.noisy_histogram(CLASS_SHARES, ballots, len(work.config.classes or ()))
        facts = {"noisy_counts": noisy.tolist(), "shares": shares_from(noisy)}
        write_json(work.folder / stamped(_FILE, not session.noise.private), facts, mode=0o600)


def labels_of(work: Work, count: int, seed: int) -> Tensor:
    """Labels int64 `(count,)`: classes in turn, or by the shares that were declared or bought; -1 without classes."""
    classes, shares = len(work.config.classes or ()), work.config.class_shares
    if not classes:
        return torch.full((count,), -1)
    if shares == "uniform":
        return torch.arange(count) % classes
    return labels_by(bought_shares(work)["shares"] if shares == "bought" else shares, count, seed)


def bought_shares(work: Work) -> dict[str, Any]:
    """Noisy counts and shares that a finished run bought; empty where none were."""
    for not_private in (False, True):
        file = work.folder / stamped(_FILE, not_private)
        if file.exists():
            found: dict[str, Any] = json.loads(file.read_text())
            return found
    return {}
