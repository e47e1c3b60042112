"""Spectral: private coarse structure, public detail.

After "Decomposing Private Image Generation via Coarse-to-Fine Wavelet Modeling" (arXiv 2602.23262), as far as it is
known to us (docs/spectral.md says what is ours). What is private about an image is taken to lie in its coarse wavelet
band; a false belief costs quality, never privacy.

1. Public stage: a wavelet tokenizer and an autoregressive model of its tokens learn from public images (`tokens.py`);
   so does super-resolution, where it is wanted (`superresolution.py`).
2. Warm start: one noisy sum of the coarse band says where the private images lie, and the model goes on learning on
   public images that lie there (`tilting.py`). The images are free.
3. Label check: a small share of the budget teaches a linear classifier to tell the classes apart by the tokens of the
   coarsest scale (`labelcheck.py`).
4. Private stage: private training (DP-SGD) on those tokens (`coarse.py`). How much of the model moves, follows from the
   budget by a public rule (`SpectralConfig.trained_set`).
5. Sampling is free: coarse tokens from the private stage's model, each under the class that the classifier sees in
   them, then detail from public images (`examples.py`) or models (`detail.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from sfumato._files import write_atomic, write_json
from sfumato.data.public import PublicSet
from sfumato.errors import PrivacyRefusal
from sfumato.hardware import Hardware
from sfumato.methods.coarse import CoarseLearner, coarse_network, condition_of, set_sizes
from sfumato.methods.denoising import Schedule
from sfumato.methods.labelcheck import LABEL_CHECK, learn_check
from sfumato.methods.open_training import minimise
from sfumato.methods.privimage_model import stamped
from sfumato.methods.spectral_model import SpectralModel, empty_coarse
from sfumato.methods.spectral_settings import FINE_TUNING, RATES, WARM_START, Image, SpectralConfig
from sfumato.methods.tilting import CoarseBand, warm_batches
from sfumato.methods.tokens import Progress, PublicModel, cache_name, public_model
from sfumato.methods.told import Told
from sfumato.nets.autoregressive import Condition, ScaleGPT
from sfumato.pretrained.interfaces import Embeddings
from sfumato.privacy.plan import SumTouch, TrainingTouch
from sfumato.privacy.session import Session
from sfumato.privacy.training import private_training

PUBLIC_MODEL, START, NOTES = "public-model.safetensors", "start.safetensors", "spectral.json"


@dataclass(frozen=True)
class PublicSide:
    """What of the world outside a run learns from, read when it is needed.

    Attributes:
        read: gives the public pictures.
        facts: everything that decides what `read` gives, JSON values; names cached models.
        folder: private folder of the run.
        cache: of public models, for further runs.
        names: of the declared classes; empty for an unconditional run.
        prompts: public texts under which images are drawn; empty unless captions are told.
        embed: a public text embedder; None unless names or captions are told.
        prefixed: whether names of public classes begin with that of their set, as they do where there are several.
    """

    read: Callable[[], PublicSet]
    facts: object
    folder: Path
    cache: Path
    names: tuple[str, ...] = ()
    embed: Callable[[Sequence[str]], Embeddings] | None = None
    prompts: tuple[str, ...] = ()
    prefixed: bool = False


def fit(
    config: SpectralConfig,
    session: Session,
    image: Image,
    *,
    size: int | None,
    seed: int,
    hardware: Hardware,
    progress: Progress,
    public: PublicSide,
) -> SpectralModel:
    """Runs the method, or what is left of it after a crash.

    Args:
        config: settings.
        session: the planned touches.
        image: `(C, H, W)`, public.
        size: declared number of records, or None.
        seed: of the public randomness (initial weights, public training); never of noise.
        hardware: where to compute.
        progress: told about every stage.
        public: images and texts to learn from.
    """
    pictures = functools.cache(public.read)
    # 1. Public stage.
    vectors = None if public.embed is None else torch.from_numpy(public.embed(public.prompts or public.names))
    heard = functools.cache(lambda: told_of(public, pictures(), progress))
    begun = (public.folder / stamped(START, not session.noise.private)).exists()
    known = learn_from_public(config, image, public, pictures, heard, seed, hardware, progress, begun)
    condition = config.condition_of(len(public.names), 0 if vectors is None else vectors.shape[1])
    sizes = set_sizes(coarse_network(known.network, condition), config.rank)
    trained = config.trained_set(session.plan.epsilon, session.plan.delta, size, sizes)
    notes = public.folder / stamped(NOTES, not session.noise.private)
    if not notes.exists():
        errors = [error._asdict() for error in known.errors(pictures().pixels)]
        facts = {"trained": trained, "parameters": sizes[trained], "public_reconstruction": errors}
        write_json(notes, facts, mode=0o600)
    # 2. Warm start.
    generator = torch.Generator().manual_seed(seed)

    def tell(labels: Tensor, places: Tensor) -> Tensor:
        captions = heard() if public.prompts else None
        return condition_of(condition, labels, vectors) if captions is None else captions.of(places, generator)

    network = _warm_started(
        config, session, known, condition, tell, public, pictures, size, generator, hardware, progress
    )
    # 3. Label check.
    check, classes = None, len(public.names)
    if config.check.spent(classes):
        check = learn_check(
            config.check,
            session,
            known.tokenizer.shape.small(1),
            classes,
            size=size,
            public=lambda: torch.from_numpy(pictures().pixels),
            folder=public.folder,
            seed=seed,
            progress=functools.partial(progress, LABEL_CHECK),
            view=lambda images: known.tokenizer.thumbnail(known.tokenizer.encode(images, 1)),
        )
    # 4. Private stage.
    learner = CoarseLearner(
        network,
        known.tokenizer,
        None if public.prompts else vectors,
        Schedule(config.learning_rate or RATES[trained], config.steps, final=config.final_rate),
        trained=trained,
        rank=config.rank,
        average=config.average,
        label_dropout=config.label_dropout,
        seed=seed,
        hardware=hardware,
    )
    touch = session.touch(FINE_TUNING, TrainingTouch)
    for step in private_training(
        session,
        FINE_TUNING,
        learner,
        divisor=touch.sampling_rate * size if size else float(config.batch),
        chunk=config.chunk,
        precision=hardware.precision,
    ):
        progress("private training", step, touch.steps)
    # 5. Sampling is the model's.
    return SpectralModel(config, image, learner.finished(), known, vectors, check, not session.noise.private)


def told_of(public: PublicSide, found: PublicSet, progress: Progress) -> Told | None:
    """What public images are told of: their captions, the names of their classes, or nothing."""
    if public.embed is None:
        return None
    if public.prompts:
        return Told.captions(found.captions, public.embed, functools.partial(progress, "captions of public images"))
    if found.labels is None:
        return None
    names = [name.partition("/")[2] if public.prefixed else name for name in found.classes]
    return Told.classes(names, found.labels, public.embed)


def learn_from_public(
    config: SpectralConfig,
    image: Image,
    public: PublicSide,
    pictures: Callable[[], PublicSet],
    heard: Callable[[], Told | None],
    seed: int,
    hardware: Hardware,
    progress: Progress,
    begun: bool,
) -> PublicModel:
    """What public images teach: the run's own, a cached one, or learnt now.

    Raises:
        PrivacyRefusal: private training has `begun`, and the tokens that it began with are gone: others may differ.
    """
    embed = public.embed
    told = Condition() if embed is None else Condition("text", embed(("",)).shape[1])

    def read() -> NDArray[np.uint8]:
        if begun:
            raise PrivacyRefusal(f"The tokens that this run began with are missing ({files[0]}); start a new run.")
        return pictures().pixels

    files = public.folder / PUBLIC_MODEL, public.cache / cache_name(config, told, public.facts, seed)
    return public_model(
        config, image, read, told, heard=heard, seed=seed, hardware=hardware, files=files, progress=progress
    )


def _warm_started(
    config: SpectralConfig,
    session: Session,
    known: PublicModel,
    condition: Condition,
    tell: Callable[[Tensor, Tensor], Tensor],
    public: PublicSide,
    pictures: Callable[[], PublicSet],
    size: int | None,
    generator: torch.Generator,
    hardware: Hardware,
    progress: Progress,
) -> ScaleGPT:
    """The model of coarse tokens that private training starts from; that of an interrupted run if it had got so far.

    Its frozen part is not in the training's state, so it is on disk before the first step.
    """
    file = public.folder / stamped(START, not session.noise.private)
    if file.exists():
        network = empty_coarse(config, known.tokenizer.shape.image, condition)
        network.load_state_dict(load_file(file))
        return network.requires_grad_(False)
    if session.latest(FINE_TUNING) is not None:
        raise PrivacyRefusal("What this run's private training began with is missing from its folder; start a new run.")
    network = coarse_network(known.network, condition)
    if config.warm_share:
        band = CoarseBand(known.tokenizer, len(public.names))
        layout, multiplier = band.layout, session.touch(WARM_START, SumTouch).noise_multiplier
        noisy = session.noisy_sum(WARM_START, band.vectors, (layout.classes, layout.block))
        progress("noisy sum of the coarse band", 1, 1)
        batches = warm_batches(
            band,
            band.read(noisy, multiplier, size),
            multiplier,
            torch.from_numpy(pictures().pixels),
            config.warm_source,
            tell,
            config.warm_batch,
            generator,
        )
        steps, rate = config.warm_steps, config.warm_rate
        for step in minimise(network, batches, steps, rate, hardware, chunk=config.chunk):
            progress("warm-up on images that lie there", step, config.warm_steps)
    facts = {} if session.noise.private else {"privacy": "NOT PRIVATE"}
    write_atomic(file, save({k: v.contiguous() for k, v in network.state_dict().items()}, facts), mode=0o600)
    return network
