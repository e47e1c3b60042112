"""PrivImage (Li et al., USENIX Security 2024): class-conditional DP diffusion that learns from public images first.

1. Semantic query: one noisy histogram says which public classes the private ones resemble (`semantic.py`).
2. Selection: each private class gets the public classes that suit it (`selection.py`). Free: post-processing.
3. Pretraining: the network learns on the selected public images to make objects out of blurred means
   (`pretraining.py`). Free.
4. Warm start: one noisy sum gives a small Gaussian model of every class (`prototypes.py`), and the network learns, from
   samples of that model, to denoise around the class means. The samples are free.
5. Private training on the real images (DP-SGD; Dockhorn et al. 2023 call this DPDM).
6. Sampling is free.

Without public images the method begins at 4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save
from torch import Tensor

from sfumato._files import write_atomic, write_json
from sfumato.data.public import PublicSet
from sfumato.hardware import Hardware
from sfumato.methods.denoising import DenoisingLearner, Schedule, draw_pictures, to_bands
from sfumato.methods.pretraining import PretrainingConfig, chosen_examples, pretrain
from sfumato.methods.prototypes import Layout, Prototypes, read_prototypes
from sfumato.methods.semantic import QUERY, SemanticConfig, SemanticModel, cache_name, semantic_model
from sfumato.nets.unet import UNet, UNetShape
from sfumato.privacy.gradients.engine import rounding_slack
from sfumato.privacy.plan import Request, SumRequest, SumTouch, TrainingRequest, TrainingTouch
from sfumato.privacy.session import Session
from sfumato.privacy.training import private_training

WARM_START, FINE_TUNING = "warm start", "fine-tuning"
WARM_BATCH = 256
"""Pictures a step of the warm-up."""

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, steps done and steps in all; all three are public."""


class PrivImageConfig(BaseModel):
    """Settings of the method; the defaults are the `laptop` preset, tuned for two cores and 28x28 images.

    Every value is public and fixed before the first touch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: tuple[int, int] = (32, 32)
    blocks: tuple[int, int] = (2, 2)
    batch: int = Field(2048, ge=1, description="expected records per step")
    rate_without_size: float = Field(0.03, gt=0, le=1, description="sampling rate where no size is declared")
    steps: int = Field(160, ge=1, le=1_000_000)
    draws: int = Field(1, ge=1, le=1024, description="noise draws per record and step (noise multiplicity)")
    clip_norm: float = Field(1.0, gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    average: float = Field(0.95, ge=0, lt=1)
    warm_share: float = Field(0.08, gt=0, lt=1, description="share of mu^2 that the warm start may spend")
    warm_attempts: int = Field(2, ge=1, description="attempts bought for the warm start; one is a spare")
    warm_steps: int = Field(150, ge=0)
    warm_rate: float = Field(2e-3, gt=0)
    chunk: int = Field(128, ge=1, description="records per forward pass; changes speed and memory only")
    sampler_steps: int = Field(12, ge=1)
    semantic: SemanticConfig = SemanticConfig()
    pretraining: PretrainingConfig = PretrainingConfig()

    def sampling_rate(self, size: int | None) -> float:
        """Poisson rate, from public values."""
        return self.rate_without_size if size is None else min(1.0, self.batch / size)

    def requests(self, size: int | None, *, public: bool = False) -> tuple[Request, ...]:
        """The touches that the method asks the plan for; the semantic query only where there are public images."""
        return (
            *((self.semantic.request(),) if public else ()),
            SumRequest(WARM_START, clip_norm=1.0, attempts=self.warm_attempts, share=self.warm_share),
            self.training_request(size),
        )

    def training_request(self, size: int | None) -> TrainingRequest:
        """The main touch."""
        return TrainingRequest(
            FINE_TUNING,
            sampling_rate=self.sampling_rate(size),
            steps=self.steps,
            clip_norm=self.clip_norm,
            rows=self.draws,
            slack=rounding_slack(self.batch),
        )


@dataclass(frozen=True)
class PrivImageModel:
    """What a run releases: the averaged network, the class means it draws around, and the class models.

    Attributes:
        network: averaged weights.
        prototypes: class means and factors.
        sampler_steps: noise levels visited when sampling.
        not_private: the weights come from a run with test noise.
    """

    network: UNet
    prototypes: Prototypes
    sampler_steps: int
    not_private: bool

    def sample(self, labels: Tensor, seed: int, hardware: Hardware, batch: int = 500) -> Iterator[Tensor]:
        """Yields uint8 pictures `(<= batch, C, H, W)` for labels `(N,)`; free, and as many as wanted."""
        generator = torch.Generator().manual_seed(seed)
        network = self.network.to(hardware.device)
        guides = to_bands(self.prototypes.means).to(hardware.device, memory_format=torch.channels_last)
        for part in torch.split(labels, batch):
            pictures = draw_pictures(network, guides, part, generator, steps=self.sampler_steps, hardware=hardware)
            yield ((pictures + 1) * 127.5).round().to(torch.uint8).cpu()

    def save(self, folder: Path) -> None:
        """Writes `model.safetensors`; a run with test noise is NOT PRIVATE in name and metadata."""
        state = {f"network.{name}": value.contiguous() for name, value in self.network.state_dict().items()}
        state |= {f"prototypes.{name}": value for name, value in self.prototypes.state().items()}
        state["sampler_steps"] = torch.tensor(self.sampler_steps)
        shape = self.network.shape
        facts = {"shape": repr([shape.bands, shape.guide, shape.classes, *shape.width, *shape.blocks])}
        if self.not_private:
            facts["privacy"] = "NOT PRIVATE"
        write_atomic(folder / _model_name(self.not_private), save(state, facts), mode=0o600)

    @classmethod
    def load(cls, folder: Path, not_private: bool, shape: UNetShape) -> PrivImageModel:
        """Reads what `save` wrote."""
        state = load_file(folder / _model_name(not_private))
        network = UNet(shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
        parts = {k.removeprefix("prototypes."): v for k, v in state.items() if k.startswith("prototypes.")}
        return cls(network.requires_grad_(False), Prototypes(**parts), int(state["sampler_steps"]), not_private)


def _model_name(not_private: bool) -> str:
    return _stamped("model.safetensors", not_private)


def _stamped(name: str, not_private: bool) -> str:
    """The name of a file; what comes from test noise says so."""
    return name.replace(".", "-NOT-PRIVATE.") if not_private else name


def network_shape(config: PrivImageConfig, image: tuple[int, int, int], classes: int) -> UNetShape:
    """The network that a configuration asks for."""
    bands = 4 * image[0]
    return UNetShape(bands, bands, classes, config.width, config.blocks)


@dataclass(frozen=True)
class PublicStart:
    """The public images of a run, read when they are needed.

    Attributes:
        read: gives the pictures.
        facts: everything that decides what `read` gives, JSON values; names cached classifiers.
        folder: private folder of the run; keeps the classifier, the selection and the pretrained network.
        cache: of classifiers, for further runs.
    """

    read: Callable[[], PublicSet]
    facts: object
    folder: Path
    cache: Path


def fit(
    config: PrivImageConfig,
    session: Session,
    image: tuple[int, int, int],
    classes: int,
    *,
    size: int | None,
    seed: int,
    hardware: Hardware,
    progress: Progress,
    public: PublicStart | None = None,
) -> PrivImageModel:
    """Runs the method, or what is left of it after a crash.

    Args:
        config: settings.
        session: the planned touches.
        image: `(C, H, W)`, public.
        classes: declared classes; 0 for an unconditional run.
        size: declared number of records, or None.
        seed: of the public randomness (initial weights, public training); never of noise.
        hardware: where to compute.
        progress: told about every stage.
        public: the public images, if the plan holds a semantic query.
    """
    begun = session.latest(FINE_TUNING) is not None  # then its state holds all that came before
    weights: dict[str, Tensor] = {}
    if public is not None and not begun:
        weights = _learn_from_public(
            config, session, public, network_shape(config, image, classes), seed, hardware, progress
        )
    # 4. Warm start.
    learner, prototypes = _start(config, session, image, classes, size, seed, hardware)
    progress("noisy sum of the class models", 1, 1)
    if weights:
        learner.start_from(weights)
    if config.warm_steps and not begun:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(max(classes, 1), (config.warm_steps * WARM_BATCH,), generator=generator)
        warm_up = learner.warm_up(
            prototypes.sample(labels, generator),
            labels if classes else torch.full_like(labels, -1),
            batch=WARM_BATCH,
            rate=config.warm_rate,
            generator=generator,
        )
        for step in warm_up:
            progress("warm-up on the class models", step, config.warm_steps)
    # 5. Private training.
    touch = session.touch(FINE_TUNING, TrainingTouch)
    divisor = touch.sampling_rate * size if size else float(config.batch)
    for step in private_training(
        session, FINE_TUNING, learner, divisor=divisor, chunk=config.chunk, precision=hardware.precision
    ):
        progress("private training", step, touch.steps)
    # 6. Sampling is the model's.
    return PrivImageModel(learner.averaged, prototypes, config.sampler_steps, not session.noise.private)


def _learn_from_public(
    config: PrivImageConfig,
    session: Session,
    public: PublicStart,
    shape: UNetShape,
    seed: int,
    hardware: Hardware,
    progress: Progress,
) -> dict[str, Tensor]:
    """Weights of the network after its public lessons; those of an interrupted run if it had finished them."""
    pretrained = public.folder / _stamped("pretrained.safetensors", not session.noise.private)
    if pretrained.exists():
        return load_file(pretrained)
    images = public.read()
    model = semantic_model(
        config.semantic,
        images,
        seed=seed,
        hardware=hardware,
        files=(
            public.folder / "classifier.safetensors",
            public.cache / cache_name(config.semantic, public.facts, seed),
        ),
        progress=lambda done, of: progress("classifier of public images", done, of),
    )
    # 1. Semantic query.
    cells = (max(shape.classes, 1), len(model.classes))
    ballots = model.ballots(shape.classes, config.semantic.votes)
    votes = session.noisy_histogram(QUERY, ballots, cells[0] * cells[1]).reshape(cells)
    progress(QUERY, 1, 1)
    # 2. Selection.
    chosen = model.choose(config.semantic, votes)
    _keep_selection(public.folder / _stamped(SELECTION, not session.noise.private), model, votes, chosen)
    # 3. Pretraining.
    examples = chosen_examples(config.pretraining, images.pixels, model.labels, chosen, shape.classes > 0, seed)
    weights: dict[str, Tensor] = {}
    for step, network in pretrain(config.pretraining, shape, examples, seed=seed, hardware=hardware):
        progress("pretraining on public images", step, config.pretraining.steps)
        if step == config.pretraining.steps:
            weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
            facts = {} if session.noise.private else {"privacy": "NOT PRIVATE"}
            write_atomic(pretrained, save(weights, facts), mode=0o600)
    return weights


SELECTION = "selection.json"
Selection = dict[str, list[tuple[str, int]]]


def _keep_selection(file: Path, model: SemanticModel, votes: NDArray[np.int64], chosen: NDArray[np.int64]) -> None:
    named: Selection = {
        str(number): [(model.classes[public], int(votes[number, public])) for public in row]
        for number, row in enumerate(chosen.tolist())
    }
    write_json(file, {"public_classes": model.classes, "noisy_votes": votes.tolist(), "chosen": named}, mode=0o600)


def read_selection(folder: Path, not_private: bool) -> Selection:
    """What the semantic query of a run chose: names and noisy votes of public classes by the private class's number.

    Empty where there was no query.
    """
    file = folder / _stamped(SELECTION, not_private)
    return json.loads(file.read_text())["chosen"] if file.exists() else {}


def _start(
    config: PrivImageConfig,
    session: Session,
    image: tuple[int, int, int],
    classes: int,
    size: int | None,
    seed: int,
    hardware: Hardware,
) -> tuple[DenoisingLearner, Prototypes]:
    """The class models from the noisy sum, and a learner that knows the class means."""
    layout = Layout(image, max(classes, 1))
    noisy = session.noisy_sum(WARM_START, layout.vectors, (layout.classes, layout.block))
    multiplier = session.touch(WARM_START, SumTouch).noise_multiplier
    floor = 0.1 * size / layout.classes if size else 10.0
    prototypes = read_prototypes(noisy, layout, multiplier, floor)
    learner = DenoisingLearner(
        network_shape(config, image, classes),
        to_bands(prototypes.means),
        Schedule(config.learning_rate, config.steps),
        rows=config.draws,
        average=config.average,
        seed=seed,
        hardware=hardware,
    )
    return learner, prototypes
