"""Touch 3: private training. T noisy sums of clipped gradients on Poisson samples (DP-SGD, Abadi et al. 2016).

The caller brings a `Learner`: a model, a loss per row, and what to do with a noisy gradient. It never sees a loss, a
batch or its size.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Literal, Protocol

import numpy as np
import torch
import torch.distributed as distributed
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from sfumato.errors import PrivacyRefusal, UserError
from sfumato.privacy.gradients.engine import ClippedGradients, Clipping
from sfumato.privacy.noise import Noise
from sfumato.privacy.plan import TrainingTouch
from sfumato.privacy.records import PrivateRecords, Rows
from sfumato.privacy.session import Session

_FEW = 8  # records on which a model is examined
_TRIALS = 3  # of the speed


class Graded(Protocol):
    """What gradients are taken of: all that a `Crew` asks for."""

    @property
    def model(self) -> nn.Module:
        """The module whose trained parameters receive gradients."""

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        """One loss per row, `(R K,)`, of `model` or a copy of it; row by row, its randomness from `rows.draws` alone.

        Called from several threads at once.
        """


class Learner(Graded, Protocol):
    """What private training trains.

    `state` must hold everything that the next step depends on (weights, optimiser, averages), because it is all that
    survives a crash; it is formed from noisy gradients only.
    """

    def update(self, gradient: Mapping[str, Tensor], step: int) -> None:
        """Takes one optimiser step with the noisy mean gradient of each trained parameter; `step` counts from 1."""

    def state(self) -> dict[str, Tensor]:
        """Everything the next step depends on."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave."""


def private_training(
    session: Session,
    name: str,
    learner: Learner,
    *,
    divisor: float,
    chunk: int = 128,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Iterator[int]:
    """Runs the planned training, or what a crash left of it; yields the number of attempts used after each step.

    Where `torch.distributed` is initialised, all its processes call this on the same records; each works on its share
    of a step's records. The first one alone draws masks and noise, and writes ledger and values.

    Args:
        session: the run's access to its records.
        name: the planned touch.
        learner: what is trained; brought to its last durable state first.
        divisor: public constant that the noisy sum is divided by, usually the expected batch size.
        chunk: records per forward pass; changes speed and memory, never the result beyond rounding. Halved after an
            out-of-memory error, with the same records, draws and noise.
        precision: of forward and backward passes.

    Guarantee:
        Step t adds, for each record chosen with probability `sampling_rate`, a vector of norm at most
        `clip_norm (1 + slack)` to the sum, then noise of standard deviation `noise_multiplier clip_norm (1 + slack)`
        once, whatever the number of chunks. At most `steps` intents are written. A step that a crash interrupts is
        lost, not repeated. Nothing but the noisy sum leaves this function: no loss, no batch size.

    Does not cover:
        The time a step takes, which tells about the size of its batch (the threat model says so). What processes tell
        each other: masks and un-noised sums pass between them.
    """
    touch, team = session.touch(name, TrainingTouch), Team()
    team.refuse_differences(session.records)
    latest = session.latest(name) if team.leads else None
    if stored := team.told_bytes(latest.read_bytes() if latest is not None else b""):
        learner.load_state(load(stored))
    made = team.told_number(session.attempts_made(name))
    deviation = touch.noise_multiplier * touch.clip_norm * (1 + touch.slack)
    with contextlib.closing(Crew(learner, touch, chunk, precision, processes=team.size)) as crew:
        while made < touch.steps:
            attempt = team.told_number(session.begin(name) if team.leads else 0)
            mask = np.zeros(session.records._size(), dtype=np.bool_)
            if team.leads:
                mask |= session.noise.poisson_mask(len(mask), touch.sampling_rate)
            chosen = np.flatnonzero(team.told(torch.from_numpy(mask)).numpy())
            total = team.sum(crew.clipped_sum(session.records, attempt, chosen[team.rank :: team.size]))
            if team.leads:
                noise = torch.from_numpy(session.noise.gaussian(total.numel(), deviation))
                total = total + noise.to(total.device)
            learner.update(crew.shaped((team.told(total) / divisor).float()), attempt)
            if team.leads:
                session.finish(name, attempt, save(learner.state(), {"attempt": str(attempt)}))
                if latest is not None:
                    latest.unlink()
                latest = session.file(name, attempt)
            made = attempt
            yield attempt


class Team:
    """The processes of `torch.distributed` where it is initialised, else this one alone.

    Guarantee:
        The first process, `leads`, decides; the others are told. Nobody but the first learns a sum before its noise:
        what `sum` gives to others is meaningless.
    """

    def __init__(self) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.rank, self.size = (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def told(self, values: Tensor) -> Tensor:
        """What the first process gives, in all of them; of one shape and kind."""
        if self.size > 1:
            distributed.broadcast(values, 0)
        return values

    def told_number(self, value: int) -> int:
        """`told` for a number."""
        return int(self.told(torch.tensor([value])))

    def told_bytes(self, data: bytes) -> bytes:
        """`told` for bytes of any length."""
        values = torch.frombuffer(bytearray(data + b"."), dtype=torch.uint8)  # not empty
        size = self.told_number(len(values))
        values = values if self.leads else torch.empty(size, dtype=torch.uint8)
        return self.told(values).numpy().tobytes()[:-1]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of what all give, in the first process."""
        if self.size > 1:
            values = values.clone()
            distributed.reduce(values, 0)
        return values

    def refuse_differences(self, records: PrivateRecords) -> None:
        """Refuses processes that hold other records, or hold them in another order, than the first."""
        if self.size == 1:
            return
        digest = hashlib.sha256(records._identities.tobytes() + records._starts.tobytes())
        if records._captions is not None:
            digest.update(records._captions.starts.tobytes() + records._captions.vectors.tobytes())
        mine = digest.digest()
        if self.told_bytes(mine) != mine:
            raise UserError("The processes of this training read different folders; give each the same one.")


class Crew:
    """Threads that share the chunks of a step, one core each.

    At these sizes a core that works alone on its own chunk is faster than all cores on every product, and much faster
    beside other programs, which make every product wait for the slowest core.

    Guarantee:
        One thread works on a chunk, on its own copy of the model; sums are added in float64.

    Does not cover:
        Noise, which `private_training` adds once to the sum of all.
    """

    def __init__(
        self,
        learner: Graded,
        touch: TrainingTouch,
        chunk: int,
        precision: Literal["fp32", "bf16"],
        workers: int | None = None,
        processes: int = 1,
    ) -> None:
        """`workers`: by default as many as PyTorch has threads on a processor, and one on a GPU.

        `processes`: how many crews share the records of a step.
        """
        on_processor = next(learner.model.parameters()).device.type == "cpu"
        workers = workers or (torch.get_num_threads() if on_processor else 1)
        self._learner, self._touch, self._chunk = learner, touch, chunk
        self._room = touch.grouped // processes
        self._threads, self._examined = torch.get_num_threads(), False
        # The same threads for all steps: each thread has a heap of its own, and new ones would add up.
        self._pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
        clipping = Clipping(touch.clip_norm, touch.clipping)
        self._engines: list[ClippedGradients] = []
        for number in range(workers):
            self._engines.append(
                ClippedGradients(
                    learner.model if number == 0 else copy.deepcopy(learner.model),
                    clipping,
                    rows=touch.rows,
                    groups=touch.grouped > 0,
                    precision=precision,
                    beside=self._engines[0] if number else None,
                )
            )

    def shaped(self, vector: Tensor) -> dict[str, Tensor]:
        """`ClippedGradients.shaped`."""
        return self._engines[0].shaped(vector)

    def clipped_sum(self, records: PrivateRecords, attempt: int, chosen: NDArray[np.int64]) -> Tensor:
        """The un-noised sum over the chosen records. Private: for `private_training` and the sensitivity tests.

        Out of memory, it starts again with half the chunk and the same records and draws.
        """
        weights = self._engines[0].model.state_dict()
        for engine in self._engines[1:]:
            engine.model.load_state_dict(weights)

        def work(number: int, engine: ClippedGradients) -> None:
            share, crew = chosen[self._places(number, len(chosen))], len(self._engines)
            chunks = records._chunks(share, self._chunk, self._touch.rows, self._touch.name, attempt, captions=True)
            for turn, (rows, _) in enumerate(chunks):
                so_far = (turn * crew + number + 1) * self._chunk  # records in the chunks of all engines up to this one
                self._add(engine, rows, min(so_far, len(chosen)) <= self._room)

        while True:
            try:
                self._examine(records, attempt, chosen)
                return self._sum(work)
            except (MemoryError, RuntimeError) as error:
                if self._chunk == 1 or not _out_of_memory(error):
                    raise
                self._chunk //= 2
                for engine in self._engines:
                    engine.release()

    def _examine(self, records: PrivateRecords, attempt: int, chosen: NDArray[np.int64]) -> None:
        """Refuses, once, a learner in whose losses records meet, as far as a few records show it."""
        few = min(_FEW, self._chunk)
        if self._examined or not len(chosen):
            return
        (rows, _), *_ = records._chunks(chosen[:few], few, self._touch.rows, self._touch.name, attempt, captions=True)
        moved, engine = rows.to(self._engines[0].device), self._engines[0]
        engine.examine(lambda: self._learner.loss(engine.model, moved), few)
        refuse_influence(self._learner, engine.model, moved)
        self._examined = True

    def rows_per_second(self, rows: Rows, chunks: int = 8) -> float:
        """The speed of private training on this machine, on `rows` that hold no record: random images of one chunk."""

        def seconds(count: int) -> float:
            def work(_: int, engine: ClippedGradients) -> None:
                for _ in range(count):
                    self._add(engine, rows, self._room > 0)

            begun = time.perf_counter()
            self._sum(work)
            return time.perf_counter() - begun

        seconds(1)  # the first time, memory is asked for and kernels are chosen
        quickest = min(seconds(chunks) for _ in range(_TRIALS))  # what slows one down is seldom there for an hour
        return chunks * len(self._engines) * len(rows.labels) / quickest

    def seconds_beside(self, learner: Learner) -> float:
        """What a step costs beside its records: noise, and an update with it. Spoils the learner's model."""
        begun = time.perf_counter()
        noise = torch.from_numpy(Noise().gaussian(self._engines[0].total.numel(), 1.0))
        learner.update(self.shaped(noise.float()), 1)
        return time.perf_counter() - begun

    def _places(self, number: int, count: int) -> NDArray[np.bool_]:
        """Which of `count` records an engine works on: every so many chunks."""
        mine: NDArray[np.bool_] = np.arange(count) // self._chunk % len(self._engines) == number
        return mine

    def _sum(self, work: Callable[[int, ClippedGradients], object]) -> Tensor:
        """Lets every thread add to its engine, from zero; returns the sum of all, which the next call overwrites."""

        for engine in self._engines:
            engine.reset()
        jobs = [self._pool.submit(work, number, engine) for number, engine in enumerate(self._engines)]
        wait(jobs)  # all of them, so that no thread is still at an engine that starts again
        for job in jobs:
            job.result()
        # Large transformers have one sum.
        first, *others = {id(engine.sum): engine for engine in self._engines}.values()
        for other in others:
            first.total.add_(other.total)
        return first.total

    def _add(self, engine: ClippedGradients, rows: Rows, room: bool) -> None:
        moved = rows.to(engine.device)
        engine.add(lambda: self._learner.loss(engine.model, moved), moved.present, room)

    def close(self) -> None:
        """Ends the threads and gives PyTorch its own back."""
        self._pool.shutdown()
        torch.set_num_threads(self._threads)


@torch.no_grad()
def refuse_influence(learner: Graded, model: nn.Module, rows: Rows) -> None:
    """Refuses a loss that is another one when other records are blank: a mean over the batch, a shared generator.

    Args:
        learner: whose loss it is.
        model: it, or a copy.
        rows: of a few records.

    Raises:
        PrivacyRefusal: the loss of a row moved by more than a thousandth.
    """
    each = len(rows.labels) // len(rows.present)
    halves = torch.tensor([record.bit_count() % 2 == 0 for record in range(len(rows.present))])
    before = learner.loss(model, rows).float()
    for half in (halves, ~halves):
        others = half.repeat_interleave(each).to(rows.labels.device)
        images = torch.where(others.view(-1, *[1] * (rows.images.dim() - 1)), 0, rows.images)
        labels = torch.where(others, rows.labels[0], rows.labels)
        captions = None if rows.captions is None else torch.where(others[:, None], 0.0, rows.captions)
        after = learner.loss(model, rows._replace(images=images, labels=labels, captions=captions)).float()
        moved = (after - before).abs() > 1e-3 * (1e-3 + before.abs() + after.abs())  # never where one is not finite
        if bool((moved & ~others).any()):
            raise PrivacyRefusal("The loss of a record depends on which other records are in its chunk.")


def _out_of_memory(error: Exception) -> bool:
    """On GPUs, of NumPy, or on processors, where PyTorch has no class of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
