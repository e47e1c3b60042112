"""Small real runs for tests of sessions and training: a plan, a ledger, records, a learner."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.privacy.captions import Describe
from sfumato.privacy.ledger import Charge, Ledger
from sfumato.privacy.noise import Noise
from sfumato.privacy.plan import HistogramTouch, Plan, SumTouch, Touch, TrainingTouch
from sfumato.privacy.records import Rows
from sfumato.privacy.session import Session
from sfumato.privacy.training import Crew
from tests.privacy.memory_source import Picture, held, picture

TOUCHES: tuple[Touch, ...] = (
    HistogramTouch("votes", cells=1, rounds=3, scale=2.0),
    SumTouch("sum", clip_norm=1.0, attempts=2, noise_multiplier=2.0),
    TrainingTouch("training", sampling_rate=0.5, steps=6, noise_multiplier=2.0, clip_norm=1.0, rows=2, slack=1e-6),
)
PICTURES = [picture(number, label="ab"[number % 2], person=f"p{number % 7}") for number in range(30)]


def plan(touches: Sequence[Touch] = TOUCHES, unit: str = "image") -> Plan:
    return Plan(unit=unit, epsilon=50.0, delta=1e-5, touches=tuple(touches), main=touches[-1].name)  # type: ignore[arg-type]


def session(
    folder: Path,
    *,
    noise: Noise | None = None,
    pictures: Sequence[Picture] = PICTURES,
    unit: str = "image",
    touches: Sequence[Touch] = TOUCHES,
    classes: Sequence[str] | None = ("a", "b"),
    describe: Describe | None = None,
) -> Session:
    """Opens the run in `folder`, making it on the first call; a second call is a resumption."""
    folder.mkdir(exist_ok=True)
    noise = noise or Noise()
    planned, ledger = plan(touches, unit), Ledger.open("test", folder / "ledger.jsonl")
    if "run" not in ledger.runs():
        ledger.charge(
            "run", Charge(10.0, 1e-5), planned.attempts(), planned.sha256(), unit, "0" * 64,
            not_private=not noise.private,
        )  # fmt: skip
    records = held(pictures, folder / "private", unit=unit, classes=classes, describe=describe)  # type: ignore[arg-type]
    return Session(records, planned, ledger, "run", folder, noise)


def sum_of_step(session: Session, learner: TinyLearner, chunk: int = 4, workers: int = 2) -> Tensor:
    """The un-noised clipped sum over all records at step 3."""
    everyone, touch = np.arange(session.records._size()), session.touch("training", TrainingTouch)
    with contextlib.closing(Crew(learner, touch, chunk, "fp32", workers)) as crew:
        return crew.clipped_sum(session.records, 3, everyone).clone()


class TinyLearner:
    """Fits a linear map to pictures with plain gradient steps; its loss uses per-record draws."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        with torch.no_grad():
            for number, parameter in enumerate(self.model.parameters()):
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter) * (number + 1))
        self.steps: list[int] = []

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        jitter = rows.draws.normal("jitter", 2, 64).view(-1, 1, 8, 8)
        return (model(rows.images / 255 + 0.1 * jitter) - rows.labels[:, None]).square().sum(1)  # type: ignore[no-any-return]

    def update(self, gradient: Mapping[str, Tensor], step: int) -> None:
        self.steps.append(step)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter -= 0.1 * gradient[name]

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(dict(state))
