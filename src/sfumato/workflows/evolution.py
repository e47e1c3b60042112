"""SPTI and Private Evolution within a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sfumato.config import RunConfig
from sfumato.errors import UserError
from sfumato.hardware import Hardware
from sfumato.methods import private_evolution, spti
from sfumato.methods.candidates import public_seed
from sfumato.methods.evolution_settings import PrivateEvolutionConfig, SPTIConfig
from sfumato.methods.models import Models
from sfumato.methods.population import Population, images_of, to_size
from sfumato.pretrained.renders import Renders
from sfumato.privacy.plan import Request
from sfumato.privacy.session import Session
from sfumato.workflows import Drawn, Report, Wanted, Work, gathered

TOLD = 12
"""Captions in a report."""


class EvolutionWorkflow:
    """See `Workflow`."""

    def __init__(self, method: Literal["spti", "private-evolution"]) -> None:
        self._method = method

    def settings(self, config: RunConfig) -> SPTIConfig | PrivateEvolutionConfig:
        """Those of the method."""
        return config.spti if self._method == "spti" else config.private_evolution

    def models(self, work: Work) -> Models:
        """The models of a run; answers of servers to private images stay in its private folder."""
        answers = work.folder / "private" / "answers"
        return Models(self.settings(work.config), work.models, work.config.allow_private_to, answers)

    def requests(self, config: RunConfig) -> tuple[Request, ...]:
        """The votes."""
        return self.settings(config).requests()

    def prepare(self, work: Work, private: Path | None, others: tuple[Path, ...]) -> dict[str, Any]:
        """Opens all models, and keeps what a statement says of them.

        Raises:
            UserError: a model is missing or cannot do what is asked of it.
            PrivacyRefusal: private images would leave the machine for a place that was not named.
        """
        return {"models": self.models(work).sentences()}

    def describe(self, work: Work) -> None:
        """Captions are not read."""

    def fit(self, work: Work, session: Session, report: Report, hardware: Hardware) -> Population:
        """Runs the rounds and saves who survived."""
        config, settings, models = work.config, self.settings(work.config), self.models(work)
        models.check()
        shape, classes = config.image.spec().shape, config.classes or ()
        if isinstance(settings, SPTIConfig):
            fit: partial[Population] = partial(spti.fit, settings)
        else:
            fit = partial(private_evolution.fit, settings)
        found = fit(
            session, models, work.folder, shape, classes, size=config.public_size, seed=config.seed, progress=report
        )
        found.save(work.folder)
        return found

    def load(self, work: Work, not_private: bool) -> Population:
        """Reads the survivors."""
        return Population.load(work.folder, not_private)

    def draw(self, work: Work, model: Population, wanted: Wanted, report: Report, hardware: Hardware) -> Drawn:
        """The images that won, then further ones; with another seed than the run's, further ones only."""
        config, settings, models = work.config, self.settings(work.config), self.models(work)
        count, seed, classes = wanted.count, wanted.seed, config.classes or ()
        places = model.places(count, max(len(classes), 1))

        def more(some: NDArray[np.int64], first: int) -> Renders:
            chance = public_seed(seed, "release", first)
            if isinstance(settings, SPTIConfig):
                return spti.redraw(settings, model, models, classes, some, chance)
            return private_evolution.revary(settings, model, models, some, chance)

        upscaler = models["upscaler"] if settings.upscaler else None
        finish = partial(to_size, upscaler=upscaler, size=settings.release_size)
        own = seed == config.seed
        parts = images_of(model, places, more, as_they_are=own, part=settings.part, finish=finish, keep=wanted.keep)
        pixels = gathered(parts, count, report)
        texts = [model.texts[place] for place in places]
        return Drawn(pixels, model.labels[places] if classes else None, texts if any(texts) else None)

    def public_inputs(self, work: Work) -> tuple[str, ...]:
        """Every model, and that prompts were public."""
        return (
            *work.facts.get("models", ()),
            "Prompts, worked examples and lists of words given to these models are declared public by the user.",
        )

    def released(self, work: Work, not_private: bool) -> dict[str, Any]:
        """How the rounds went, from the noisy votes alone."""
        try:
            found = Population.load(work.folder, not_private)
        except UserError:
            return {}
        rounds = [{"candidates": one.cells, "noisy_votes": one.votes, "best": one.best} for one in found.rounds]
        return {
            "rounds": rounds,
            "survivors": len(found.numbers),
            "best": [text for text in found.texts[:TOLD] if text],
            "images": (
                "The first image of every survivor is the one that won votes; further images of a survivor were made "
                "afterwards and won none."
                if found.drawn
                else "All images were made from captions that won votes."
            ),
        }


WORKFLOWS = {
    "spti": EvolutionWorkflow("spti"),
    "private-evolution": EvolutionWorkflow("private-evolution"),
}
