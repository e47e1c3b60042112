"""Spectral within a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sfumato._home import home
from sfumato.config import RunConfig
from sfumato.data.public import PublicIdentity, PublicImages, to_facts
from sfumato.errors import UserError
from sfumato.hardware import Hardware
from sfumato.methods import spectral
from sfumato.methods.privimage_model import stamped
from sfumato.methods.spectral import NOTES, PublicSide
from sfumato.methods.spectral_model import SpectralModel, upscaler
from sfumato.methods.spectral_settings import refuse_prompts
from sfumato.pretrained.interfaces import Identity, TextEmbedder
from sfumato.pretrained.wall import for_private
from sfumato.privacy.captions import Describe
from sfumato.privacy.plan import Request
from sfumato.privacy.session import Session
from sfumato.report.facts import PIECES
from sfumato.workflows import READING, Drawn, Report, Wanted, Work, gathered
from sfumato.workflows.labels import bought_shares, buy_shares, checked_labels, labels_of, share_requests

MOST_PROMPTS = 2000
"""Captions of public images that are drawn under, where there are no prompts of the user's."""

PROMPTED = (
    "A record is an image with its captions, which private training alone was told. Images were drawn under texts that "
    "the user declares public, or under captions of these public images, whose licences go with them."
)


class SpectralWorkflow:
    """See `Workflow`."""

    def requests(self, config: RunConfig) -> tuple[Request, ...]:
        """Class shares where they are bought, warm start, label check, private training."""
        own = config.spectral.requests(config.public_size, len(config.classes or ()))
        return *share_requests(config), *own

    def prepare(self, work: Work, private: Path | None, others: tuple[Path, ...]) -> dict[str, Any]:
        """Hashes the public folders, and opens the pretrained models that the settings name.

        Raises:
            UserError: a public folder is missing, empty or overlaps another folder; a model has not been pulled; or
                public images have no classes or captions, and such are to be told.
        """
        config = work.config
        assert config.public is not None
        images = config.public.images()
        images.check(private, others)
        if config.spectral.condition == "text" and config.classes and not images.classes():
            raise UserError(
                "spectral.condition: text learns what the names of classes mean from public images with classes, and "
                "these have none. Give them class sub-folders, or set spectral.condition to class."
            )
        facts = {"public": to_facts(images.identities()), "models": pretrained_models(config)}
        return facts | ({"prompts": prompts_of(config, images)} if config.spectral.condition == "captions" else {})

    def describe(self, work: Work) -> Describe | None:
        """The text embedder, where captions are told."""
        embedder = _text_embedder(work.config) if work.config.spectral.condition == "captions" else None
        return None if embedder is None else for_private(embedder).embed_texts

    def fit(self, work: Work, session: Session, report: Report, hardware: Hardware) -> SpectralModel:
        """Trains and saves the model."""
        config = work.config
        buy_shares(work, session)
        model = spectral.fit(
            config.spectral,
            session,
            config.image.spec().shape,
            size=config.public_size,
            seed=config.seed,
            hardware=hardware,
            progress=report,
            public=public_side(
                config,
                work.folder,
                work.facts["public"],
                partial(report, READING),
                tuple(work.facts.get("prompts", ())),
            ),
        )
        model.save(work.folder)
        return model

    def load(self, work: Work, not_private: bool) -> SpectralModel:
        """Reads the model."""
        return SpectralModel.load(work.folder, not_private)

    def draw(self, work: Work, model: SpectralModel, wanted: Wanted, report: Report, hardware: Hardware) -> Drawn:
        """Samples coarse tokens and adds detail."""
        prompts = wanted.prompts or tuple(work.facts.get("prompts", ()))
        try:
            refuse_prompts(wanted.prompts)
        except ValueError as error:
            raise UserError(f"Those are no prompts: {error}.") from error
        if prompts:
            order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(wanted.seed))
            labels = order[torch.arange(wanted.count) % len(prompts)]
        else:
            labels = labels_of(work, wanted.count, wanted.seed)
        if wanted.prompts and (embedder := _text_embedder(work.config)) is not None:
            if not any(_named(embedder.identity) in used for used in work.facts["models"]):
                raise UserError(
                    f"This run was told captions by another text embedder than {_named(embedder.identity)}, which is "
                    "here now. Draw under the run's own prompts, or with the Sfumato that made the run."
                )
            model = replace(model, vectors=torch.from_numpy(embedder.embed_texts(prompts)))
        parts = model.sample(labels, wanted.seed, hardware, keep=wanted.keep)
        pixels = gathered((part.numpy() for part in parts), wanted.count, report)
        texts = [prompts[label] for label in labels.tolist()] if prompts else None
        return Drawn(pixels, labels.numpy() if work.config.classes else None, texts)

    def public_inputs(self, work: Work) -> tuple[str, ...]:
        """Public sets and pretrained models, a sentence each."""
        found = [PublicIdentity.from_json(facts) for facts in work.facts["public"]]
        detail = work.config.spectral.detail
        more = ", super-resolution" if detail == "diffusion" else ""
        prompted = (PROMPTED,) if work.config.spectral.condition == "captions" else ()
        learnt = tuple(f"The tokenizer{more} and the model of tokens first learnt from {one}." for one in found)
        copied = ("Images are put together from pieces of these public images, whose licences go with them.",)
        return *learnt, *(copied if detail == "examples" else ()), *prompted, *work.facts["models"]

    def released(self, work: Work, not_private: bool) -> dict[str, Any]:
        """How much of the model private training moved, how well tokens keep public images, what images are made of."""
        file = work.folder / stamped(NOTES, not_private)
        found: dict[str, Any] = {"spectral": json.loads(file.read_text())} if file.exists() else {}
        if work.config.spectral.detail == "examples":
            found["detail"] = PIECES
        found |= checked_labels(work.config.spectral.check, work.config)
        return found | ({"class_shares": bought} if (bought := bought_shares(work)) else {})


def public_side(
    config: RunConfig,
    folder: Path,
    known: list[dict[str, Any]],
    progress: Callable[[int, int], None] = lambda *_: None,
    prompts: tuple[str, ...] = (),
) -> PublicSide:
    """The public images and texts of a run, to be read if it still needs them.

    Args:
        config: settings.
        folder: private folder of the run.
        known: identities of the public folders when the run began.
        progress: told (files read, files in all).
        prompts: that images are drawn under, where captions are told.

    Raises:
        UserError: when they are read, if they are not what they were; or if the text embedder has not been pulled.
    """
    assert config.public is not None
    images, spec = config.public.images(), config.image.spec()
    decides = images.decides(known, spec)
    embedder = _text_embedder(config)
    return PublicSide(
        partial(images.read_again, known, spec, progress),
        decides if embedder is None else [*decides, asdict(embedder.identity)],
        folder,
        home() / "spectral",
        config.classes or (),
        None if embedder is None else embedder.embed_texts,
        prompts,
        len(images.folders) > 1,
    )


def pretrained_models(config: RunConfig) -> list[str]:
    """A sentence for every pretrained model that the settings name, for the statement; opens them.

    Raises:
        UserError: one of them has not been pulled, or does not exist.
    """
    settings, sentences = config.spectral, []
    if (embedder := _text_embedder(config)) is not None:
        captions = settings.condition == "captions"
        told = "Captions, of private images too," if captions else "The names of the classes"
        sentences.append(f"{told} were told by {_named(embedder.identity)}.")
    if not settings.own_detail:
        sentences.append(f"Detail was added by {_named(upscaler(settings.detail).identity)}.")
    if settings.enlarge is not None:
        sentences.append(f"Images were enlarged by {_named(upscaler(settings.enlarge).identity)}.")
    return sentences or ["No pretrained models were used."]


def prompts_of(config: RunConfig, images: PublicImages) -> list[str]:
    """Public texts to draw under: those of the settings, or captions of public images.

    Raises:
        UserError: public images have no captions, so that they cannot teach what texts mean.
    """
    captions = [text for text in images.captions() if text.strip()]
    if not captions:
        raise UserError(
            "spectral.condition: captions learns what texts mean from public images with captions, and these have "
            "none. Give them a metadata.jsonl with 'text', or set spectral.condition to class."
        )
    if config.spectral.prompts is not None:
        return list(config.spectral.prompts)
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(config.seed))
    return [captions[place] for place in order[:MOST_PROMPTS].tolist()]


def _text_embedder(config: RunConfig) -> TextEmbedder | None:
    condition = config.spectral.condition
    if condition == "class" or (condition == "text" and not config.classes):
        return None
    from sfumato.pretrained import zoo

    return zoo.load_text_embedder(config.spectral.text_embedder)


def _named(identity: Identity) -> str:
    digest = f", sha256 {identity.sha256}" if identity.sha256 else ""
    return f"{identity.name} (revision {identity.revision}{digest}, {identity.licence}; {identity.source})"


WORKFLOWS = {"spectral": SpectralWorkflow()}
