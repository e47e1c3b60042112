"""What SPTI and Private Evolution share: records vote for their nearest candidate, and noisy votes choose.

One round is one noisy histogram (Lin et al., "Differentially private synthetic data via foundation model APIs 1:
Images", ICLR 2024, algorithm 2; Aug-PE, Xie et al., ICML 2024, algorithm 1). A record votes once, in its own class. All
that follows a histogram is post-processing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.errors import UserError
from sfumato.methods.candidates import Candidates, Numbers, by_class
from sfumato.methods.voting import Nearest
from sfumato.pretrained.interfaces import Captioner, Embeddings, ImageEmbedder, Images, TextEmbedder
from sfumato.privacy.features import Embedding, Features, Voters
from sfumato.privacy.histogram import ABSTAIN, VotesOfFeatures
from sfumato.privacy.plan import HistogramRequest
from sfumato.privacy.records import Rows
from sfumato.privacy.session import Session

VOTES = "votes"
"""Name of the touch."""

Progress = Callable[[str, int, int | None], None]
"""Told (stage, steps done, steps in all); all of it is public."""


def request(rounds: int) -> HistogramRequest:
    """The only touch of either method: one cell a record and round."""
    return HistogramRequest(VOTES, cells=1, rounds=rounds)


class Round(NamedTuple):
    """One released histogram.

    Attributes:
        cells: int64 `(M,)`, the candidate of every cell.
        votes: int64 `(M,)`, noisy.
    """

    cells: Numbers
    votes: Numbers


@dataclass(frozen=True)
class Voting:
    """The rounds of one run.

    Attributes:
        session: the planned touches.
        features: what the records are compared by.
    """

    session: Session
    features: Features

    def more(self) -> bool:
        """Whether another round can be had."""
        return self.session.more(VOTES)

    def round(self, candidates: Candidates, cells: Numbers) -> Round:
        """Lets every record vote for the nearest candidate of its class, once.

        Candidates that could not be drawn keep their cell, so that nothing depends on why, but are nobody's nearest.
        """
        ballot = nearest_votes(candidates.embeddings[cells], candidates.labels[cells], candidates.made[cells])
        return Round(cells, self.session.noisy_histogram(VOTES, ballot, len(cells), self.features))


def nearest_votes(embeddings: Embeddings, labels: Numbers, usable: NDArray[np.bool_]) -> VotesOfFeatures:
    """The per-record function of a round: the cell of the nearest candidate among those of the record's class.

    Args:
        embeddings: float32 `(M, D)`, public.
        labels: int64 `(M,)`, class of each candidate; 0 for all in an unconditional run.
        usable: bool `(M,)`; other candidates get no vote.

    Returns:
        A function of `Voters` to int64 `(R, 1)`. A record without a class votes only where all candidates have class 0.
    """
    classes = {label: (places, Nearest(embeddings[places], usable[places])) for label, places in by_class(labels)}
    unconditional = set(classes) <= {0}

    def ballot(voters: Voters) -> Tensor:
        cells = np.full((len(voters.features), 1), ABSTAIN, dtype=np.int64)
        own = voters.labels.numpy()
        if unconditional:
            own = np.where(own < 0, 0, own)
        features = voters.features.numpy()
        for label, (places, nearest) in classes.items():
            rows = np.flatnonzero((own == label) & voters.present.numpy())
            if len(rows):
                winners = nearest(features[rows])
                cells[rows, 0] = np.where(winners < 0, ABSTAIN, places[winners])
        return torch.from_numpy(cells)

    return ballot


def fitted(images: Images, shape: tuple[int, int, int]) -> Images:
    """Images at the public shape `(C, H, W)` of the records, by antialiased bilinear resizing; grey by ITU-R 601.

    Candidates and records are embedded from the same shape, so that resolution is not what votes are about.
    """
    channels, height, width = shape
    pictures = torch.from_numpy(images)
    if pictures.shape[2:] != (height, width):
        pictures = torch.nn.functional.interpolate(
            pictures.float(), (height, width), mode="bilinear", antialias=True, align_corners=False
        )
        pictures = pictures.round().clamp(0, 255).to(torch.uint8)
    if channels == 1 and pictures.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        pictures = (pictures.float() * weights).sum(dim=1, keepdim=True).round().to(torch.uint8)
    return pictures.numpy()


def by_image(embedder: ImageEmbedder) -> Embedding:
    """A record's features are those of its image."""
    return lambda rows: torch.from_numpy(np.ascontiguousarray(embedder.embed_images(rows.images.numpy())))


def by_caption(captioner: Captioner, embedder: TextEmbedder) -> Embedding:
    """A record's features are those of its caption, which is not kept; one that the model refuses does not vote."""

    def embed(rows: Rows) -> Tensor:
        images = rows.images.numpy()
        colour = images if images.shape[1] == 3 else images.repeat(3, axis=1)
        captions = captioner.caption(colour)
        found = np.array(embedder.embed_texts(captions), dtype=np.float32)
        found[[not caption.strip() for caption in captions]] = np.nan
        return torch.from_numpy(found)

    return embed


class Scores:
    """What all rounds so far say of each candidate.

    A candidate that stayed for k rounds was measured k times, each time with fresh noise of variance s^2. Its estimate
    is the posterior mean under a normal prior: `v / (v + s^2 / k)` of the way from the mean of this round's cells to
    the mean of its own votes, v being how much votes truly vary between cells (their variance less s^2). So a newcomer
    that was lucky once does not displace one that has been chosen again and again.
    """

    def __init__(self, noise: float, combine: bool) -> None:
        """`noise` is the scale of the discrete Gaussian, public; without `combine` the last round alone counts."""
        self._variance, self._combine = noise**2, combine
        self._sums: dict[int, float] = {}
        self._rounds: dict[int, int] = {}

    def take(self, result: Round) -> NDArray[np.float64]:
        """The estimate of every cell of a round, float64 `(M,)`."""
        votes = result.votes.astype(np.float64)
        if not self._combine:
            return votes
        for number, value in zip(result.cells.tolist(), votes.tolist(), strict=True):
            self._sums[number] = self._sums.get(number, 0.0) + value
            self._rounds[number] = self._rounds.get(number, 0) + 1
        counts = np.array([self._rounds[number] for number in result.cells.tolist()])
        means = np.array([self._sums[number] for number in result.cells.tolist()]) / counts
        centre = votes.mean()
        varies = max(float(votes.var()) - self._variance, 0.01 * self._variance)
        estimate: NDArray[np.float64] = centre + varies / (varies + self._variance / counts) * (means - centre)
        return estimate


def best(
    estimate: NDArray[np.float64], cells: Numbers, candidates: Candidates, classes: int, count: int
) -> NDArray[np.int64]:
    """Places of the `count` best cells, in equal shares of the classes; by falling estimate, ties by rising place.

    What could not be drawn is never chosen. Cells without a vote can be, as in the paper: noise decides among them.

    Raises:
        UserError: not one candidate of a class could be drawn.
    """
    labels = candidates.labels[cells]
    chosen = []
    for label in range(classes):
        places = np.flatnonzero((labels == label) & candidates.made[cells])
        if not len(places):
            raise UserError(
                "The image generator could not draw a single candidate, so nothing can be chosen; see what it refuses, "
                "then resume."
            )
        share = count // classes + (label < count % classes)
        chosen.append(places[np.argsort(-estimate[places], kind="stable")][: max(share, 1)])
    places = np.concatenate(chosen)
    order: NDArray[np.int64] = places[np.argsort(-estimate[places], kind="stable")]
    return order
