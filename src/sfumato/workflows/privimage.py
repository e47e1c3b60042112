"""PrivImage within a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from sfumato._home import home
from sfumato.config import RunConfig
from sfumato.data.public import PublicIdentity, to_facts
from sfumato.hardware import Hardware
from sfumato.methods import privimage
from sfumato.methods.privimage import PublicStart, read_selection
from sfumato.methods.privimage_model import PrivImageModel
from sfumato.methods.semantic import public_classes
from sfumato.privacy.plan import Request
from sfumato.privacy.session import Session
from sfumato.workflows import READING, Drawn, Report, Wanted, Work, gathered
from sfumato.workflows.labels import bought_shares, buy_shares, checked_labels, labels_of, share_requests


class PrivImageWorkflow:
    """See `Workflow`."""

    def requests(self, config: RunConfig) -> tuple[Request, ...]:
        """Class shares where they are bought, semantic query with public images, warm start, label check, training."""
        classes = len(config.classes or ())
        own = config.privimage.requests(config.public_size, classes=classes, public=config.public is not None)
        return *share_requests(config), *own

    def prepare(self, work: Work, private: Path | None, others: tuple[Path, ...]) -> dict[str, Any]:
        """Hashes the public folders after a check that they suit the settings.

        Raises:
            UserError: a public folder is missing, empty or overlaps another folder, or has too few classes.
        """
        config = work.config
        if config.public is None:
            return {"public": []}
        images = config.public.images()
        images.check(private, others)
        found = images.identities()
        if config.privimage.selection != "semantic":
            return {"public": to_facts(found)}
        count = public_classes(config.privimage.semantic, images.classes(), sum(one.images for one in found))
        config.privimage.semantic.check(max(len(config.classes or ()), 1), count)
        config.privimage.semantic.embed()  # a model that is missing is missed before anything is spent
        return {"public": to_facts(found)}

    def describe(self, work: Work) -> None:
        """Captions are not read."""

    def fit(self, work: Work, session: Session, report: Report, hardware: Hardware) -> PrivImageModel:
        """Trains and saves the model."""
        config = work.config
        buy_shares(work, session)
        model = privimage.fit(
            config.privimage,
            session,
            config.image.spec().shape,
            len(config.classes or ()),
            size=config.public_size,
            seed=config.seed,
            hardware=hardware,
            folder=work.folder,
            progress=report,
            public=self._public_start(work, report),
        )
        model.save(work.folder)
        return model

    def _public_start(self, work: Work, report: Report) -> PublicStart | None:
        """The public images of a run, to be read if it still needs them.

        Raises:
            UserError: when they are read, if they are not what they were when the run began.
        """
        if work.config.public is None:
            return None
        images, known, spec = work.config.public.images(), work.facts["public"], work.config.image.spec()
        read = partial(images.read_again, known, spec, partial(report, READING))
        return PublicStart(read, images.decides(known, spec), home() / "classifiers")

    def load(self, work: Work, not_private: bool) -> PrivImageModel:
        """Reads the model."""
        shape = work.config.privimage.shape(work.config.image.spec().shape, len(work.config.classes or ()))
        return PrivImageModel.load(work.folder, not_private, shape)

    def draw(self, work: Work, model: PrivImageModel, wanted: Wanted, report: Report, hardware: Hardware) -> Drawn:
        """Samples the network."""
        labels = labels_of(work, wanted.count, wanted.seed)
        parts = model.sample(labels.clamp(min=0), wanted.seed, hardware, keep=wanted.keep)
        pixels = gathered((part.numpy() for part in parts), wanted.count, report)
        return Drawn(pixels, labels.numpy() if work.config.classes else None)

    def public_inputs(self, work: Work) -> tuple[str, ...]:
        """Public sets, and what grouped them."""
        found = [PublicIdentity.from_json(facts) for facts in work.facts.get("public", ())]
        if not found:
            return ("No public images or pretrained models were used.",)
        settings = work.config.privimage
        space = settings.semantic.space
        models = (
            "No pretrained models were used."
            if space == "pixels" or settings.selection != "semantic"
            else f"Public images without labels were grouped by the features of {space}."
        )
        return (*(f"The network was pretrained on {one}." for one in found), models)

    def released(self, work: Work, not_private: bool) -> dict[str, Any]:
        """Which public classes stand for which private class, with their noisy votes."""
        chosen = read_selection(work.folder, not_private)
        names = work.config.classes or ("all images",)
        found: dict[str, Any] = (
            {"public_classes": {names[int(number)]: row for number, row in chosen.items()}} if chosen else {}
        )
        found |= checked_labels(work.config.privimage.check, work.config)
        return found | ({"class_shares": bought} if (bought := bought_shares(work)) else {})


WORKFLOWS = {"privimage": PrivImageWorkflow()}
