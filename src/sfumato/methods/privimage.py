"""PrivImage (Li et al., USENIX Security 2024): class-conditional DP diffusion that learns from public images first.

1. Semantic query: one noisy histogram says which public classes the private ones resemble (`semantic.py`).
2. Selection: each private class gets the public classes that suit it (`selection.py`). Free: post-processing.
3. Pretraining: the network learns on the selected public images to make objects out of blurred means
   (`pretraining.py`). Free.
4. Warm start: one noisy sum gives a small Gaussian model of every class (`prototypes.py`), and the network learns, from
   samples of that model, to denoise around the class means. The samples are free.
5. Label check: a small share of the budget teaches a linear classifier to tell the classes apart (`labelcheck.py`).
6. Private training on the real images (DP-SGD; Dockhorn et al. 2023 call this DPDM).
7. Sampling is free, and so is asking the classifier which class a picture shows: it is released under that.

Without public images the method begins at 4.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from sfumato._files import write_atomic, write_json
from sfumato.data.public import PublicSet
from sfumato.data.release import contact_sheet
from sfumato.hardware import Hardware
from sfumato.methods.curves import curve
from sfumato.methods.denoising import DenoisingLearner, Image, Schedule, Shape
from sfumato.methods.labelcheck import LABEL_CHECK, learn_check
from sfumato.methods.pretraining import Examples, chosen_examples, lot_of_examples, pretrain
from sfumato.methods.privimage_model import PrivImageModel, guides_of, stamped
from sfumato.methods.privimage_settings import FINE_TUNING, WARM_START, PrivImageConfig
from sfumato.methods.prototypes import Layout, Prototypes, read_prototypes
from sfumato.methods.semantic import QUERY, SemanticModel, cache_name, semantic_model
from sfumato.privacy.plan import SumTouch, TrainingTouch
from sfumato.privacy.session import Session
from sfumato.privacy.training import private_training

WARM_BATCH = 256
"""Pictures a step of the warm-up."""

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, steps done and steps in all; all three are public."""


@dataclass(frozen=True)
class PublicStart:
    """The public images of a run, read when they are needed.

    Attributes:
        read: gives the pictures.
        facts: everything that decides what `read` gives, JSON values; names cached classifiers.
        cache: of classifiers, for further runs.
    """

    read: Callable[[], PublicSet]
    facts: object
    cache: Path


def fit(
    config: PrivImageConfig,
    session: Session,
    image: Image,
    classes: int,
    *,
    size: int | None,
    seed: int,
    hardware: Hardware,
    folder: Path,
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
        folder: private folder of the run; keeps the classifier, the selection, the pretrained network, loss curves.
        progress: told about every stage.
        public: the public images, if there are any.
    """
    begun = session.latest(FINE_TUNING) is not None  # then its state holds all that came before
    shape = config.shape(image, classes)
    weights: dict[str, Tensor] = {}
    pictures = functools.cache(public.read if public else partial(_no_pictures, image))
    if public is not None and not begun:
        public = replace(public, read=pictures)
        weights = _learn_from_public(config, session, public, folder, shape, seed, hardware, progress)
    # 4. Warm start.
    prototypes = _class_models(config, session, image, classes, size) if config.warm_share else None
    learner = DenoisingLearner(
        shape,
        image,
        guides_of(prototypes, shape),
        Schedule(config.learning_rate, config.steps, final=config.final_rate),
        rows=config.draws,
        average=config.average,
        seed=seed,
        hardware=hardware,
        label_dropout=config.label_dropout if classes else 0.0,
    )
    if weights:
        learner.start_from(weights)
    if prototypes is not None:
        progress("noisy sum of the class models", 1, 1)
    if prototypes is not None and config.warm_steps and not begun:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(max(classes, 1), (config.warm_steps * WARM_BATCH,), generator=generator)
        warm_up = learner.warm_up(
            (
                (prototypes.sample(part, generator), part if classes else torch.full_like(part, -1))
                for part in torch.split(labels, WARM_BATCH)
            ),
            steps=config.warm_steps,
            rate=config.warm_rate,
            generator=generator,
            told=curve(folder, "warm-up on the class models"),
        )
        for step in warm_up:
            progress("warm-up on the class models", step, config.warm_steps)
    # 5. Label check.
    check = None
    if config.check.spent(classes):
        check = learn_check(
            config.check,
            session,
            image,
            classes,
            size=size,
            public=lambda: torch.from_numpy(pictures().pixels),
            folder=folder,
            seed=seed,
            progress=partial(progress, LABEL_CHECK),
        )
    pictures.cache_clear()  # gigabytes, where the public images are many
    # 6. Private training.
    touch = session.touch(FINE_TUNING, TrainingTouch)
    divisor = touch.sampling_rate * size if size else float(config.batch)
    for step in private_training(
        session, FINE_TUNING, learner, divisor=divisor, chunk=config.chunk, precision=hardware.precision
    ):
        progress("private training", step, touch.steps)
    # 7. Sampling is the model's.
    return PrivImageModel(
        learner.averaged, image, prototypes, check, config.sampler.sampler(), config.mixed, not session.noise.private
    )


def _learn_from_public(
    config: PrivImageConfig,
    session: Session,
    public: PublicStart,
    folder: Path,
    shape: Shape,
    seed: int,
    hardware: Hardware,
    progress: Progress,
) -> dict[str, Tensor]:
    """Weights of the network after its public lessons; those of an interrupted run if it had finished them."""
    pretrained = folder / stamped("pretrained.safetensors", not session.noise.private)
    unfinished = pretrained.with_suffix(".unfinished.safetensors")
    if pretrained.exists():
        unfinished.unlink(missing_ok=True)
        return load_file(pretrained)
    images = public.read()
    if config.selection == "semantic":
        examples = _asked_for(config, session, public, folder, images, shape, seed, hardware, progress)
    else:
        share = config.semantic.kept if config.selection == "random" else 1.0
        examples = lot_of_examples(config.pretraining, images.pixels, share, seed)
    # 3. Pretraining.
    weights: dict[str, Tensor] = {}
    facts = {} if session.noise.private else {"privacy": "NOT PRIVATE"}
    lessons = pretrain(
        config.pretraining,
        shape,
        examples,
        seed=seed,
        hardware=hardware,
        told=curve(folder, "pretraining on public images"),
        unfinished=unfinished,
        facts=facts,
    )
    for step, network in lessons:
        progress("pretraining on public images", step, config.pretraining.steps)
        if step == config.pretraining.steps:
            weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
            write_atomic(pretrained, save(weights, facts), mode=0o600)
    unfinished.unlink(missing_ok=True)
    return weights


def _asked_for(
    config: PrivImageConfig,
    session: Session,
    public: PublicStart,
    folder: Path,
    images: PublicSet,
    shape: Shape,
    seed: int,
    hardware: Hardware,
    progress: Progress,
) -> Examples:
    """The public images that the private ones ask for."""
    model = semantic_model(
        config.semantic,
        images,
        seed=seed,
        hardware=hardware,
        files=(
            folder / "classifier.safetensors",
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
    _keep_selection(folder, not session.noise.private, model, votes, chosen, images.pixels)
    return chosen_examples(config.pretraining, images.pixels, model.labels, chosen, shape.classes > 0, seed)


SELECTION = "selection.json"
SHOWN = 16
"""Public pictures a row of the sheet."""

Selection = dict[str, list[tuple[str, int]]]


def _keep_selection(
    folder: Path,
    not_private: bool,
    model: SemanticModel,
    votes: NDArray[np.int64],
    chosen: NDArray[np.int64],
    pixels: NDArray[np.uint8],
) -> None:
    """Writes what was chosen, in words and as a sheet: one row a private class, public pictures in turn."""
    named: Selection = {
        str(number): [(model.classes[public], int(votes[number, public])) for public in row]
        for number, row in enumerate(chosen.tolist())
    }
    facts = {"public_classes": model.classes, "noisy_votes": votes.tolist(), "chosen": named}
    write_json(folder / stamped(SELECTION, not_private), facts, mode=0o600)
    shown = [_in_turn([np.flatnonzero(model.labels == public) for public in row], SHOWN) for row in chosen.tolist()]
    rows = np.repeat(np.arange(len(shown)), list(map(len, shown)))
    names = [", ".join(model.classes[public] for public in row) for row in chosen.tolist()]
    data = BytesIO()
    shown_pixels = pixels[np.concatenate(shown)]
    contact_sheet(shown_pixels, rows, rows=len(shown), columns=SHOWN, classes=names).save(data, "PNG")
    write_atomic(folder / stamped("selection.png", not_private), data.getvalue(), mode=0o600)


def _in_turn(members: list[NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """The first of each, then the second of each, and so on."""
    turns = itertools.zip_longest(*members)
    return np.array([one for turn in turns for one in turn if one is not None][:count], dtype=np.int64)


def read_selection(folder: Path, not_private: bool) -> Selection:
    """What the semantic query of a run chose: names and noisy votes of public classes by the private class's number.

    Empty where there was no query.
    """
    file = folder / stamped(SELECTION, not_private)
    return json.loads(file.read_text())["chosen"] if file.exists() else {}


def _no_pictures(image: Image) -> PublicSet:
    return PublicSet(np.empty((0, *image), dtype=np.uint8), None, ())


def _class_models(
    config: PrivImageConfig, session: Session, image: Image, classes: int, size: int | None
) -> Prototypes:
    """The class models from the noisy sum."""
    layout = Layout(image, max(classes, 1))
    noisy = session.noisy_sum(WARM_START, layout.vectors, (layout.classes, layout.block))
    multiplier = session.touch(WARM_START, SumTouch).noise_multiplier
    floor = 0.1 * size / layout.classes if size else 10.0
    return read_prototypes(noisy, layout, multiplier, floor)
