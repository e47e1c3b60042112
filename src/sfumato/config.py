"""One run's settings: what the user types, composed with the method's own configuration; YAML in, JSON out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sfumato.data.decode import ImageSpec
from sfumato.data.public import Fit, Ground, PublicImages
from sfumato.errors import UserError
from sfumato.methods.evolution_settings import PrivateEvolutionConfig, SPTIConfig
from sfumato.methods.privimage_settings import PrivImageConfig
from sfumato.methods.spectral_settings import SpectralConfig
from sfumato.privacy.ledger import Ledger

EVOLUTION = ("spti", "private-evolution")
"""Methods that train nothing: candidates evolve by votes."""


class ImageConfig(BaseModel):
    """The public shape that every image is brought to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(28, ge=8, le=1024, multiple_of=4)
    width: int = Field(28, ge=8, le=1024, multiple_of=4)
    channels: Literal[1, 3] = 1
    fit: Literal["crop", "pad", "stretch"] = "crop"
    range16: tuple[int, int] = (0, 65535)

    def spec(self) -> ImageSpec:
        """As the decoder wants it."""
        return ImageSpec(**self.model_dump())


class PublicConfig(BaseModel):
    """Public images that the method learns from first; see `PublicImages`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folders: tuple[str, ...] = Field(min_length=1)
    ground: Ground = "any"
    fit: Fit | None = None

    @field_validator("folders")
    @classmethod
    def _from_anywhere(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(Path(folder).absolute()) for folder in folders)

    def images(self) -> PublicImages:
        """The folders."""
        return PublicImages(*self.folders, ground=self.ground, fit=self.fit)


class RunConfig(BaseModel):
    """Everything that decides a run. All of it is public, and fixed before the first touch.

    Attributes:
        dataset: name of the private data set; budgets are kept under it.
        method: which method.
        epsilon: in (0, 100].
        delta: in [1e-12, 1), below 1 / public_size.
        unit: what one record is.
        public_size: number of records as the user declares it to be public, or None.
        classes: declared class names, or None for an unconditional run.
        classes_origin: how they were declared.
        class_shares: of the released images: "uniform", declared to be public (a number a class, adding up to 1), or
            "bought" by a noisy histogram of labels.
        count: images to release.
        seed: of public randomness only (initial weights, sampling); noise cannot be seeded.
        minutes: how long the run may take; the number of training steps then follows from a speed trial.
        ledger: path of the ledger instead of the user's own.
        image: public shape.
        public: public images, or None.
        allow_private_to: hosts besides this machine that models may be asked at about private images.
        privimage: settings of the method of that name, and so on; those of the other methods are not used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    method: Literal["privimage", "spti", "private-evolution", "spectral"] = "privimage"
    epsilon: float
    delta: float = 1e-6
    unit: Literal["image", "person"] = "image"
    public_size: int | None = Field(None, ge=1)
    classes: tuple[str, ...] | None = None
    classes_origin: Literal["listed", "folder names"] | None = None
    class_shares: Literal["uniform", "bought"] | tuple[float, ...] = "uniform"
    count: int = Field(10_000, ge=1, le=10_000_000)
    seed: int = Field(0, ge=0)
    minutes: float | None = Field(None, gt=0, le=1_000_000)
    ledger: str | None = None
    image: ImageConfig = ImageConfig()
    public: PublicConfig | None = None
    allow_private_to: tuple[str, ...] = ()
    privimage: PrivImageConfig = PrivImageConfig()
    spti: SPTIConfig = SPTIConfig()
    private_evolution: PrivateEvolutionConfig = PrivateEvolutionConfig()
    spectral: SpectralConfig = SpectralConfig()

    @field_validator("epsilon", "delta")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
        return value

    @field_validator("dataset")
    @classmethod
    def _well_named(cls, value: str) -> str:
        Ledger.open(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _comparing_shape(cls, values: Any) -> Any:
        """Candidates are compared, and scales cut, in colour at the size of small drawings, if nothing else is said."""
        if isinstance(values, dict) and values.get("method") in (*EVOLUTION, "spectral"):
            image = values.get("image") or {}
            if isinstance(image, dict):
                return values | {"image": {"height": 64, "width": 64, "channels": 3} | image}
        return values

    @model_validator(mode="after")
    def _method_uses_it(self) -> RunConfig:
        if self.method in EVOLUTION:
            if self.minutes is not None:
                raise ValueError(f"minutes fixes how long a method trains, and {self.method} does not train")
            if self.public is not None:
                raise ValueError(f"the method {self.method} does not learn from public images; leave out public")
        if self.method == "spectral":
            if self.public is None:
                raise ValueError("spectral learns its tokens from public images; give a folder of them with --public")
            self.spectral.refuse_sizes(self.image.spec().shape)
            if self.spectral.condition == "captions" and self.classes:
                raise ValueError(
                    "spectral.condition: captions draws images under prompts and not in classes; leave out classes, or "
                    "set spectral.condition to class or text"
                )
        return self

    @model_validator(mode="after")
    def _distinct_classes(self) -> RunConfig:
        if self.classes is not None:
            if not self.classes or any(not name.strip() for name in self.classes):
                raise ValueError("classes must be named, and there must be at least one")
            if len(set(self.classes)) != len(self.classes):
                raise ValueError("a class is named twice")
        return self

    @model_validator(mode="after")
    def _shares_of_classes(self) -> RunConfig:
        if self.class_shares == "uniform":
            return self
        if self.classes is None:
            raise ValueError("class_shares needs classes; give their names with --classes")
        if self.method in EVOLUTION:
            raise ValueError(f"votes decide how many images of a class {self.method} makes; leave out class_shares")
        if self.class_shares != "bought":
            shares = self.class_shares
            if len(shares) != len(self.classes) or min(shares) < 0 or abs(math.fsum(shares) - 1) > 1e-6:
                raise ValueError(
                    f"class_shares must be {len(self.classes)} numbers, one a class in their order, none negative, "
                    "that add up to 1"
                )
        return self

    def to_json(self) -> dict[str, Any]:
        """The resolved settings, complete."""
        return self.model_dump(mode="json")


def read_config(file: Path | None, overrides: dict[str, Any], preset: str | None = None) -> RunConfig:
    """Settings from a YAML or JSON file, with what the command line says on top.

    Args:
        file: YAML or JSON, or None.
        overrides: values by name; None means "not given".
        preset: of the method that the settings name, in place of the file's.

    Raises:
        UserError: unreadable file, unknown key, or a value that is not allowed; one sentence that names it.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = yaml.safe_load(file.read_text()) or {}
        except OSError as error:
            raise UserError(f"The configuration {file} cannot be read: {error.strerror}.") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"The configuration {file} is not valid YAML.") from error
        if not isinstance(values, dict):
            raise UserError(f"The configuration {file} must hold names and values, such as 'epsilon: 1'.")
    for name, value in overrides.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            values[name] = values[name] | value
        elif value is not None:
            values[name] = value
    if preset is not None:
        name = str(values.get("method", "privimage")).replace("-", "_")
        method = values.get(name)
        values[name] = (method if isinstance(method, dict) else {}) | {"preset": preset}
    return validated(values)


def validated(values: dict[str, Any]) -> RunConfig:
    """A `RunConfig` from plain values, with one clear sentence for everything that is wrong."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError(" ".join(_sentence(problem) for problem in error.errors())) from error


def _sentence(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "The settings"
    match problem["type"]:
        case "missing":
            option = {"public.folders": "public"}.get(name, name.replace("_", "-"))
            return f"'{name}' is missing: give --{option} or set it in the configuration."
        case "extra_forbidden":
            return f"'{name}' is not a setting."
        case _:
            message = problem["msg"].removeprefix("Value error, ")
            if not problem["loc"]:  # of settings that do not go together: the message names them
                return f"{message[0].upper()}{message[1:]}."
            return f"'{name}' cannot be {problem['input']!r}: {message[0].lower()}{message[1:]}."
