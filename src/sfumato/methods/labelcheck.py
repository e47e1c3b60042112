"""A private classifier that says which class a drawn picture shows: under that class it is released.

A generator that had to learn under noise mixes classes up: of what it draws as a shirt, much is a coat. Telling classes
apart is far easier to learn than drawing them, so a small share of the budget buys a linear classifier on features
that public pictures have chosen (`nets/scattering.py`). It costs one touch, private training; judging what was drawn is
post-processing.

Pictures are not thrown away for being drawn as something else. Those near the border of two classes are what teaches
others where the border runs: on a stand-in, to draw anew what disagrees helped little more than half as much as to name
all by what they show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sfumato._files import write_atomic
from sfumato.errors import PrivacyRefusal
from sfumato.methods.denoising import Image
from sfumato.nets.leaves import dead_leaves
from sfumato.nets.scattering import ScatteringClassifier, kept
from sfumato.privacy.gradients.engine import rounding_slack
from sfumato.privacy.plan import TrainingRequest, TrainingTouch
from sfumato.privacy.records import Rows
from sfumato.privacy.session import Session
from sfumato.privacy.training import private_training

LABEL_CHECK = "label check"

LOOKED_AT = 4096
"""Public pictures that choose the features."""

_CLEAR, _BLIND = 0.02, 0.2
"""Norm of the whole training's noise, see `noise`: where less of it gains little, and where it learns nothing."""
_LEAST_SHARE, _LARGEST_SHARE = 0.02, 0.1  # of mu^2
_CALM, _FASTEST, _MOMENTUM = 0.03, 8.0, 0.9  # of gradient descent: rate times noise, largest rate
_LARGEST_RATE = 0.25
_CHUNK = 256
_WAITING = 2_000  # pictures kept for later places

View = Callable[[Tensor], Tensor]
"""What the classifier sees of things, as pictures float32 `(N, C, H, W)` from 0 to 255; row by row."""


class LabelCheckConfig(BaseModel):
    """Settings of the label check.

    Attributes:
        share: share of mu^2 that it may spend; 0 leaves it out. By default as much as the classifier needs, from
            epsilon, classes and the declared size; nothing where none is declared, or where it could learn nothing.
        batch: expected records per step, at most a quarter of all.
        rate_without_size: sampling rate where no size is declared.
        steps: of private training.
        tries: how often pictures are drawn, at most, for places of classes that too few pictures show.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float | None = Field(None, ge=0, lt=1)
    batch: int = Field(2048, ge=1)
    rate_without_size: float = Field(0.03, gt=0, le=1)
    steps: int = Field(100, ge=1, le=100_000)
    tries: int = Field(4, ge=1, le=100)

    def settled(self, image: Image, classes: int, size: int | None, mu: float) -> LabelCheckConfig:
        """With the share that follows from public values, if none was set.

        Args:
            image: `(C, H, W)`.
            classes: declared.
            size: declared number of records.
            mu: Gaussian-DP parameter of the whole run.
        """
        if self.share is not None:
            return self
        share = 0.0
        if classes > 1 and size is not None:
            at_all = noise(image, classes, size, mu)
            share = min(max((at_all / _CLEAR) ** 2, _LEAST_SHARE), _LARGEST_SHARE)
            share = share if at_all / math.sqrt(share) <= _BLIND else 0.0
        return self.model_copy(update={"share": share})

    def spent(self, classes: int) -> float:
        """Share of mu^2 that a run of so many declared classes spends."""
        return (self.share or 0.0) if classes > 1 else 0.0

    def sampling_rate(self, size: int | None) -> float:
        """Poisson rate, from public values."""
        return self.rate_without_size if size is None else min(_LARGEST_RATE, self.batch / size)

    def expected_batch(self, size: int | None) -> float:
        """Records of a step, on average; public."""
        return self.sampling_rate(size) * size if size else float(self.batch)

    def request(self, size: int | None) -> TrainingRequest:
        """The touch."""
        return TrainingRequest(
            LABEL_CHECK,
            sampling_rate=self.sampling_rate(size),
            steps=self.steps,
            clip_norm=1.0,
            slack=rounding_slack(self.batch),
            share=self.share,
        )


def noise(image: Image, classes: int, size: int, mu: float) -> float:
    """Norm of what noise the whole training has at best, over the largest mean gradient: sqrt(parameters) / (mu size).

    Seen as one release of the sum over all records; see `proportions.py`.
    """
    return math.sqrt(_parameters(image, classes)) / (mu * size)


def _parameters(image: Image, classes: int) -> int:
    """Of the linear layer."""
    return (kept(image) + 1) * classes


class _Learner:
    """Logistic regression by gradient descent with momentum; what counts is the mean of the second half's weights."""

    def __init__(self, classifier: ScatteringClassifier, rate: float, steps: int, view: View) -> None:
        self.model, self._view = classifier, view
        self._rate, self._half = rate, steps // 2
        self._moments = {name: torch.zeros_like(value) for name, value in self.model.named_parameters()}
        self._sums = {name: torch.zeros_like(value) for name, value in self.model.named_parameters()}
        self._summed = torch.zeros(())

    def loss(self, model: nn.Module, rows: Rows) -> Tensor:
        """Cross-entropy of each row; none for a record of no declared class."""
        scores = model(self._view(rows.images) / 127.5 - 1)
        return F.cross_entropy(scores, rows.labels, reduction="none", ignore_index=-1)

    @torch.no_grad()
    def update(self, gradient: Mapping[str, Tensor], step: int) -> None:
        """One step; the rate stays."""
        for name, parameter in self.model.named_parameters():
            self._moments[name].mul_(_MOMENTUM).add_(gradient[name])
            parameter.sub_(self._rate * self._moments[name])
            if step > self._half:
                self._sums[name].add_(parameter)
        self._summed += step > self._half

    @torch.no_grad()
    def finished(self) -> ScatteringClassifier:
        """With the mean of the later weights; as it is if kills left no later step."""
        if self._summed:
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self._sums[name] / self._summed)
        return self.model.requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        """Weights, momentum and sums, by name; not what public pictures chose, which is on disk."""
        state = {f"model.{name}": value.detach() for name, value in self.model.named_parameters()}
        state |= {f"moment.{name}": value for name, value in self._moments.items()}
        state |= {f"sum.{name}": value for name, value in self._sums.items()} | {"summed": self._summed}
        return {name: value.clone() for name, value in state.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state` gave."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(state[f"model.{name}"])
            self._moments[name].copy_(state[f"moment.{name}"])
            self._sums[name].copy_(state[f"sum.{name}"])
        self._summed.copy_(state["summed"])


@dataclass(frozen=True)
class LabelCheck:
    """A released classifier of pictures.

    Attributes:
        classifier: its weights.
        tries: see `Sorter.fill`.
    """

    classifier: ScatteringClassifier
    tries: int

    @classmethod
    def of(cls, image: Image, weights: Mapping[str, Tensor], tries: int) -> LabelCheck:
        """From tensors that `state` gave."""
        classifier = ScatteringClassifier(image, len(weights["head.bias"]))
        classifier.load_state_dict(dict(weights))
        return cls(classifier.requires_grad_(False), tries)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save."""
        return dict(self.classifier.state_dict())

    def sorter(self, view: View = Tensor.float) -> Sorter:
        """One that has no picture yet; `view` as in `learn_check`."""
        return Sorter(self, view)


class Sorter:
    """Gives every picture to a place of the class that it shows, whatever class it was drawn for.

    Pictures are uint8 `(N, C, H, W)`, or anything else whose rows can be seen through the view.
    """

    def __init__(self, check: LabelCheck, view: View) -> None:
        self._check, self._view = check, view
        self._pictures: Tensor | None = None
        self._odds = torch.empty(0, check.classifier.head.out_features)

    @torch.inference_mode()
    def fill(self, labels: Tensor, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Pictures for the labels; pictures that are left over wait for the next call.

        For places that no waiting picture suits, pictures are drawn, at most `tries` times. What stays open then takes
        the pictures that come nearest.

        Args:
            labels: int64 `(N,)`, at least 0.
            draw: gives pictures for labels `(n,)`, others each time.
        """
        given = torch.full_like(labels, -1)
        self._match(labels, given)
        for _ in range(self._check.tries):
            open_places = torch.nonzero(given < 0)[:, 0]
            if not len(open_places):
                break
            self._add(draw(labels[open_places]))
            self._match(labels, given)
        free = self._free(given)
        for place in torch.nonzero(given < 0)[:, 0]:
            nearest = torch.where(free, self._odds[:, labels[place]], -math.inf).argmax()
            given[place], free[nearest] = nearest, False
        assert self._pictures is not None
        pictures = self._pictures[given]
        waiting = torch.nonzero(free)[-_WAITING:, 0]
        self._pictures, self._odds = self._pictures[waiting], self._odds[waiting]
        return pictures

    def _add(self, drawn: Tensor) -> None:
        seen = (self._view(part) / 127.5 - 1 for part in torch.split(drawn, _CHUNK))
        odds = [self._check.classifier(part).log_softmax(1) for part in seen]
        self._pictures = drawn if self._pictures is None else torch.cat((self._pictures, drawn))
        self._odds = torch.cat((self._odds, *odds))

    def _match(self, labels: Tensor, given: Tensor) -> None:
        """Gives open places the pictures that show their class, those first that have waited longest."""
        shown, free = self._odds.argmax(1), self._free(given)
        for label in set(labels[given < 0].tolist()):
            places = torch.nonzero((given < 0) & (labels == label))[:, 0]
            pictures = torch.nonzero(free & (shown == label))[:, 0]
            count = min(len(places), len(pictures))
            given[places[:count]] = pictures[:count]

    def _free(self, given: Tensor) -> Tensor:
        """Which pictures no place has."""
        free = torch.ones(len(self._odds), dtype=torch.bool)
        free[given[given >= 0]] = False
        return free


def learn_check(
    config: LabelCheckConfig,
    session: Session,
    image: Image,
    classes: int,
    *,
    size: int | None,
    public: Callable[[], Tensor],
    folder: Path,
    seed: int,
    progress: Callable[[int, int], None],
    view: View = Tensor.float,
) -> LabelCheck:
    """Runs the touch, or what is left of it after a crash.

    Args:
        config: settled settings.
        session: the planned touches.
        image: `(C, H, W)` of what the classifier sees.
        classes: declared, at least 2.
        size: declared number of records, or None.
        public: gives public pictures uint8 `(N, C, H, W)`, of the records' size; there may be none.
        folder: private folder of the run; keeps what public pictures chose.
        seed: of that choice; never of noise.
        progress: told attempts made, and how many there are.
        view: what it sees of images, the records' and the public ones; public and fixed.

    Raises:
        PrivacyRefusal: the run had begun to train, and what it had begun with is gone.
    """
    touch = session.touch(LABEL_CHECK, TrainingTouch)
    divisor = touch.sampling_rate * size if size else float(config.batch)
    classifier = ScatteringClassifier(image, classes)
    file = folder / "label-check.safetensors"
    if file.exists():
        classifier.load_state_dict(load_file(file))
    elif session.latest(LABEL_CHECK) is not None:
        raise PrivacyRefusal(f"What this run's label check began with is missing ({file}); start a new run.")
    else:
        classifier.look_at((view(part) / 127.5 - 1 for part in torch.split(filled_up(public(), seed), _CHUNK)), seed)
        write_atomic(file, save(classifier.state_dict()), mode=0o600)
    learner = _Learner(classifier, _rate(touch, divisor, _parameters(image, classes)), touch.steps, view)
    for step in private_training(session, LABEL_CHECK, learner, divisor=divisor, chunk=_CHUNK):
        progress(step, touch.steps)
    return LabelCheck(learner.finished(), config.tries)


def filled_up(public: Tensor, seed: int) -> Tensor:
    """`LOOKED_AT` pictures uint8 `(.., C, H, W)`: public ones by lot, and dead leaves where there are too few."""
    generator = torch.Generator().manual_seed(seed)
    chosen = public[torch.randperm(len(public), generator=generator)[:LOOKED_AT]]
    channels, height, width = public.shape[1:]
    return torch.cat((chosen, dead_leaves(LOOKED_AT - len(chosen), (channels, height, width), generator)))


def _rate(touch: TrainingTouch, divisor: float, parameters: int) -> float:
    """Of descent: the less, the more noise the whole training has, measured as in `noise`."""
    whole = touch.noise_multiplier * math.sqrt(parameters / touch.steps) / divisor
    return min(_CALM / whole, _FASTEST)
