"""What an evolution releases: the candidates that won, and as many images from them as wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato._files import write_json
from sfumato.errors import UserError
from sfumato.methods.candidates import Candidates, Flags, Numbers
from sfumato.methods.parts import Parts
from sfumato.pretrained.interfaces import Images, Upscaler
from sfumato.pretrained.renders import Renders

FILE = "population.json"


class Round(NamedTuple):
    """What is worth telling of one round.

    Attributes:
        cells: candidates that could be voted for.
        votes: sum of the noisy votes.
        best: captions of the best candidates, best first.
    """

    cells: int
    votes: int
    best: list[str]


@dataclass(frozen=True)
class Population:
    """The survivors of the last round, best first.

    Attributes:
        candidates: where their images are; only `images` of it is used here.
        numbers: of the survivors.
        texts: their captions, empty where there are none.
        labels: their classes, int64 `(n,)`.
        estimates: what the rounds say of each, float64 `(n,)`.
        rounds: one a histogram.
        drawn: whether the survivors have images; they have none where captions voted.
        not_private: the votes come from a run with test noise.
    """

    candidates: Candidates
    numbers: Numbers
    texts: list[str]
    labels: Numbers
    estimates: NDArray[np.float64]
    rounds: list[Round]
    drawn: bool
    not_private: bool

    def save(self, folder: Path) -> None:
        """Writes `population.json`; a run with test noise is NOT PRIVATE in name and content."""
        value = {
            "part": self.candidates.part,
            "starts": self.candidates.starts,
            "numbers": self.numbers.tolist(),
            "texts": self.texts,
            "labels": self.labels.tolist(),
            "estimates": self.estimates.tolist(),
            "rounds": [one._asdict() for one in self.rounds],
            "drawn": self.drawn,
        }
        stamp = {"privacy": "NOT PRIVATE"} if self.not_private else {}
        write_json(folder / _name(self.not_private), value | stamp, mode=0o600)

    @classmethod
    def load(cls, folder: Path, not_private: bool) -> Population:
        """Reads what `save` wrote.

        Raises:
            UserError: it is missing or broken.
        """
        try:
            value = json.loads((folder / _name(not_private)).read_text())
            candidates = Candidates(folder / "candidates", value["part"])
            candidates.starts = list(value["starts"])
            return cls(
                candidates,
                np.array(value["numbers"], np.int64),
                value["texts"],
                np.array(value["labels"], np.int64),
                np.array(value["estimates"], np.float64),
                [Round(**one) for one in value["rounds"]],
                value["drawn"],
                not_private,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} holds no population that Sfumato wrote.") from error

    def places(self, count: int, classes: int) -> NDArray[np.int64]:
        """Survivors for `count` images in equal shares of the classes: the best first, and again from the best."""
        found = np.zeros(count, dtype=np.int64)
        for label in range(classes):
            own = np.flatnonzero(self.labels == label)
            wanted = np.flatnonzero(np.arange(count) % classes == label)
            found[wanted] = own[np.arange(len(wanted)) % len(own)]
        return found


def _name(not_private: bool) -> str:
    return FILE.replace(".", "-NOT-PRIVATE.") if not_private else FILE


def images_of(
    population: Population,
    places: NDArray[np.int64],
    more: Callable[[NDArray[np.int64], int], Renders],
    *,
    as_they_are: bool,
    part: int,
    finish: Callable[[Images], Images],
    keep: Path | None = None,
) -> Iterator[Images]:
    """Images of survivors, part by part: their own where they are asked for the first time, else new ones.

    Args:
        population: the survivors.
        places: which of them, one an image.
        more: makes new images for some places, given the number of the first; what fails is replaced by the survivor's
            own image.
        as_they_are: whether the first image of a survivor is the very one that won.
        part: images at a time.
        finish: what is done to every image last (`to_size`).
        keep: folder where parts are kept, not to be made again when this is called again.
    """
    parts = Parts(keep)
    first = np.zeros(len(places), dtype=np.bool_)
    first[np.unique(places, return_index=True)[1]] = as_they_are and population.drawn

    def made(begin: int) -> torch.Tensor:
        asked, own = places[begin : begin + part], first[begin : begin + part]
        images = finish(_images(population, asked, own, lambda some: more(some, begin)))
        return torch.from_numpy(np.ascontiguousarray(images))

    for begin in range(0, len(places), part):
        yield parts.next(len(places[begin : begin + part]), partial(made, begin)).numpy()


def _images(population: Population, asked: Numbers, own: Flags, more: Callable[[Numbers], Renders]) -> Images:
    """Images of the survivors `asked`: their own where `own` says so, or where no new one could be made."""
    own, renders = own.copy(), None
    if not own.all():
        renders = more(asked[~own])
        if population.drawn:
            own[np.flatnonzero(~own)[~renders.made]] = True
        made = renders.images[renders.made] if population.drawn else renders.images
    if own.any():
        kept = population.candidates.images(population.numbers[asked[own]])
        images = np.empty((len(asked), *kept.shape[1:]), np.uint8)
        images[own] = kept
    if renders is not None and not own.all():
        if not own.any():
            images = np.empty((len(asked), *made.shape[1:]), np.uint8)
        images[~own] = made
    return images


def to_size(images: Images, upscaler: Upscaler | None, size: Sequence[int] | None) -> Images:
    """Images at the size of a release: enlarged by the upscaler, until they are large enough if a size is asked for,
    then resized to it (antialiased bicubic).
    """
    if upscaler is not None:
        images = upscaler.upscale(images)
        while size is not None and (images.shape[2] < size[0] or images.shape[3] < size[1]):
            images = upscaler.upscale(images)
    if size is not None and images.shape[2:] != tuple(size):
        resized = torch.nn.functional.interpolate(
            torch.from_numpy(images).float(), tuple(size), mode="bicubic", antialias=True, align_corners=False
        )
        images = resized.round().clamp(0, 255).to(torch.uint8).numpy()
    return images
