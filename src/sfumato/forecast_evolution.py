"""What a run of SPTI or Private Evolution would cost, before it costs anything; from public settings alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from sfumato.config import RunConfig
from sfumato.methods.evolution_settings import Pace, PrivateEvolutionConfig, SPTIConfig, signal_warning
from sfumato.methods.models import OWN, Models
from sfumato.privacy.plan import HistogramTouch, Plan
from sfumato.run import make_plan

FEW = 1000
"""Records below which SPTI's candidates can hardly be told apart; its authors saw it fail at 200 images of two cats."""
TRIAL = 32
"""Items that a model is tried on."""


@dataclass(frozen=True)
class EvolutionForecast:
    """What a run would buy and need.

    Attributes:
        plan: the calibrated touch.
        noise: scale of the noise on every cell.
        population: survivors of a round.
        candidates: cells of a round, at most.
        votes_per_candidate: mean, or None without a declared size.
        texts: captions asked of the text model, at most (equal ones are merged).
        images: images made before the release, at most.
        images_for_release: images made for the release besides those that won.
        calls_over_published: texts and images of the rounds over what the published procedure makes with these numbers.
        tokens: sent to and answered by the text model, with the numbers of `Prices`; 0 for an offline list of captions.
        money: in the currency of the prices.
        hours: one model at a time; None where a pace is not known.
        pace: behind it, a second.
        notes: warnings from public values.
    """

    plan: Plan
    noise: float
    population: int
    candidates: int
    votes_per_candidate: float | None
    texts: int
    images: int
    images_for_release: int
    calls_over_published: float
    tokens: tuple[int, int]
    money: float
    hours: float | None
    pace: Pace
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, for scripts."""
        return {
            "epsilon": self.plan.planned_epsilon,
            "delta": self.plan.delta,
            **{name: value for name, value in asdict(self).items() if name not in ("plan", "pace", "notes")},
            "plan": self.plan.to_json(),
            "shares": self.plan.shares(),
            "pace": self.pace.model_dump(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        plan = self.plan
        votes = "" if self.votes_per_candidate is None else f", {self.votes_per_candidate:.3g} votes each on average"
        rounds = plan.touches[0].attempts
        lines = [
            f"Guarantee: epsilon {plan.planned_epsilon:g}, delta {plan.delta:g} for one {plan.unit}",
            f"Votes: {rounds} rounds, noise of scale {self.noise:.5g} on every candidate's votes",
            f"Population: {self.population:,} survive of at most {self.candidates:,} candidates a round{votes}",
            f"Calls: {self.texts:,} captions and {self.images:,} images at most "
            f"({self.calls_over_published:.2f} of the published procedure), {self.images_for_release:,} images more "
            "for the release",
        ]
        if any(self.tokens):
            lines.append(f"Tokens: about {self.tokens[0]:,} sent and {self.tokens[1]:,} answered")
        if self.money:
            lines.append(f"Money: about {self.money:,.2f} at the given prices")
        lines.append(
            "Time: not known; give spti.pace (texts, images, embeddings a second)"
            if self.hours is None
            else f"Time: about {self.hours:.1f} hours, one call after the other"
        )
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def forecast_evolution(
    config: RunConfig, models: Mapping[str, Any] = MappingProxyType({}), pace: Pace | None = None
) -> EvolutionForecast:
    """Prices a run; tries the pace of models on this machine if it is not given."""
    settings = config.spti if config.method == "spti" else config.private_evolution
    plan, size, classes = make_plan(config), config.public_size, max(len(config.classes or ()), 1)
    (touch,) = (touch for touch in plan.touches if isinstance(touch, HistogramTouch))
    noise = touch.scale
    population = settings.population_for(size, noise, classes)
    candidates = settings.candidates_of(population)
    texts, images, published = _calls(settings, population)
    extra = max(config.count - population, 0) if not _captions_vote(settings) else config.count
    pace = pace or _pace(config, settings, models)
    prices, generates = settings.prices, "texts" in settings.roles()
    asked = texts if generates and not settings.texts.startswith("offline:captions") else 0
    tokens = asked * prices.tokens_sent, asked * prices.tokens_answered
    money = (tokens[0] * prices.input_tokens + tokens[1] * prices.output_tokens) / 1e6 + (images + extra) * prices.image
    parts = (texts, pace.texts), (images + extra, pace.images), ((size or 0) + images, pace.embeddings)
    known = all(rate is not None or not count for count, rate in parts)
    hours = sum(count / rate for count, rate in parts if rate is not None) / 3600 if known else None
    return EvolutionForecast(
        plan=plan,
        noise=noise,
        population=population,
        candidates=candidates,
        votes_per_candidate=None if size is None else size / candidates,
        texts=texts,
        images=images,
        images_for_release=extra,
        calls_over_published=(texts + images) / max(published, 1),
        tokens=tokens,
        money=money,
        hours=hours,
        pace=pace,
        notes=tuple(_notes(config, settings, candidates, noise)),
    )


def _captions_vote(settings: SPTIConfig | PrivateEvolutionConfig) -> bool:
    return isinstance(settings, SPTIConfig) and settings.voting == "text"


def _calls(settings: SPTIConfig | PrivateEvolutionConfig, population: int) -> tuple[int, int, int]:
    """Captions, images, and both together in the published procedure, which varies after the last vote too."""
    n, rounds = population, settings.rounds
    if isinstance(settings, PrivateEvolutionConfig):
        images = n * (rounds + 1) * (1 + settings.lookahead)
        texts = 0 if settings.source else n
        return texts, images, texts + images
    first, later = n * (1 + settings.first_variations), n * settings.variations
    made = first + (rounds - 1 + settings.children_last) * later
    again = 0 if settings.keep_renders else (rounds - 1 + settings.children_last) * n
    images = 0 if settings.voting == "text" else made + again
    published = first + rounds * later
    return made, images, published * (1 if settings.voting == "text" else 2)


def _notes(
    config: RunConfig, settings: SPTIConfig | PrivateEvolutionConfig, candidates: int, noise: float
) -> list[str]:
    notes = []
    if warning := signal_warning(config.public_size, candidates, noise):
        notes.append(warning)
    if isinstance(settings, SPTIConfig):
        if config.public_size is not None and config.public_size < FEW:
            notes.append(
                f"{config.public_size} records are few: words do not carry what is particular to them, and votes are "
                "scarce. Private Evolution (--method private-evolution) follows images instead of words."
            )
        notes.append(
            "The image model must be able to draw the domain: what it has never seen, no caption brings back. Try a "
            "few prompts first."
        )
    notes.append("Domain, examples and lists of words for the text model must not be written after the private images.")
    return notes


def _pace(config: RunConfig, settings: SPTIConfig | PrivateEvolutionConfig, given: Mapping[str, Any]) -> Pace:
    """What is set, else tried where the model runs in this process."""
    models, roles = Models(settings, given, config.allow_private_to), settings.roles()
    image = np.zeros((TRIAL, 3, config.image.height, config.image.width), np.uint8)
    image[:] = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    trials: dict[str, tuple[str, Callable[[], Any]]] = {
        "texts": ("texts", lambda: models["texts"].random_texts(TRIAL, 0)),
        "images": (
            ("images", lambda: models["images"].generate(["a picture"] * TRIAL, 0))
            if isinstance(settings, SPTIConfig)
            else ("variator", lambda: models["variator"].vary_images(image, 0, 0.5))
        ),
        "embeddings": (
            ("text_embedder", lambda: models["text_embedder"].embed_texts(["a picture"] * TRIAL))
            if _captions_vote(settings)
            else ("embedder", lambda: models["embedder"].embed_images(image))
        ),
    }
    found = settings.pace.model_dump()
    for name, (role, trial) in trials.items():
        here = role in roles and (roles[role].startswith("offline:") or roles[role].startswith(OWN))
        if found[name] is None and here:
            trial()
            began = time.perf_counter()
            trial()
            found[name] = TRIAL / max(time.perf_counter() - began, 1e-9)
        elif role not in roles:
            found[name] = found[name] or 1e9
    return Pace(**found)
