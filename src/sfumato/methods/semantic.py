"""The semantic query of PrivImage (Li et al., USENIX Security 2024, section 4.2): which public images are of use?

A classifier that has seen public images only says for each private record which public classes it resembles most. One
noisy histogram of private against public classes is all that is released.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sfumato._files import write_atomic
from sfumato.data.public import PublicSet
from sfumato.errors import UserError
from sfumato.hardware import Hardware
from sfumato.methods.clusters import Embed, cluster
from sfumato.methods.selection import Rule, classes_kept, select
from sfumato.nets.classifier import ConvNet
from sfumato.privacy.histogram import ABSTAIN
from sfumato.privacy.plan import HistogramRequest
from sfumato.privacy.records import Rows

QUERY = "semantic query"
BATCH = 128  # pictures a step of the classifier's training
CLOSE = 1e-4  # relative margin below which a ballot is decided in float64, far above the rounding errors of float32
_VERSION = "3"  # of the recipe, in the name of what is cached


class SemanticConfig(BaseModel):
    """Settings of the semantic query; all are public.

    Attributes:
        share: of mu^2 that the histogram may spend.
        attempts: attempts bought; one is a spare.
        votes: public classes that a record votes for (the paper's k).
        kept: share of the public classes that are chosen, over all private classes together.
        rule: how they are chosen, see `selection.select`.
        clusters: k-means groups of the pictures in place of labels; None takes them only where labels are missing.
        space: where pictures are grouped: "pixels" of small grey versions, or the features of a model of the zoo.
        steps: of the classifier's training.
        rate: its learning rate.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    share: float = Field(0.02, gt=0, lt=1)
    attempts: int = Field(2, ge=1)
    votes: int = Field(3, ge=1, le=1000)
    kept: float = Field(0.4, gt=0, le=1)
    rule: Rule = "best"
    clusters: int | None = Field(None, ge=2, le=10_000)
    space: Literal["pixels", "efficientnet-lite0"] = "pixels"
    steps: int = Field(300, ge=1)
    rate: float = Field(2e-3, gt=0)

    def request(self) -> HistogramRequest:
        """The touch."""
        return HistogramRequest(QUERY, cells=self.votes, rounds=self.attempts, share=self.share)

    def check(self, private: int, public: int) -> None:
        """Refuses settings that the public classes are too few for (UserError)."""
        if self.votes > public:
            raise UserError(
                f"Each record votes for {self.votes} public classes, but there are {public}; set fewer votes "
                "(privimage.semantic.votes), or more public classes (privimage.semantic.clusters)."
            )
        if self.rule != "overlapping" and private > public:
            raise UserError(
                f"There are {private} private classes and only {public} public ones; let private classes share them "
                "(privimage.semantic.rule: overlapping), or set more public classes (privimage.semantic.clusters)."
            )

    def embed(self) -> Embed | None:
        """The features in which pictures are grouped; None for small grey versions.

        Raises:
            UserError: the model has not been pulled.
        """
        if self.space == "pixels":
            return None
        from sfumato.pretrained.zoo import load_image_embedder

        return load_image_embedder(self.space).embed_images


DEFAULT_CLUSTERS = 100
"""Where labels are missing and no number is set."""


def public_classes(config: SemanticConfig, labels: tuple[str, ...], images: int) -> int:
    """How many public classes there will be, from the labels and the number of images."""
    if labels and config.clusters is None:
        return len(labels)
    return min(config.clusters or DEFAULT_CLUSTERS, images)


@dataclass(frozen=True)
class SemanticModel:
    """The classifier and the public classes it knows; made from public images alone.

    Attributes:
        network: pixels in [-1, 1] to a logit a class; in eval mode, float32.
        labels: public class of each public image, int64 `(N,)`.
        classes: names by label.
    """

    network: ConvNet
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def ballots(self, private: int, votes: int) -> Callable[[Rows], Tensor]:
        """The per-record function of the touch: cells `private class x public classes + public class`.

        Args:
            private: declared classes; 0 for an unconditional run, where all records share one row.
            votes: public classes a record votes for.

        A record of no declared class abstains. The classes with the highest logits get the votes, ties go to the lowest
        number. Where the last vote is close, float64 decides, one record at a time: rounding errors of float32 depend
        on a record's place in its batch, and removing a record moves all others by a place.
        """
        exact = copy.deepcopy(self.network).double()
        public = len(self.classes)

        def vote(rows: Rows) -> Tensor:
            inputs = _inputs(rows.images).contiguous(memory_format=torch.channels_last)
            logits: Tensor = self.network(inputs)
            best = _ranked(logits)
            if votes < public:
                last, next_best = logits.gather(1, best[:, votes - 1 : votes + 1]).unbind(1)
                close = last - next_best < CLOSE * logits.abs().amax(1).clamp(min=1)
                for number in (close & rows.present).nonzero()[:, 0].tolist():
                    best[number] = _ranked(exact(inputs[number : number + 1].double()))[0]
            best = best[:, :votes]
            if private:
                best = torch.where(rows.labels[:, None] < 0, ABSTAIN, rows.labels[:, None] * public + best)
            return F.pad(best, (0, votes - best.shape[1]), value=ABSTAIN)  # fewer classes than votes

        return vote

    def choose(self, config: SemanticConfig, histogram: NDArray[np.int64]) -> NDArray[np.int64]:
        """The public classes of each private class, `(private classes, kept)`, from the released histogram."""
        private, public = histogram.shape
        rule = config.rule if private <= public else "overlapping"
        return select(histogram, classes_kept(config.kept, private, public, rule), rule)

    def save(self, file: Path, mode: int) -> None:
        """Writes one safetensors file."""
        state = {f"network.{name}": value.contiguous() for name, value in self.network.state_dict().items()}
        state["labels"] = torch.from_numpy(self.labels)
        write_atomic(file, save(state, {"classes": json.dumps(self.classes)}), mode)

    @classmethod
    def load(cls, file: Path, shape: tuple[int, int, int]) -> SemanticModel | None:
        """What `save` wrote, or None where there is no such file or it does not fit."""
        try:
            with safe_open(file, "pt") as opened:
                names = tuple(json.loads(opened.metadata()["classes"]))
            state = load_file(file)
            labels = state.pop("labels").numpy()
            network = ConvNet(shape, len(names))
            network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError):
            return None
        return cls(network.eval().requires_grad_(False), labels, names)


def semantic_model(
    config: SemanticConfig,
    public: PublicSet,
    *,
    seed: int,
    hardware: Hardware,
    files: tuple[Path, ...] = (),
    progress: Callable[[int, int], None] = lambda *_: None,
) -> SemanticModel:
    """The classifier of a public set: read from the first of `files` that has it, else trained; then in all of them.

    Args:
        config: settings.
        public: pictures and, where they have them, labels.
        seed: public.
        hardware: where to train; ballots are always cast in float32 on the processor.
        files: the run's own copy, and one that further runs on the same public set find.
        progress: told (steps done, steps in all).
    """
    clustered = public.labels is None or config.clusters is not None
    shape = (public.pixels.shape[1], public.pixels.shape[2], public.pixels.shape[3])
    found = next((model for file in files if (model := SemanticModel.load(file, shape))), None)
    if found is None or len(found.labels) != len(public.pixels):
        labels = public.labels
        if labels is None or clustered:
            labels = cluster(public.pixels, config.clusters or DEFAULT_CLUSTERS, seed, config.embed())
        names = _group_names(labels, public) if clustered else public.classes
        network = _trained(config, public.pixels, labels, len(names), seed, hardware, progress)
        found = SemanticModel(network, labels, names)
    for file in files:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            found.save(file, 0o600)
    return found


def cache_name(config: SemanticConfig, facts: Any, seed: int) -> str:
    """File name of a classifier in a cache, from everything that decides it (`facts`: identities, shape and so on)."""
    settings = config.model_dump(mode="json", include={"clusters", "space", "steps", "rate"})
    text = json.dumps([_VERSION, settings, facts, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32] + ".safetensors"


def _trained(
    config: SemanticConfig,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    classes: int,
    seed: int,
    hardware: Hardware,
    progress: Callable[[int, int], None],
) -> ConvNet:
    """AdamW on shifted pictures; one triangle of the learning rate."""
    device, precision = hardware
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConvNet((pixels.shape[1], pixels.shape[2], pixels.shape[3]), classes).to(device)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(network.parameters(), config.rate, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, total_steps=config.steps + 1)
        for step in range(1, config.steps + 1):
            chosen = torch.randint(len(pixels), (BATCH,), generator=generator).numpy()
            images = _shifted(_inputs(torch.from_numpy(pixels[chosen])), generator)
            images = images.to(device, memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = network(images)
            truth = torch.from_numpy(labels[chosen]).to(device)
            loss = F.cross_entropy(logits.float(), truth, label_smoothing=0.1)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            progress(step, config.steps)
    return network.to("cpu").eval().requires_grad_(False)


def _inputs(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves a batch by up to two pixels; its border moves in."""
    down, right = torch.randint(0, 5, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    return F.pad(images, (2, 2, 2, 2), mode="replicate")[:, :, down : down + height, right : right + width]


def _ranked(logits: Tensor) -> Tensor:
    """Classes by falling logit, ties by rising number."""
    return logits.argsort(dim=1, descending=True, stable=True)


def _group_names(groups: NDArray[np.int64], public: PublicSet) -> tuple[str, ...]:
    """A number, and the label that most of its pictures have, where they have any."""
    numbers = range(int(groups.max()) + 1)
    if public.labels is None:
        return tuple(f"group {number}" for number in numbers)
    most = (np.bincount(public.labels[groups == number]).argmax() for number in numbers)
    return tuple(f"{public.classes[label]} (group {number})" for number, label in zip(numbers, most, strict=True))
