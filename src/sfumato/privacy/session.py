"""Hands out the planned touches of one run, each written ahead, each value durable before it is used.

The order is always the same: intent on the ledger; the touch; the value in a file; `done` with its hash on the ledger;
only then does the caller see it. Killed in between, the attempt is used up. A value that had reached its file is
adopted, and no value is ever drawn twice.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sfumato._files import sha256_file, write_atomic
from sfumato.errors import InternalError, PrivacyRefusal
from sfumato.privacy.features import Embedding, Features
from sfumato.privacy.histogram import Votes, VotesOfFeatures, noisy_histogram
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.noise import Noise
from sfumato.privacy.plan import HistogramTouch, Plan, SumTouch, TrainingTouch
from sfumato.privacy.records import PrivateRecords
from sfumato.privacy.sums import Vectors, noisy_sum

T = TypeVar("T", HistogramTouch, SumTouch, TrainingTouch)


class Session:
    """One run's access to its private records: what the plan bought, and nothing else.

    Guarantee:
        Each call spends at most one attempt that the plan has priced and the ledger has recorded before any record is
        read. Attempts lost to a crash are not repeated.

    Does not cover:
        Somebody who edits the run folder or the ledger by hand (`sfumato ledger verify` finds the latter).
    """

    def __init__(
        self, records: PrivateRecords, plan: Plan, ledger: Ledger, run_id: str, folder: Path, noise: Noise
    ) -> None:
        """Opens a run that the ledger has admitted.

        Args:
            records: what is protected.
            plan: what was bought.
            ledger: where it was entered.
            run_id: under which name.
            folder: the private run folder; values go to its sub-folder `touches`.
            noise: where masks and noise come from.

        Raises:
            PrivacyRefusal: the plan is not the one that the ledger admitted, or a charged run is given test noise.
        """
        if records.unit != plan.unit:
            raise InternalError(f"the plan protects one {plan.unit}, the records are of unit {records.unit}")
        admitted = ledger.runs()[run_id]
        if admitted.plan_sha256 != plan.sha256():
            raise PrivacyRefusal("The plan of this run is not the one that its ledger admitted; restore it.")
        if admitted.not_private == noise.private:
            stamp = "NOT PRIVATE" if admitted.not_private else "private"
            raise PrivacyRefusal(f"This run was entered as {stamp} on its ledger and cannot go on with other noise.")
        self.plan, self.noise = plan, noise
        self.records, self._ledger, self._run_id = records, ledger, run_id
        self._folder = folder / "touches"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._used_here: dict[str, int] = {}

    def noisy_histogram(
        self, name: str, votes: Votes | VotesOfFeatures, cells: int, features: Features | None = None
    ) -> NDArray[np.int64]:
        """Touch 1 (`histogram.noisy_histogram`); each call is one round of the touch called `name`.

        With `features`, the records vote by them.
        """
        touch = self.touch(name, HistogramTouch)
        if features is not None and not features._of(self.records):
            raise InternalError("these are features of other records")
        records = self.records if features is None else features
        return self._value(name, lambda attempt: noisy_histogram(records, touch, attempt, votes, cells, self.noise))

    def features(
        self, name: str, embed: Embedding, dimensions: int, progress: Callable[[int], None] = lambda _: None
    ) -> Features:
        """The records embedded by a public function, once a run; releases nothing (`features.Features`)."""
        return Features(self.records, name, embed, dimensions, self._folder.parent / "private", progress)

    def noisy_sum(self, name: str, vectors: Vectors, shape: tuple[int, int]) -> NDArray[np.float64]:
        """Touch 2 (`sums.noisy_sum`); spare attempts of `name` are used only when a crash lost one."""
        touch = self.touch(name, SumTouch)
        return self._value(name, lambda attempt: noisy_sum(self.records, touch, attempt, vectors, shape, self.noise))

    def touch(self, name: str, kind: type[T]) -> T:
        """The planned touch called `name`."""
        for touch in self.plan.touches:
            if touch.name == name and isinstance(touch, kind):
                return touch
        raise InternalError(f"the plan holds no {kind.__name__} called '{name}'")

    def _value(self, name: str, draw: Callable[[int], NDArray[Any]]) -> NDArray[Any]:
        """The next value of a touch: a stored one if this process has not seen it yet, else a fresh attempt."""
        for attempt in range(self._used_here.get(name, 0) + 1, self.attempts_made(name) + 1):
            self._used_here[name] = attempt
            if (file := self.adopt(name, attempt)) is not None:
                return np.load(file, allow_pickle=False)  # type: ignore[no-any-return]
        attempt = self.begin(name)
        buffer = io.BytesIO()
        np.save(buffer, draw(attempt), allow_pickle=False)
        self.finish(name, attempt, buffer.getvalue())
        self._used_here[name] = attempt
        buffer.seek(0)
        return np.load(buffer, allow_pickle=False)  # type: ignore[no-any-return]

    def more(self, name: str) -> bool:
        """Whether a further call can give a value: a stored one not seen yet, or one of an attempt still to be made."""
        seen, made = self._used_here.get(name, 0), self.attempts_made(name)
        stored = any(self.adopt(name, attempt) is not None for attempt in range(seen + 1, made + 1))
        return stored or made < next(touch.attempts for touch in self.plan.touches if touch.name == name)

    def attempts_made(self, name: str) -> int:
        return self._ledger.attempts(self._run_id)[name].used

    def latest(self, name: str) -> Path | None:
        """The newest durable value of a touch, or None."""
        files = (self.adopt(name, attempt) for attempt in range(self.attempts_made(name), 0, -1))
        return next((file for file in files if file is not None), None)

    def file(self, name: str, attempt: int) -> Path:
        """Where the value of an attempt lies."""
        return self._folder / f"{name.replace(' ', '-')}.{attempt}"

    def begin(self, name: str) -> int:
        """Writes the intent; returns the attempt's number, from 1.

        Raises:
            PrivacyRefusal: the plan bought no further attempt.
        """
        return self._ledger.intent(self._run_id, name)

    def finish(self, name: str, attempt: int, value: bytes) -> None:
        """Makes an attempt's value durable, then records it."""
        write_atomic(self.file(name, attempt), value, mode=0o600)
        self._ledger.done(self._run_id, name, attempt, hashlib.sha256(value).hexdigest())

    def adopt(self, name: str, attempt: int) -> Path | None:
        """The file of an earlier attempt's value, or None if a crash lost it.

        Raises:
            PrivacyRefusal: the file is not what the ledger recorded.
        """
        file = self.file(name, attempt)
        recorded = self._ledger.recorded(self._run_id, name, attempt)
        if not file.exists():
            if recorded is not None:
                raise PrivacyRefusal(f"A released value of '{name}' is missing from the run folder; start a new run.")
            return None
        digest = sha256_file(file)
        if recorded is None:
            self._ledger.done(self._run_id, name, attempt, digest)
        elif recorded != digest:
            raise PrivacyRefusal(f"A released value of '{name}' was changed in the run folder; start a new run.")
        return file
