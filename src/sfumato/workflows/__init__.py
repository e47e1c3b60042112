"""What `run.py` asks of a method, and which method answers.

A workflow ties a method, which knows nothing of settings files and folders, to a run, which knows nothing of the
method. A new method is a file in `methods/`, a file here, and a name in `_HOMES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from sfumato.config import RunConfig
from sfumato.hardware import Hardware
from sfumato.privacy.captions import Describe
from sfumato.privacy.plan import Request
from sfumato.privacy.session import Session

Report = Callable[[str, int, int | None], None]
"""Told (stage, steps done, steps in all or None); only numbers that are public or expected go through it."""

READING = "reading public images"


@dataclass(frozen=True)
class Work:
    """A run as its workflow sees it.

    Attributes:
        folder: private folder of the run.
        config: its settings.
        facts: what `prepare` gave, by name.
        models: the user's own model objects, by the name of their setting.
    """

    folder: Path
    config: RunConfig
    facts: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """Images that are to be drawn from a finished run.

    Attributes:
        count: of them.
        seed: public; another seed gives other images.
        prompts: public texts to draw under, where the model hears captions, in place of the run's own.
        keep: folder of this drawing and no other, for its parts until it is complete; None keeps nothing.
    """

    count: int
    seed: int
    prompts: tuple[str, ...] = ()
    keep: Path | None = None


class Drawn(NamedTuple):
    """Images of a finished run.

    Attributes:
        pixels: uint8 `(N, C, H, W)`.
        labels: int64 `(N,)`, or None in an unconditional run.
        texts: a caption each, or None.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    texts: list[str] | None = None


def gathered(parts: Iterable[NDArray[np.uint8]], count: int, report: Report) -> NDArray[np.uint8]:
    """`count` images that come in parts, as one array `(count, C, H, W)`."""
    found: list[NDArray[np.uint8]] = []
    for part in parts:
        found.append(part)
        report("sampling", sum(map(len, found)), count)
    return np.concatenate(found)


class Workflow(Protocol):
    """A method within a run."""

    def requests(self, config: RunConfig) -> tuple[Request, ...]:
        """The touches that it asks the plan for, from public settings."""

    def prepare(self, work: Work, private: Path | None, others: tuple[Path, ...]) -> dict[str, Any]:
        """Checks everything public that the run needs, and gives facts to be kept, JSON values; opens no private file.

        Raises:
            UserError: something is missing or does not suit the settings.
        """

    def describe(self, work: Work) -> Describe | None:
        """What embeds captions of private images, for private training alone; None where they are not to be read."""

    def fit(self, work: Work, session: Session, report: Report, hardware: Hardware) -> Any:
        """Spends the budget, or what a crash left of it; the model is complete and saved in the folder."""

    def load(self, work: Work, not_private: bool) -> Any:
        """The model that `fit` saved."""

    def draw(self, work: Work, model: Any, wanted: Wanted, report: Report, hardware: Hardware) -> Drawn:
        """Images in the class shares of the settings; free."""

    def public_inputs(self, work: Work) -> tuple[str, ...]:
        """What of the world outside went into the run, a sentence each."""

    def released(self, work: Work, not_private: bool) -> dict[str, Any]:
        """Released values besides the images, for the report; empty before there are any."""


_HOMES = {
    "privimage": "sfumato.workflows.privimage",
    "spti": "sfumato.workflows.evolution",
    "private-evolution": "sfumato.workflows.evolution",
    "spectral": "sfumato.workflows.spectral",
}


def workflow(method: str) -> Workflow:
    """The workflow of the method called `method`, one of those that `RunConfig` allows."""
    return cast(Workflow, importlib.import_module(_HOMES[method]).WORKFLOWS[method])
