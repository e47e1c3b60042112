"""Settings of PrivImage and its presets. Every value is public and fixed before the first touch."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sfumato.methods.denoising import Image, Shape
from sfumato.methods.labelcheck import LabelCheckConfig
from sfumato.methods.presets import filled
from sfumato.methods.pretraining import PretrainingConfig
from sfumato.methods.proportions import noise, proportions
from sfumato.methods.semantic import SemanticConfig
from sfumato.nets.ddpmpp import DDPMppShape
from sfumato.nets.diffusion import Sampler
from sfumato.nets.unet import UNetShape
from sfumato.privacy.gradients.engine import rounding_slack
from sfumato.privacy.plan import Request, SumRequest, TrainingRequest

WARM_START, FINE_TUNING = "warm start", "fine-tuning"
CHOSEN = ("batch", "steps", "draws")
"""Settings that follow from epsilon and time where a user sets none of them."""

WIDER = (32, 64)
"""Width of the U-Net where noise and time allow it."""
_WIDER_NOISE, _WIDER_ROWS = 0.2, 2e6
_AVERAGED = 8.0  # the moving average reaches over an eighth of the steps: a decay of 0.95 at 160

_CHUNK = 128  # rows of a forward pass
_ALMOST_NOTHING = 1e-6  # of mu^2


def _chunk(draws: int) -> int:
    """Records of a forward pass, of so many rows each."""
    return max(8, _CHUNK // draws)


PRESETS = MappingProxyType(
    {
        "laptop": {},
        # DPImageBench's configuration of PrivImage (spec of its authors' code); nothing is warm-started there.
        "paper": {
            "network": "ddpm++",
            "batch": 4096,
            "steps": 2100,
            "draws": 32,
            "clip_norm": 1e-3,
            "clipping": "flat",
            "learning_rate": 3e-4,
            "final_rate": 1.0,
            "average": 0.999,
            "label_dropout": 0.1,
            "warm_share": 0.0,
            "check": {"share": 0.0},
            "semantic": {"share": 0.005, "votes": 5, "kept": 0.05, "rule": "in order"},
            "pretraining": {"steps": 200_000, "batch": 1024, "rate": 3e-4},
            "sampler": {
                "steps": 1000,
                "lowest": 0.002,
                "highest": 80.0,
                "churn": 10.0,
                "churn_from": 0.025,
                "churn_to": 50.0,
            },
        },
    }
)


class DDPMppConfig(BaseModel):
    """Size of the published network; see `DDPMppShape`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(32, ge=4, multiple_of=4)
    multiples: tuple[int, ...] = Field((2, 2), min_length=1)
    attention: tuple[int, ...] = (14,)
    blocks: int = Field(2, ge=1)


class SamplerConfig(BaseModel):
    """How pictures are drawn; see `sfumato.nets.diffusion.Sampler`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(12, ge=1)
    lowest: float = Field(0.02, gt=0)
    highest: float = Field(40.0, gt=0)
    churn: float = Field(0.0, ge=0)
    churn_from: float = Field(0.0, ge=0)
    churn_to: float = Field(1e9, gt=0)
    guidance: float = Field(0.0, ge=0)

    def sampler(self) -> Sampler:
        """The constants."""
        return Sampler(**self.model_dump())


class PrivImageConfig(BaseModel):
    """Settings of the method; the defaults are the `laptop` preset, tuned for two cores and 28x28 images.

    Where the number of records is declared, and none of batch, steps and draws is set, they follow from epsilon and
    from the time there is (`proportioned`), and so does the warm start's share if it is not set
    (`share_for_clear_means`).

    Attributes:
        preset: values for whatever is not set; `paper` are the published settings.
        network: the small U-Net on Haar bands, or the published DDPM++ on pixels.
        width: of the U-Net, at full and half of its working resolution.
        blocks: of the U-Net, likewise.
        ddpmpp: size of DDPM++.
        batch: expected records per step.
        rate_without_size: sampling rate where no size is declared.
        steps: of private training.
        draws: noise draws per record and step (noise multiplicity K).
        clip_norm: bound on a record's gradient.
        clipping: "automatic" scales every gradient to about the bound, "flat" only longer ones.
        learning_rate: peak of Adam's.
        final_rate: share of the peak at the end, after a cosine fall.
        average: decay of the moving average of the weights that is released.
        label_dropout: share of the rows shown without their label; guidance needs some.
        warm_share: share of mu^2 that the warm start may spend; 0 leaves it out.
        warm_attempts: attempts bought for the warm start; one is a spare. It costs as much as the touch itself; with 1
            in all, a run that is killed in the seconds of the touch cannot go on, and stays charged.
        warm_steps: of training on samples of the class models.
        warm_rate: its learning rate.
        chunk: records per forward pass; changes speed and memory only. 128 by default, fewer where each has several
            draws.
        sampler: how pictures are drawn.
        mixed: share of a release that the warm start's class models draw themselves: blurred pictures that help some
            classifiers.
        check: the private classifier that says which class a picture shows.
        selection: which public images pretrain the network: those that the "semantic" query chooses, as many at
            "random", or "all"; the last two ask the private images nothing, and show public ones without a label.
        semantic: the semantic query.
        pretraining: on public images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["laptop", "paper"] = "laptop"
    network: Literal["haar u-net", "ddpm++"] = "haar u-net"
    width: tuple[int, int] = (32, 32)
    blocks: tuple[int, int] = (2, 2)
    ddpmpp: DDPMppConfig = DDPMppConfig()
    batch: int = Field(2048, ge=1)
    rate_without_size: float = Field(0.03, gt=0, le=1)
    steps: int = Field(160, ge=1, le=1_000_000)
    draws: int = Field(1, ge=1, le=1024)
    clip_norm: float = Field(1.0, gt=0)
    clipping: Literal["flat", "automatic"] = "automatic"
    learning_rate: float = Field(2e-3, gt=0)
    final_rate: float = Field(0.05, ge=0, le=1)
    average: float = Field(0.95, ge=0, lt=1)
    label_dropout: float = Field(0.0, ge=0, lt=1)
    warm_share: float = Field(0.15, ge=0, lt=1)
    warm_attempts: int = Field(2, ge=1)
    warm_steps: int = Field(150, ge=0)
    warm_rate: float = Field(2e-3, gt=0)
    chunk: int = Field(_CHUNK, ge=1)
    sampler: SamplerConfig = SamplerConfig()
    mixed: float = Field(0.0, ge=0, le=1)
    check: LabelCheckConfig = LabelCheckConfig()
    selection: Literal["semantic", "random", "all"] = "semantic"
    semantic: SemanticConfig = SemanticConfig()
    pretraining: PretrainingConfig = PretrainingConfig()

    @model_validator(mode="before")
    @classmethod
    def _filled_by_preset(cls, given: Any) -> Any:
        given = filled(PRESETS, given, "laptop")
        draws = given.get("draws") if isinstance(given, dict) else None
        if isinstance(draws, int) and draws > 1 and "chunk" not in given:
            given = given | {"chunk": _chunk(draws)}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> PrivImageConfig:
        if self.mixed and not self.warm_share:
            raise ValueError("'mixed' takes pictures of the warm start; set 'warm_share' above 0, or 'mixed' to 0")
        if self.sampler.guidance and not self.label_dropout:
            raise ValueError("guidance needs a network that knows 'no label'; set 'label_dropout', for example to 0.1")
        return self

    def sampling_rate(self, size: int | None) -> float:
        """Poisson rate, from public values."""
        return self.rate_without_size if size is None else min(1.0, self.batch / size)

    @property
    def open(self) -> bool:
        """Whether batch, steps and draws are left to be chosen."""
        return self.preset == "laptop" and not self.model_fields_set.intersection(CHOSEN)

    def training_mu(self, mu: float, public: bool, classes: int) -> float:
        """What is left of the budget `mu` for training; almost nothing where the plan will refuse the other shares."""
        query = self.semantic.share if public and self.selection == "semantic" else 0.0
        return mu * math.sqrt(max(1 - self.warm_share - query - self.check.spent(classes), _ALMOST_NOTHING))

    def proportioned(self, rows: float, size: int, mu: float, parameters: int) -> PrivImageConfig:
        """Batch, steps and draws for a budget of rows, see `proportions`.

        The chunk shrinks with the draws, and the average reaches over the same share of the steps, however many.

        Args:
            rows: that time allows.
            size: declared number of records.
            mu: that training may spend.
            parameters: trained.
        """
        found = proportions(rows, size, mu, parameters)
        further: dict[str, float] = {}
        if "chunk" not in self.model_fields_set:
            further["chunk"] = _chunk(found.draws)
        if "average" not in self.model_fields_set:
            further["average"] = max(0.0, 1 - _AVERAGED / found.steps)
        return self.model_copy(update={**found._asdict(), **further})

    def wider_pays(self, rows: float, size: int, mu: float, parameters: int) -> bool:
        """Whether a U-Net of `WIDER`, which trains so many parameters, stands the noise and gets time to learn."""
        if self.network != "haar u-net" or "width" in self.model_fields_set or rows < _WIDER_ROWS:
            return False
        return noise(proportions(rows, size, mu, parameters), size, mu, parameters) <= _WIDER_NOISE

    def requests(self, size: int | None, *, classes: int, public: bool = False) -> tuple[Request, ...]:
        """The touches that the method asks the plan for; the query only where there are public images to choose."""
        requests: list[Request] = [self.training_request(size)]
        if self.check.spent(classes):
            requests.insert(0, self.check.request(size))
        if self.warm_share:
            requests.insert(0, SumRequest(WARM_START, 1.0, attempts=self.warm_attempts, share=self.warm_share))
        if public and self.selection == "semantic":
            requests.insert(0, self.semantic.request())
        return tuple(requests)

    def training_request(self, size: int | None) -> TrainingRequest:
        """The main touch."""
        return TrainingRequest(
            FINE_TUNING,
            sampling_rate=self.sampling_rate(size),
            steps=self.steps,
            clip_norm=self.clip_norm,
            rows=self.draws,
            slack=rounding_slack(self.batch),
            clipping=self.clipping,
        )

    def shape(self, image: Image, classes: int) -> Shape:
        """The network for images `(C, H, W)` and so many classes (0: unconditional)."""
        channels, height, _ = image
        if self.network == "ddpm++":
            return DDPMppShape(channels, height, classes, **self.ddpmpp.model_dump())
        guide = 4 * channels if self.warm_share else 0
        return UNetShape(4 * channels, guide, classes, self.width, self.blocks)
