"""Settings of SPTI and Private Evolution: models by one line each, rounds, population, and what can be switched.

All of it is public and fixed before the first touch. Prompts, examples and qualifiers are public too: whoever writes
them after looking at the private images leaks, and no accounting sees it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sfumato.methods.evolution import request
from sfumato.privacy.plan import HistogramRequest

KINDS = {
    "texts": "text generator",
    "images": "image generator",
    "variator": "image variator",
    "source": "image source",
    "embedder": "image embedder",
    "captioner": "captioner",
    "text_embedder": "text embedder",
    "upscaler": "upscaler",
}
"""What each model of the settings must be able to do (`pretrained.backends.open_model`)."""

USUAL_POPULATION = 2000
LEAST_POPULATION = 10
SIGNAL = 5.0
"""Where votes per candidate fall below the noise over this number, rounds choose mostly by noise (a rule of thumb from
the published runs: 0.7 to 21 votes a candidate at noise 11 to 13)."""


class Prices(BaseModel):
    """What calls cost, in whatever money; for the forecast alone.

    Attributes:
        image: of one render.
        input_tokens: of a million tokens sent to the text model.
        output_tokens: of a million tokens that it answers.
        tokens_sent: tokens of one request, worked examples included.
        tokens_answered: tokens of one answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: float = Field(0.0, ge=0)
    input_tokens: float = Field(0.0, ge=0)
    output_tokens: float = Field(0.0, ge=0)
    tokens_sent: int = Field(350, ge=0)
    tokens_answered: int = Field(100, ge=0)


class Pace(BaseModel):
    """How fast the models are, a second; for the forecast alone. None: not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: float | None = Field(None, gt=0)
    texts: float | None = Field(None, gt=0)
    embeddings: float | None = Field(None, gt=0)


class EvolutionConfig(BaseModel):
    """What both methods have.

    Attributes:
        images: text-to-image model.
        texts: model that invents and varies captions.
        embedder: image embedder that decides which candidate is nearest; take another one to measure the result.
        upscaler: enlarges the images of a release, or None.
        release_size: height and width of the images of a release; None leaves them as the models made them.
        options: of the models, by the name of their setting.
        prompt: what the image model is asked for a caption; {text} is the caption, {label} the class.
        rounds: votes, T. All of them are charged.
        population: candidates that survive a round, n; None scales it to the declared size.
        part: candidates drawn and stored at a time.
        prices: for the forecast.
        pace: for the forecast.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: str = "offline:clipart"
    texts: str = "offline:captions"
    embedder: str = "offline:efficientnet-lite0"
    upscaler: str | None = None
    release_size: tuple[int, int] | None = None
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    prompt: str = "{text}"
    rounds: int = Field(9, ge=1, le=1000)
    population: int | None = Field(None, ge=1, le=10_000_000)
    part: int = Field(64, ge=1, le=10_000)
    prices: Prices = Prices()
    pace: Pace = Pace()

    @field_validator("prompt")
    @classmethod
    def _has_places(cls, value: str) -> str:
        try:
            if "\0" not in value.format(text="\0", label=""):
                raise ValueError("it must contain {text}, the place of the caption")
        except (KeyError, IndexError) as error:
            raise ValueError("it may contain {text} and {label}, nothing else in braces") from error
        return value

    @field_validator("options")
    @classmethod
    def _known(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if unknown := set(value) - set(KINDS):
            raise ValueError(f"there is no model {sorted(unknown)[0]!r}; there are {', '.join(KINDS)}")
        return value

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def requests(self) -> tuple[HistogramRequest, ...]:
        """The touches that the method asks the plan for."""
        return (request(self.rounds),)

    def roles(self) -> Mapping[str, str]:
        """The models it needs, name of the setting to line."""
        found = {"images": self.images, "texts": self.texts, "embedder": self.embedder}
        return found | ({"upscaler": self.upscaler} if self.upscaler else {})

    def shown_private_images(self) -> tuple[str, ...]:
        """Those of them that are shown private images."""
        return ("embedder",)

    def candidates_of(self, population: int) -> int:
        """Cells of a round with this population, at most."""
        return population

    def population_for(self, size: int | None, noise: float, classes: int) -> int:
        """n: as set, or such that a cell gets at least noise / 5 votes of `size` records, between 10 and 2,000."""
        if self.population is not None:
            return max(self.population, classes)
        if size is None:
            return max(USUAL_POPULATION, classes)
        each = self.candidates_of(1)
        fitting = int(size / each / max(noise / SIGNAL, 1.0))
        return max(min(fitting, USUAL_POPULATION), LEAST_POPULATION, classes)


class SPTIConfig(EvolutionConfig):
    """Settings of SPTI; the defaults are those of its authors' code, with models that need no network.

    Attributes:
        voting: whether records vote by their images, or by captions of them (then nothing is drawn before the end).
        captioner: captions private images where captions vote.
        text_embedder: compares captions where captions vote.
        first_variations: variations of each random caption before the first round.
        variations: variations of each chosen caption after a round, F.
        strength: share of a caption that a variation changes.
        domain: public noun phrase for language models, such as "a photo of a bedroom".
        qualifiers: public list of places, moods and things that random captions are asked about.
        combine_votes: candidates that stay are judged by the votes of all their rounds.
        merge_duplicates: equal captions share a cell.
        children_last: vary captions after the last vote too, as the published code does; nothing of it is released.
        keep_renders: a candidate that stays keeps its image; otherwise it is drawn anew for each round.
    """

    voting: Literal["image", "text"] = "image"
    captioner: str | None = None
    text_embedder: str = "offline:minilm"
    first_variations: int = Field(6, ge=0, le=100)
    variations: int = Field(6, ge=0, le=100)
    strength: float = Field(0.5, gt=0, le=1)
    domain: str | None = None
    qualifiers: tuple[str, ...] = ()
    combine_votes: bool = True
    merge_duplicates: bool = True
    children_last: bool = False
    keep_renders: bool = True

    @model_validator(mode="after")
    def _can_caption(self) -> SPTIConfig:
        if self.voting == "text" and self.captioner is None:
            raise ValueError("voting by captions needs a captioner of private images, such as offline:captioner")
        return self

    def roles(self) -> Mapping[str, str]:
        """The models it needs."""
        found = dict(super().roles())
        if self.voting == "text" and self.captioner is not None:
            del found["embedder"]
            found |= {"captioner": self.captioner, "text_embedder": self.text_embedder}
        return found

    def shown_private_images(self) -> tuple[str, ...]:
        """Embedder, or captioner and the embedder of its captions."""
        return ("embedder",) if self.voting == "image" else ("captioner", "text_embedder")

    def model_options(self, role: str) -> dict[str, Any]:
        """The options of a model, domain and qualifiers included."""
        found = dict(self.options.get(role, {}))
        if role == "texts":
            found |= {"domain": self.domain} if self.domain else {}
            found |= {"qualifiers": self.qualifiers} if self.qualifiers else {}
        return found

    def candidates_of(self, population: int) -> int:
        """n (F + 1), F being the larger of the two."""
        return population * (1 + max(self.variations, self.first_variations))


class PrivateEvolutionConfig(EvolutionConfig):
    """Settings of Private Evolution for images; the schedule is that of its library's examples.

    Attributes:
        source: model that draws images at random; None asks the image model for random captions instead.
        variator: model that varies images.
        degrees: strength of the variations; a value a round, or first and last with a straight line between them.
        lookahead: variations of a candidate whose mean embedding stands for it, k; 0 takes its own.
        threshold: subtracted from the votes, in units of the noise; what is below gets nothing.
        selection: "sample" draws survivors in proportion to their votes, "rank" takes the best.
    """

    source: str | None = None
    variator: str = "offline:clipart"
    degrees: tuple[float, ...] = (0.9, 0.3)
    lookahead: int = Field(0, ge=0, le=100)
    threshold: float = Field(1.0, ge=0)
    selection: Literal["sample", "rank"] = "sample"

    @model_validator(mode="after")
    def _fitting(self) -> PrivateEvolutionConfig:
        if len(self.degrees) not in (2, self.rounds) or not all(0 < degree <= 1 for degree in self.degrees):
            raise ValueError(f"degrees must be 2 or {self.rounds} (rounds) numbers above 0 and at most 1")
        return self

    def roles(self) -> Mapping[str, str]:
        """The models it needs."""
        found = {"embedder": self.embedder, "variator": self.variator}
        found |= {"source": self.source} if self.source else {"images": self.images, "texts": self.texts}
        return found | ({"upscaler": self.upscaler} if self.upscaler else {})

    def model_options(self, role: str) -> dict[str, Any]:
        """The options of a model."""
        return dict(self.options.get(role, {}))

    def degree(self, number: int) -> float:
        """Strength of the variations of round `number`, from 1."""
        if len(self.degrees) == self.rounds:
            return self.degrees[number - 1]
        first, last = self.degrees
        return first + (last - first) * (number - 1) / max(self.rounds - 1, 1)


def signal_warning(size: int | None, cells: int, noise: float) -> str | None:
    """A sentence where rounds choose mostly by noise."""
    if size is None:
        return (
            "No size was declared, so the population is not scaled to it; with few records, noise decides the rounds."
        )
    votes = size / cells
    if votes >= noise / SIGNAL:
        return None
    return (
        f"{votes:.2g} votes a candidate on average against noise of {noise:.3g}: only very popular candidates stand "
        f"out. Take {max(1, math.floor(100 * votes * SIGNAL / noise))} % of this population, fewer rounds, or more "
        "epsilon."
    )
